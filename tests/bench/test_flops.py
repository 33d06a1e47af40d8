from dataclasses import replace

import pytest

from fastmeta.bench.catalogue import WORKLOADS
from fastmeta.bench.flops import useful_flops
from fastmeta.bench.workloads import Workload

SMALL = Workload(
    "small", "regression", (2, 3, 1), "relu", "mse", tasks=3, support=4, query=5, steps=2
)


def test_two_layers_by_hand():
    # layer 2 -> 3, no input gradient: a pass is 2*4*2*3 = 48 on support, 2*5*2*3 = 60 on query
    first = 2 * (2 + 3) * 48 + 2 * 60
    # layer 3 -> 1: a pass is 2*4*3*1 = 24 on support, 2*5*3*1 = 30 on query
    second = 2 * (3 + 8) * 24 + 3 * 30
    assert first == 600 and second == 618
    assert useful_flops(SMALL) == 3 * (600 + 618)


def test_learned_inputs_add_the_first_layers_input_gradients():
    first = 2 * (2 + 5) * 48 + 3 * 60
    assert useful_flops(replace(SMALL, learns_inputs=True)) == 3 * (first + 618)


def test_slopes_go_through_all_but_the_last_layer_once_more():
    back = 2 * (3 + 8) * 48 + 3 * 60
    assert useful_flops(replace(SMALL, slopes=True)) == 3 * (600 + 618 + back)


def test_no_inner_steps_leave_one_gradient():
    assert useful_flops(replace(SMALL, steps=0)) == 3 * (2 * 60 + 3 * 30)


def test_convolutions_by_hand():
    image = Workload(
        "image", "omniglot", (3, 5), "relu", "cross_entropy", tasks=2, support=4, query=6, steps=2,
        image=(1, 16, 18), filters=3,
    )  # fmt: skip
    # a pass over a sample: pixels times 2 * 9 * inputs * outputs; the first layer has no gradient
    # for its input
    first = 16 * 18 * 54 * (2 * 4 * (2 + 3) + 6 * 2)
    others = (8 * 9 + 4 * 4 + 2 * 2) * 162 * (2 * 4 * (3 + 8) + 6 * 3)
    head = 2 * 3 * 5 * (2 * 4 * (3 + 8) + 6 * 3)
    assert useful_flops(image) == 2 * (first + others + head)


@pytest.mark.parametrize(
    ("name", "gflop"),
    [("sinusoid-T1024-K5", 1.97), ("sinusoid-T25-K1", 0.0116), ("conv64-T4-K1-S5-Q75", 21.6)],
)
def test_the_design_documents_numbers(name, gflop):
    assert useful_flops(WORKLOADS[name]) / 1e9 == pytest.approx(gflop, rel=0.01)
