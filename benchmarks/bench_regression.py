"""Wider networks: the size of a policy, and one network a user."""

import pytest

from fastmeta.bench import WORKLOADS

FAMILY = [workload for workload in WORKLOADS.values() if workload.family == "regression"]


@pytest.mark.parametrize("workload", FAMILY, ids=lambda workload: workload.name)
def test_meta_step(meta_step, workload, rival):
    meta_step(rival, workload)
