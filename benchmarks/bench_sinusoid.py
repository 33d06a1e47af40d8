"""Sinusoid MAML, 1-40-40-1 (Finn et al. 2017, section 5.1)."""

import pytest

from fastmeta.bench import FAMILIES, WORKLOADS

FAMILY = [WORKLOADS[name] for name in FAMILIES["sinusoid"]]


@pytest.mark.parametrize("workload", FAMILY, ids=lambda workload: workload.name)
def test_meta_step(meta_step, workload, rival):
    meta_step(rival, workload)
