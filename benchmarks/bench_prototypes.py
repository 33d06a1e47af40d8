"""The loss of prototypical networks with its gradients, and the nearest prototypes of a bank."""

import pytest

from fastmeta.bench.gate import TOLERANCE
from fastmeta.bench.prototypes import LOSSES, OPERATIONS, SEARCHES, exact_result, make_arrays

PAIRS = [
    pytest.param(point, contestant, id=f"{point.name}-{contestant.name}")
    for point in OPERATIONS.values()
    for contestant in (SEARCHES if point.k else LOSSES)
]


@pytest.mark.parametrize("point, contestant", PAIRS)
def test_point(benchmark, point, contestant):
    if reason := contestant.why_not(point):
        pytest.skip(reason)
    arrays = make_arrays(point)
    call = contestant.build(point, arrays)
    assert contestant.error(point, call(), exact_result(point, arrays)) < TOLERANCE
    benchmark.group = point.name
    benchmark(call)
