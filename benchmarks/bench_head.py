"""Linear heads on learned features, as ANIL adapts them: gradients into the features too."""

import pytest

from fastmeta.bench import WORKLOADS

FAMILY = [workload for workload in WORKLOADS.values() if workload.family == "head"]


@pytest.mark.parametrize("workload", FAMILY, ids=lambda workload: workload.name)
def test_meta_step(meta_step, workload, rival):
    meta_step(rival, workload)
