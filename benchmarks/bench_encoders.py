"""ProtoNet on images: its loss with the gradient of its encoder, and its loss alone in eval()."""

import pytest

from fastmeta.bench.encoders import CONTESTANTS, OPERATIONS, exact_result, make_arrays
from fastmeta.bench.gate import TOLERANCE

PAIRS = [
    pytest.param(point, contestant, id=f"{point.name}-{contestant.name}")
    for point in OPERATIONS.values()
    for contestant in CONTESTANTS
]


@pytest.mark.parametrize("point, contestant", PAIRS)
def test_point(benchmark, point, contestant):
    arrays = make_arrays(point)
    call = contestant.build(point, arrays)
    assert contestant.error(point, call(), exact_result(point, arrays)) < TOLERANCE
    benchmark.group = point.name
    benchmark(call)
