"""What the benchmark files share: the gate before the clock, as in `fastmeta bench`."""

from functools import lru_cache

import pytest
import torch

from fastmeta.bench import RIVALS, make_problem
from fastmeta.bench.device import CPU
from fastmeta.bench.gate import exact_outcome, judge
from fastmeta.bench.rivals import FASTMETA, FASTMETA_DIRECT
from fastmeta.bench.timing import seconds_of

SLOW_STEP_S = 1.0


def pytest_generate_tests(metafunc):
    if "rival" in metafunc.fixturenames:
        everyone = {ours.name: ours for ours in (FASTMETA, FASTMETA_DIRECT)} | RIVALS
        metafunc.parametrize("rival", everyone.values(), ids=list(everyone))


@lru_cache(maxsize=1)
def _exact(workload):
    return exact_outcome(make_problem(workload))


@pytest.fixture
def meta_step(benchmark):
    """`meta_step(rival, workload)`: skip with the reason, fail if wrong, else time."""

    def meta_step(rival, workload):
        reason = rival.why_not(workload) or rival.why_not_on(CPU)
        if reason is not None:
            pytest.skip(reason)
        torch.compiler.reset()
        benchmark.group = workload.name
        step = rival.build(make_problem(workload))
        wrong = judge(rival, workload, step(), _exact(workload)).reason
        assert wrong is None, wrong
        if seconds_of(step) > SLOW_STEP_S:
            benchmark.pedantic(step, rounds=3)
        else:
            benchmark(step)

    return meta_step
