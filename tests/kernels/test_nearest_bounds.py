"""The nearest of a bank by bounds on tensor cores: to the bit what the exact search finds."""

import pytest
import torch
import torch.nn.functional as F

import fastmeta as fm
from fastmeta import functional as fmF
from fastmeta.backends import triton_prototypes as raw
from fastmeta.kernels import nearest_rerank, prototype_configs
from fastmeta.kernels.configs import power_of_2
from fastmeta.kernels.distance_tile import METRICS
from fastmeta.kernels.nearest import nearest
from fastmeta.kernels.nearest_bounds import nearest_bounds
from fastmeta.kernels.nearest_rerank import centre_of, nearest_by_bounds
from fastmeta.kernels.prototype_configs import BoundBlock, bound_block

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAN, INF = float("nan"), float("inf")


def block(k, part=32):
    kept = 2 * max(2, power_of_2(k))
    return BoundBlock(Q=16, N=32, D=16, part=part, kept=kept, num_warps=4)


def random(N, D, Q=4, T=1):
    torch.manual_seed(0)
    return torch.randn(T, Q, D, device=DEVICE), torch.randn(T, N, D, device=DEVICE)


def spread(N, D):
    """Of all sizes that float32 has, so that squares overflow and underflow."""
    x, y = random(N, D)
    sizes = 10 ** torch.linspace(-44, 38, N, device=DEVICE)
    return x, y * sizes[:, None]


def sorted_by_distance(N, D):
    """The nearest are all in the first part."""
    x, y = random(N, D)
    return x, y.gather(1, (y - x[:, :1]).square().sum(2).argsort()[..., None].expand_as(y))


def in_a_cluster(N, D):
    """Many prototypes of one part are nearer to each other than the bounds are exact."""
    x, y = random(N, D)
    y[:, 32:64] = 5 + 1e-3 * y[:, 32:64]
    return 5 + 1e-3 * x, y


def near_each_other(N, D):
    x, y = random(N, D)
    return x + 1e4, y * 1e-3 + 1e4


def with_rows_of(*values):
    def make(N, D):
        x, y = random(N, D)
        for i, value in enumerate(values):
            y[:, i + 3 :: 11] = value
        x[0, 1, 2] = values[0]
        return x, y

    return make


BANKS = {
    "random": lambda: random(100, 20),
    "of several tasks": lambda: random(40, 7, Q=3, T=2),
    "sorted": lambda: sorted_by_distance(100, 9),
    "whole numbers": lambda: tuple(z.round() for z in random(100, 3)),
    "all the same": lambda: (random(4, 6)[0], random(1, 6)[1].expand(1, 100, 6)),
    "a few, many times": lambda: (random(4, 6)[0], random(9, 6)[1].repeat(1, 11, 1)),
    "far off": lambda: near_each_other(100, 8),
    "of all sizes": lambda: spread(100, 6),
    "in a cluster": lambda: in_a_cluster(100, 6),
    "small": lambda: tuple(z * 1e-22 for z in random(100, 6)),
    "without numbers": lambda: with_rows_of(NAN)(100, 6),
    "infinite": lambda: with_rows_of(INF, -INF, 3e38, 2e19)(100, 6),
    "nothing but NaN": lambda: (random(4, 6)[0], torch.full((1, 100, 6), NAN, device=DEVICE)),
    "one prototype": lambda: random(1, 6),
    "wide": lambda: random(100, 150),
}


SHORT = ("random", "all the same", "in a cluster", "infinite")
CASES = [("sqeuclidean", bank) for bank in BANKS] + [
    (metric, bank) for metric in ("dot", "unit") for bank in SHORT
]


@pytest.mark.parametrize("metric, bank", CASES)
def test_is_the_exact_search(bank, metric, poisoned):
    x, y = BANKS[bank]()
    if metric == "unit":
        x, y = F.normalize(x, dim=2), F.normalize(y, dim=2)
    for k in (1, 5, 16) if bank == "random" else (5,):
        k = min(k, y.shape[1])
        values, indices = nearest_by_bounds(x, y, k, metric, block(k))
        right, order = nearest(x, y, k, metric)
        assert torch.equal(indices, order)
        assert torch.equal(values.nan_to_num(-1.0), right.nan_to_num(-1.0))


@pytest.mark.parametrize("N", [10, 11, 64, 65])
def test_as_many_as_there_are(N):
    x, y = random(N, 4)
    k = min(N, 16)
    ours, right = (f(x, y, k, "sqeuclidean", *a) for f, a in
                   ((nearest_by_bounds, (block(k),)), (nearest, ())))  # fmt: skip
    assert torch.equal(ours[1], right[1]) and torch.equal(ours[0], right[0])


def test_any_strides():
    x, y = random(40, 7, Q=17, T=2)
    ours = nearest_by_bounds(x.mT.contiguous().mT, y[:1].expand(2, -1, -1), 3, "dot", block(3))
    right = nearest(x, y[:1].repeat(2, 1, 1), 3, "dot")
    assert torch.equal(ours[1], right[1]) and torch.equal(ours[0], right[0])


def all_bounds(x, y, metric):
    """[Q, N]: every bound, in the order of the prototypes."""
    N = y.shape[1]
    kept = power_of_2(max(N, 32))
    own = BoundBlock(16, 32, 16, kept, kept, 4)
    keys = nearest_bounds(x, y, centre_of(y), metric, own)[:, 0].sort()[0][:, :N]
    at = keys & 0xFFFFFFFF
    assert torch.equal(at.sort()[0], torch.arange(N, device=DEVICE).expand(at.shape))
    ordered = (keys >> 32).int()
    values = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)
    return values.gather(1, at.argsort())


def exact(x, y, metric):
    x, y = x[0].double()[:, None], y[0].double()
    products = (x * y).sum(2)
    right = {"sqeuclidean": (x - y).square().sum(2), "dot": -products, "unit": 1 - products}
    return right[metric]


# Halfway to the next number of TF32, where rounding takes or adds the most.
WORST = [1 + 2**-11 - 2**-23, 1 + 2**-11, 1 + 3 * 2**-11 - 2**-22]


@pytest.mark.parametrize("sizes", [(1, 1), (2.0**-83, 2.0**60)])  # whose squares underflow
@pytest.mark.parametrize("worst", WORST)
@pytest.mark.parametrize("metric", ["sqeuclidean", "dot", "unit"])
def test_no_bound_is_above_its_distance(metric, worst, sizes):
    D = 33
    x = torch.full((1, 2, D), worst, device=DEVICE)
    y = torch.linspace(-1, 1, 32, device=DEVICE)[:, None] * x[:, :1]
    y = torch.cat([y, -y], 1)  # whose centre is 0
    x, y = x * sizes[0], y * sizes[1]
    bounds = all_bounds(x, y, metric)
    assert (bounds <= exact(x, y, metric)).all()


def test_the_bound_is_no_wider_than_it_must_be():
    """At the worst input the bound of a distance of 0 is hardly below 0."""
    x = torch.full((1, 1, 32), WORST[0], device=DEVICE)
    y = torch.cat([x, -x], 1)
    bound = all_bounds(x, y, "sqeuclidean")[0, 0]
    square = x.square().sum()
    assert -6 * (32 + 32) * 2**-21 * square <= bound <= 0


def marks_of(monkeypatch, x, y, k):
    seen = []
    monkeypatch.setattr(
        nearest_rerank, "nearest_of_parts",
        lambda *args: [seen.append(args[4].clone()), nearest_rerank_parts(*args)],
    )  # fmt: skip
    nearest_by_bounds(x, y, k, "sqeuclidean", block(k))
    return seen[0]


nearest_rerank_parts = nearest_rerank.nearest_of_parts


def test_only_what_must_be_is_looked_through_again(monkeypatch):
    x, y = random(256, 20)
    assert not marks_of(monkeypatch, x, y, 5).any()
    same = y.clone()
    same[:, 64:96] = x[0, 3]  # more of the nearest of one query than a part keeps
    marks = marks_of(monkeypatch, x, same, 5)
    assert marks[3].tolist() == [0, 0, 1, 0, 0, 0, 0, 0] and marks.sum() == 1


def test_what_is_looked_through_again_is_there_once():
    """Of so many parts that the lists of one query are merged in two steps."""
    x, y = in_a_cluster(17 * 32, 6)
    ours = nearest_by_bounds(x[:, :1], y, 8, "sqeuclidean", block(8))
    right = nearest(x[:, :1], y, 8, "sqeuclidean")
    assert torch.equal(ours[1], right[1]) and torch.equal(ours[0], right[0])


def test_the_public_search_takes_it_where_it_pays(monkeypatch):
    monkeypatch.setattr(prototype_configs, "_WORTH_BOUNDS", 1)
    x, y = random(200, 6, Q=64)
    reached = []
    monkeypatch.setattr(
        nearest_rerank, "nearest_by_bounds",
        lambda *args: reached.append(args[3]) or nearest_by_bounds(*args),
    )  # fmt: skip
    for metric in METRICS:
        if metric == "unit":
            continue
        with fm.use_backend("triton"):
            ours = fmF.nearest_prototype(x, y, 3, metric)
        with fm.use_backend("reference"):
            right = fmF.nearest_prototype(x, y, 3, metric)
        torch.testing.assert_close(ours, right)
    assert reached == ["sqeuclidean", "sqeuclidean", "unit", "dot"]
    raw.nearest(x[:, :63], y, 3, "dot")
    raw.nearest(x, y, 17, "dot")
    assert len(reached) == 4


def test_by_count():
    assert bound_block(1, 1024, 1_000_000, 64, 10) is not None
    assert bound_block(32, 32, 1_000_000, 64, 10) is None  # rows of a product would be padding
    assert bound_block(1, 1024, 10_000, 64, 10) is None  # 0.04 ms exactly
    assert bound_block(1, 1024, 1_000_000, 64, 17) is None  # more than a program keeps
