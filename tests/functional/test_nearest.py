"""nearest_prototype: all distances, sorted by value and then by index, are what is right."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import DOUBLE
from torch.autograd import gradcheck, gradgradcheck

import fastmeta as fm
from fastmeta import functional as fmF

METRICS = ("sqeuclidean", "euclidean", "cosine", "dot")


def sorted_distances(x, y, k, metric):
    order = "sqeuclidean" if metric == "euclidean" else metric
    indices = fmF.pairwise_distance(x, y, order).sort(dim=2, stable=True).indices[..., :k]
    return fmF.pairwise_distance(x, y, metric).gather(2, indices), indices


@given(
    t=st.integers(1, 3),
    q=st.integers(1, 70),
    n=st.integers(1, 200),
    d=st.integers(1, 70),
    k=st.integers(1, 12),
    metric=st.sampled_from(METRICS[:2]),
    dtype=st.sampled_from([torch.float32, DOUBLE]),
    offset=st.sampled_from([0.0, 1e4]),
    seed=st.integers(0, 1000),
)
def test_equal_to_the_last_bit(t, q, n, d, k, metric, dtype, offset, seed):
    torch.manual_seed(seed)
    x, y = torch.randn(t, q, d, dtype=dtype) + offset, torch.randn(t, n, d, dtype=dtype) + offset
    k = min(k, n)
    values, indices = fmF.nearest_prototype(x, y, k, metric)
    right, at = sorted_distances(x, y, k, metric)
    assert torch.equal(indices, at)
    # PyTorch's root depends on where in memory a number is.
    assert torch.equal(values, right) if metric == "sqeuclidean" else torch.allclose(values, right)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shared", [False, True])
def test_a_large_bank(metric, shared):
    x, y = torch.randn(2, 70, 33), torch.randn(2, 20_000, 33)
    y = y[0] if shared else y
    values, indices = fmF.nearest_prototype(x, y, 10, metric)
    right, at = sorted_distances(x, y, 10, metric)
    torch.testing.assert_close(values, right)
    assert (indices == at).double().mean() > 0.999  # "cosine" and "dot" here are torch's
    if metric in METRICS[:2]:
        assert torch.equal(indices, at)


@pytest.mark.parametrize("k", [1, 12])
@pytest.mark.parametrize("case", ["ties", "norms that differ", "far off first", "nan"])
def test_parts_of_a_bank_that_know_of_one_another(case, k):
    x, y = torch.randn(1, 70, 9), torch.randn(1, 40_000, 9)
    if case == "ties":  # in every part, and most queries are at a tie
        x, y = x.round(), y.round()
    elif case == "norms that differ":
        y *= torch.logspace(-8, 8, y.shape[1])[torch.randperm(y.shape[1])].unsqueeze(1)
    elif case == "far off first":
        y[:, :24] *= 1e6
    else:
        y[:, torch.randperm(y.shape[1])[:30_000]] = math.nan
    values, indices = fmF.nearest_prototype(x, y, k)
    right, at = sorted_distances(x, y, k, "sqeuclidean")
    assert torch.equal(indices, at)
    torch.testing.assert_close(values, right, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("metric", METRICS)
def test_of_equals_the_lowest_index_comes_first(metric):
    y = torch.randint(-1, 2, (1, 9000, 3)).float() + 0.5  # 27 different ones
    x = torch.randn(1, 50, 3)
    _, indices = fmF.nearest_prototype(x, y, 700, metric)
    with fm.use_backend("reference"):
        _, right = fmF.nearest_prototype(x, y, 700, metric)
    if metric in METRICS[:2]:
        assert torch.equal(indices, right)
    same = (y[0, indices[..., 1:]] == y[0, indices[..., :-1]]).all(-1)
    assert (indices[..., 1:] > indices[..., :-1])[same].all()


@pytest.mark.parametrize("metric", METRICS)
def test_nan_is_farthest_and_infinity_is_far(metric):
    x, y = torch.randn(1, 3, 4), torch.randn(1, 120, 4)
    y[0, 5], y[0, 7] = math.nan, math.inf
    x[0, 2, 1] = math.nan
    values, indices = fmF.nearest_prototype(x, y, 120, metric)
    assert values[0, :2, -1].isnan().all()
    assert (indices[0, :2].sort().values == torch.arange(120)).all()
    assert values[0, 2].isnan().all() and torch.equal(indices[0, 2], torch.arange(120))


def test_threads_change_no_bit():
    threads = torch.get_num_threads()
    x, y, found = torch.randn(1, 100, 20), torch.randn(30_000, 20), []
    try:
        for n in (1, 2, 7):
            torch.set_num_threads(n)
            found.append(fmF.nearest_prototype(x, y, 5))
    finally:
        torch.set_num_threads(threads)
    for values, indices in found[1:]:
        assert torch.equal(values, found[0][0]) and torch.equal(indices, found[0][1])


@pytest.mark.parametrize("metric", METRICS)
def test_values_are_differentiable(metric):
    x, y = (torch.randn(2, n, 3, dtype=DOUBLE, requires_grad=True) for n in (3, 6))

    def call(x, y):
        return fmF.nearest_prototype(x, y, 2, metric)[0]

    assert gradcheck(call, (x, y)) and gradgradcheck(call, (x, y))


def test_under_vmap():
    x, y = torch.randn(4, 2, 5, 3), torch.randn(2, 30, 3)
    values, indices = torch.func.vmap(lambda x: fmF.nearest_prototype(x, y, 3))(x)
    for b in range(4):
        right, at = fmF.nearest_prototype(x[b], y, 3)
        torch.testing.assert_close(values[b], right)
        assert torch.equal(indices[b], at)


@pytest.mark.parametrize(
    "k, error", [(0, "k must be"), (7, "k is 7, and there are 6"), (1.5, "k must be")]
)
def test_bad_input(k, error):
    with pytest.raises(ValueError, match=error):
        fmF.nearest_prototype(torch.zeros(1, 2, 3), torch.zeros(1, 6, 3), k)
