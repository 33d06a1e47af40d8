"""Prototypes: their loss with its gradients, and the nearest of a bank, beside PyTorch and FAISS.

In float32. The loss is that of prototypical networks (squared Euclidean distance over the number of
features), its gradients are those for support and query features.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.bench.gate import relative_error
from fastmeta.bench.rivals.cuda_graph import capture
from fastmeta.functional import nearest_prototype, prototype_loss

FAMILY = "prototypes"

Call = Callable[[], Any]


@dataclass(frozen=True)
class Prototypes:
    """``shots`` and ``queries`` a class, or with ``k`` so many queries of a bank of ``classes``."""

    name: str
    tasks: int
    classes: int
    shots: int
    queries: int
    features: int
    k: int = 0

    @property
    def useful_flops(self) -> int:
        """Products: one of queries and prototypes, with gradients three."""
        queries, products = (self.queries, 1) if self.k else (self.queries * self.classes, 3)
        return products * 2 * self.tasks * queries * self.classes * self.features


POINT = Prototypes


class Arrays(NamedTuple):
    """Features and labels; of a search, the bank is ``support``."""

    support: Tensor
    support_y: Tensor
    query: Tensor
    query_y: Tensor

    @property
    def data_bytes(self) -> int:
        """Features read once and, of a loss, as much written."""
        features = self.support.numel() + self.query.numel()
        return 4 * features * (2 if self.query_y.numel() else 1)


@dataclass(frozen=True)
class Contestant:
    """A way to compute it: ``build`` returns the call, ``why_not`` a reason or None."""

    name: str
    title: str
    build: Callable[[Prototypes, Arrays], Call]
    why_not: Callable[[Prototypes], str | None] = lambda point: None
    compiles: bool = False
    runs_on_gpus: bool = True

    def error(self, point: Prototypes, result: list[Tensor], exact: list[Tensor]) -> float:
        """The largest of the relative errors of loss and gradients, or that of the distances."""
        return max(relative_error(r, e) for r, e in zip(result, exact, strict=True))


def make_arrays(point: Prototypes, seed: int = 0) -> Arrays:
    """Draw features from the standard normal distribution, labels in random order."""
    generator = torch.Generator().manual_seed(seed)

    def features(samples: int) -> Tensor:
        return torch.randn(point.tasks, samples, point.features, generator=generator)

    if point.k:
        nothing = torch.zeros(0, dtype=torch.int64)
        return Arrays(features(point.classes), nothing, features(point.queries), nothing)

    def labels(each: int) -> Tensor:
        in_order = torch.arange(point.classes).repeat(each)
        order = torch.rand(point.tasks, len(in_order), generator=generator).argsort(1)
        return in_order[order]

    return Arrays(
        features(point.classes * point.shots), labels(point.shots),
        features(point.classes * point.queries), labels(point.queries),
    )  # fmt: skip


def exact_result(point: Prototypes, arrays: Arrays) -> list[Tensor]:
    """In float64: loss and gradients task by task, or the distances to the k nearest."""
    support, support_y, query, query_y = arrays
    if point.k:
        return [_distances_of_nearest(point, query, support)]
    tasks = [
        _step(_direct, point, Arrays(*(each[t : t + 1] for each in arrays)), torch.float64)()
        for t in range(point.tasks)
    ]
    losses, *gradients = ([task[part] for task in tasks] for part in range(3))
    return [
        torch.stack(losses).mean(),
        *(torch.cat(parts) / point.tasks for parts in gradients),
    ]


def _distances_of_nearest(point: Prototypes, query: Tensor, bank: Tensor) -> Tensor:
    found = []
    for rows in query[0].double().split(32):
        squares = rows.square().sum(1)[:, None] + bank[0].double().square().sum(1)
        distances = squares - 2 * rows @ bank[0].double().T
        found.append(distances.topk(point.k, largest=False).values)
    return torch.cat(found)


# ---- the loss ----------------------------------------------------------------------------------

_Logits = Callable[[Tensor, Tensor], Tensor]  # queries, means -> minus squared distances


def _cdist(query: Tensor, means: Tensor) -> Tensor:
    return -torch.cdist(query, means).square()


def _expanded(query: Tensor, means: Tensor) -> Tensor:
    squares = query.square().sum(2, keepdim=True) + means.square().sum(2).unsqueeze(1)
    return torch.baddbmm(squares, query, means.mT, alpha=-2).neg()


def _direct(query: Tensor, means: Tensor) -> Tensor:
    return -(query.unsqueeze(2) - means.unsqueeze(1)).square().sum(3)


def _plain_loss(
    logits: _Logits, support: Tensor, share: Tensor, query: Tensor, query_y: Tensor
) -> Tensor:
    scores = logits(query, share @ support) / query.shape[2]
    return F.cross_entropy(scores.flatten(0, 1), query_y.flatten())


def _step(
    logits: _Logits, point: Prototypes, arrays: Arrays, dtype: torch.dtype = torch.float32,
    compiled: bool = False,
) -> Call:  # fmt: skip
    """Class means are products with a matrix of shares, made beforehand."""
    share = F.one_hot(arrays.support_y, point.classes).mT.to(dtype) / point.shots
    loss_of = torch.compile(_plain_loss, dynamic=False) if compiled else _plain_loss
    return _gradients(
        arrays, dtype, lambda s, q: loss_of(logits, s, share, q, arrays.query_y)
    )


def _gradients(
    arrays: Arrays, dtype: torch.dtype, loss_of: Callable[[Tensor, Tensor], Tensor]
) -> Call:
    # Leaves of its own: a graph cannot be captured while another call's is known to them.
    support, query = (
        each.detach().to(dtype).requires_grad_() for each in (arrays.support, arrays.query)
    )

    def step() -> list[Tensor | None]:
        support.grad = query.grad = None
        loss = loss_of(support, query)
        loss.backward()
        return [loss.detach(), support.grad, query.grad]

    return step


def _fastmeta(point: Prototypes, arrays: Arrays) -> Call:
    if point.k:
        return lambda: [nearest_prototype(arrays.query, arrays.support, point.k)[0][0]]
    return _gradients(
        arrays,
        torch.float32,
        lambda support, query: prototype_loss(
            support, arrays.support_y, query, arrays.query_y, n_way=point.classes,
            temperature=float(point.features), reduction="mean",
        )[0],
    )  # fmt: skip


def _always(point: Prototypes) -> str | None:
    return None


def _fits(point: Prototypes) -> str | None:
    size = 4 * point.tasks * point.classes**2 * point.queries * point.features
    too_much = size > 1 << 29
    return f"{size / 1e9:.1f} GB of differences, several times over" if too_much else None


# ---- the nearest -------------------------------------------------------------------------------


def _cdist_topk(point: Prototypes, arrays: Arrays) -> Call:
    """So many queries at a time that their distances take 400 MB."""
    rows = max(1, 10**8 // point.classes)

    def search() -> list[Tensor]:
        found = [
            torch.cdist(x, arrays.support[0]).topk(point.k, largest=False).values.square()
            for x in arrays.query[0].split(rows)
        ]
        return [torch.cat(found)]

    return search


def _faiss(point: Prototypes, arrays: Arrays) -> Call:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(point.features)
    index.add(arrays.support[0].numpy())
    queries = arrays.query[0].numpy()
    return lambda: [torch.from_numpy(index.search(queries, point.k)[0])]


def _has_faiss(point: Prototypes) -> str | None:
    missing = importlib.util.find_spec("faiss") is None
    return "faiss is not installed (faiss-cpu)" if missing else None


# ---- who takes part, and in what ---------------------------------------------------------------

_FORMS = (("cdist", _cdist, _always), ("expanded", _expanded, _always), ("direct", _direct, _fits))


def _plain(logits: _Logits, compiled: bool) -> Callable[[Prototypes, Arrays], Call]:
    return lambda point, arrays: _step(logits, point, arrays, compiled=compiled)


FASTMETA = Contestant("fastmeta", "fastmeta.functional", _fastmeta)
LOSSES = (
    FASTMETA,
    *(Contestant(name, f"PyTorch, {name}", _plain(form, False), why) for name, form, why in _FORMS),
    *(
        Contestant(f"{name}-compiled", f"torch.compile, {name}", _plain(form, True), why, True)
        for name, form, why in _FORMS
    ),
)
SEARCHES = (
    FASTMETA,
    Contestant("cdist-topk", "torch.cdist(...).topk(k)", _cdist_topk),
    Contestant("faiss", "FAISS IndexFlatL2", _faiss, _has_faiss, runs_on_gpus=False),
)


def contestants(point: Prototypes, device: torch.device) -> tuple[Contestant, ...]:
    """Who computes it. On a GPU, where launches are most of a small call, in a CUDA graph too."""
    everyone = SEARCHES if point.k else LOSSES
    if device.type != "cuda":
        return everyone
    here = tuple(one for one in everyone if one.runs_on_gpus)
    return (*here, *(_in_graph(one) for one in here if not one.compiles))


def _in_graph(one: Contestant) -> Contestant:
    def build(point: Prototypes, arrays: Arrays) -> Call:
        return capture(one.build(point, arrays), arrays.support.device)

    return replace(one, name=f"{one.name}-graph", title=f"{one.title} in a CUDA graph", build=build)


def _loss(tasks: int, classes: int, shots: int, queries: int, features: int) -> Prototypes:
    name = f"prototypes-T{tasks}-N{classes}-S{shots}-Q{queries}-D{features}"
    return Prototypes(name, tasks, classes, shots, queries, features)


OPERATIONS: dict[str, Prototypes] = {
    point.name: point
    for point in (
        _loss(1, 60, 1, 5, 64),
        _loss(32, 5, 1, 15, 64),
        _loss(32, 20, 5, 15, 64),
        _loss(32, 20, 5, 15, 1600),
        _loss(4, 5, 5, 15, 1600),
        *(
            Prototypes(f"nearest-N{classes}-k{k}", 1, classes, 1, 1024, 64, k)
            for classes in (100_000, 1_000_000)
            for k in (1, 10)
        ),
    )
}
