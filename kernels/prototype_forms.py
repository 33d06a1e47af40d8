"""Forms of the prototype kernels that are compiled ahead of time."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.kernels.aot import AotCase, cases_of
from fastmeta.kernels.class_gradient import class_gradient
from fastmeta.kernels.class_means import class_means
from fastmeta.kernels.labels_fit import misfits
from fastmeta.kernels.nearest import nearest
from fastmeta.kernels.nearest_bounds import nearest_bounds
from fastmeta.kernels.nearest_rerank import nearest_by_bounds
from fastmeta.kernels.pair_weights import pair_weights
from fastmeta.kernels.project import project
from fastmeta.kernels.prototype import PrototypeLoss, prototype_loss
from fastmeta.kernels.prototype_configs import bound_block
from fastmeta.kernels.prototype_gradient import prototype_gradient
from fastmeta.kernels.pull import pull

__all__ = ["aot"]

_SOME = (90,)  # of forms that differ little from one that is compiled for every card


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def aot() -> list[AotCase]:
    """The loss and its gradient by metric and size, the sums over pairs, the nearest."""
    cases = [
        *_loss("sqeuclidean", 5, 1600),
        *_loss("cosine", 20, 64),
        *_loss("euclidean", 20, 1600, targets=_SOME)[1:],
        *_loss("sqeuclidean", 5, 64, torch.bfloat16, targets=_SOME),
        *_loss("sqeuclidean", 5, 64, torch.float64, targets=_SOME)[1:],
        *_weights("sqeuclidean", weighted=False),
        *_weights("euclidean", weighted=True, targets=_SOME),
    ]
    x, y, h = empty(32, 75, 64), empty(32, 5, 64), empty(32, 75, 5)
    cases += cases_of("pull", lambda: pull(h, x, y))
    cases += cases_of("project", lambda: project(x, x, y))
    bank = empty(1, 100_000, 64)
    for k in (1, 10):
        cases += cases_of(
            f"nearest {k}",
            lambda: nearest(empty(1, 1024, 64), bank, k, "sqeuclidean"),  # noqa: B023
        )
    cases += _by_bounds()
    labels = empty(32, 75, dtype=torch.int64)
    cases += cases_of(
        "labels fit",
        lambda: misfits(labels, empty(32, 75), 5, empty(32, 5), labels, empty(32, 75)),
    )
    return cases


def _by_bounds() -> list[AotCase]:
    """The nearest by bounds on tensor cores: each metric, the most that are kept, few queries."""
    cases = []
    for queries, prototypes, width, k, metric, targets in [
        (1024, 1_000_000, 64, 10, "sqeuclidean", (80, 90, 100)),
        (1024, 1_000_000, 512, 16, "unit", _SOME),
        (64, 1_000_000, 1600, 1, "dot", _SOME),
        (65536, 2048, 64, 1, "sqeuclidean", _SOME),  # in one part
    ]:
        x, bank, centre = empty(1, queries, width), empty(1, prototypes, width), empty(1, width)
        block = bound_block(1, queries, prototypes, width, k)
        assert block is not None
        name = f"nearest {k} by bounds, {metric}, {queries} x {width}"
        cases += cases_of(
            f"{name}: bounds",
            lambda: nearest_bounds(x, bank, centre, metric, block),  # noqa: B023
            tensor_cores=True, warpgroups=True, targets=targets,
        )  # fmt: skip
        cases += cases_of(
            name, lambda: nearest_by_bounds(x, bank, k, metric, block), targets=targets  # noqa: B023
        )[1:3]  # fmt: skip
    return cases


def _loss(
    metric: str, n_way: int, width: int, dtype: torch.dtype = torch.float32,
    targets: tuple[int, ...] = (80, 90, 100),
) -> list[AotCase]:  # fmt: skip
    """Class means, loss, mean over queries; the two gradients."""
    T, Q = 32, 15 * n_way
    sums = torch.float64 if dtype is torch.float64 else torch.float32
    x, labels = empty(T, Q, width, dtype=dtype), empty(T, Q, dtype=torch.int64)
    tau, like, of_query = (empty(*shape, dtype=sums) for shape in ((T,), (1,), (T, Q)))
    means, of_class = empty(T, n_way, width, dtype=sums), empty(T, n_way, dtype=sums)
    weight = of_query if metric == "cosine" else None
    found = PrototypeLoss(
        tau, tau, empty(T, Q, n_way, dtype=sums), of_query, of_query, tau, of_query, of_class
    )

    def launch() -> None:
        class_means(x, labels, weight, n_way, like)
        prototype_loss(x, means, labels, weight, tau, metric, like)
        prototype_gradient(tau, x, means, labels, weight, tau, metric, found)
        class_gradient(means, labels, weight, of_class, dtype)

    kind = str(dtype).removeprefix("torch.")
    return cases_of(f"prototypes {metric} {n_way} x {width} {kind}", launch, targets=targets)


def _weights(
    metric: str, weighted: bool, targets: tuple[int, ...] = (80, 90, 100)
) -> list[AotCase]:
    """Weights of pairs in the gradient, for more classes than a program of it holds."""
    of_task, of_query, labels = empty(1), empty(1, 300), empty(1, 300, dtype=torch.int64)
    found = PrototypeLoss(
        of_task, of_task, empty(1, 300, 60), of_query, of_query, of_task, None, None
    )
    weight = of_query if weighted else None
    return cases_of(
        f"prototypes {metric} 60: weights of pairs",
        lambda: pair_weights(of_task, labels, weight, of_task, metric, found),
        targets=targets,
    )
