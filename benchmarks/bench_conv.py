"""Conv4 on images of Omniglot's and of miniImageNet's size, the like, and single convolutions."""

import pytest

from fastmeta.bench import FAMILIES, OPERATIONS, WORKLOADS
from fastmeta.bench.gate import TOLERANCE, relative_error
from fastmeta.bench.operations import CONTESTANTS, exact_result, make_arrays

_OF_IMAGES = ("omniglot", "beside-conv4", "mini-imagenet")
IMAGES = [WORKLOADS[name] for family in _OF_IMAGES for name in FAMILIES[family]]


@pytest.mark.parametrize("workload", IMAGES, ids=lambda workload: workload.name)
def test_meta_step(meta_step, workload, rival):
    meta_step(rival, workload)


@pytest.mark.parametrize("contestant", CONTESTANTS, ids=lambda contestant: contestant.name)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=list(OPERATIONS))
def test_operation(benchmark, operation, contestant):
    arrays = make_arrays(operation)
    call = contestant.build(operation, arrays)
    result = list(contestant.by_task(operation, call()))
    assert relative_error(result, exact_result(operation, arrays)) < TOLERANCE
    benchmark.group = operation.name
    benchmark(call)
