"""ProtoNet on images, beside plain PyTorch: its loss and the gradient of a Conv4 encoder, or, in
eval() and without gradients, its loss alone.

In float32. One call embeds the samples of all tasks at once, batch norms keep running statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta.algorithms.protonet import ProtoNet
from fastmeta.bench.gate import COARSE_GRADIENT, relative_error
from fastmeta.tasks import TaskBatch

FAMILY = "encoders"

Call = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Episodes:
    """``shots`` and ``queries`` a class; ``trains``: with gradients."""

    name: str
    tasks: int
    classes: int
    shots: int
    queries: int
    filters: int
    channels: int
    size: int
    trains: bool

    @property
    def useful_flops(self) -> int:
        """Products: a forward, and two gradients but for that of the images."""
        pixels = [(self.size >> halved) ** 2 for halved in range(4)]
        first = 9 * self.channels * self.filters * pixels[0]
        others = 9 * self.filters**2 * sum(pixels[1:])
        each = 2 * first + 3 * others if self.trains else first + others
        return 2 * self.samples * each

    @property
    def samples(self) -> int:
        return self.tasks * self.classes * (self.shots + self.queries)

    def encoder(self) -> nn.Module:
        """Conv4, with norms that keep running statistics."""
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for inputs in (self.channels, *[self.filters] * 3):
            convolution = nn.Conv2d(inputs, self.filters, 3, padding=1)
            norm = nn.BatchNorm2d(self.filters)
            layers += [convolution, norm, nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten()).train(self.trains)


POINT = Episodes


class Arrays(NamedTuple):
    """Images [T, S, C, H, W] and [T, Q, C, H, W] with their labels."""

    support: Tensor
    support_y: Tensor
    query: Tensor
    query_y: Tensor

    @property
    def data_bytes(self) -> int:
        return 4 * (self.support.numel() + self.query.numel())


@dataclass(frozen=True)
class Contestant:
    """A way to compute it: ``build`` returns the call."""

    name: str
    title: str
    build: Callable[[Episodes, Arrays], Call]
    compiles: bool = False

    def why_not(self, point: Episodes) -> str | None:
        """Everyone computes all of them."""
        return None

    def error(self, point: Episodes, result: list[Tensor], exact: list[Tensor]) -> float:
        """Of the loss; or of the gradient where that is far off.

        On images float32 decides a few times otherwise than float64 at ReLU and max-pool, and each
        can move the gradient by percents: see `gate.judge`.
        """
        if not point.trains:
            return relative_error(result[0], exact[0])
        gradient, right = result[1].double(), exact[1]
        off = float((gradient - right).norm() / right.norm())
        loss = relative_error(result[0], exact[0])
        return max(loss, off) if off > COARSE_GRADIENT else loss


def make_arrays(point: Episodes, seed: int = 0) -> Arrays:
    """Draw images from the standard normal distribution."""
    generator = torch.Generator().manual_seed(seed)

    def images(each: int) -> Tensor:
        image = (point.channels, point.size, point.size)
        return torch.randn(point.tasks, point.classes * each, *image, generator=generator)

    def labels(each: int) -> Tensor:
        return torch.arange(point.classes).repeat_interleave(each).repeat(point.tasks, 1)

    return Arrays(
        images(point.shots), labels(point.shots), images(point.queries), labels(point.queries)
    )


def exact_result(point: Episodes, arrays: Arrays) -> list[Tensor]:
    """In float64, by plain PyTorch."""
    exact = Arrays(*(x.double() if x.is_floating_point() else x for x in arrays))
    return _plain(point, exact)()


def _result(loss: Tensor, encoder: nn.Module, trains: bool) -> list[Tensor]:
    if not trains:
        return [loss]
    gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
    return [loss, torch.cat([gradient.flatten() for gradient in gradients])]


def _fastmeta(point: Episodes, arrays: Arrays) -> Call:
    meta = ProtoNet(point.encoder()).to(arrays.support.device).train(point.trains)
    tasks = TaskBatch(arrays.support, arrays.support_y, arrays.query, arrays.query_y)

    def step() -> list[Tensor]:
        meta.zero_grad()
        if point.trains:
            loss = meta.forward_backward(tasks).loss.mean()
        else:
            with torch.no_grad():
                loss = meta(tasks).loss.mean()
        return _result(loss, meta, point.trains)

    return step


def _plain(
    point: Episodes, arrays: Arrays,
    memory_format: torch.memory_format = torch.contiguous_format, compiled: bool = False,
) -> Call:  # fmt: skip
    like = arrays.support
    encoder: Any = point.encoder().to(like.device, like.dtype)
    encoder = encoder.to(memory_format=memory_format)
    called = torch.compile(encoder, dynamic=False) if compiled else encoder
    samples = torch.cat([arrays.support.flatten(0, 1), arrays.query.flatten(0, 1)])
    samples = samples.contiguous(memory_format=memory_format)
    share = F.one_hot(arrays.support_y, point.classes).mT.to(like.dtype) / point.shots
    queries = arrays.query_y.flatten()

    def loss_of() -> Tensor:
        features = called(samples)
        support, query = features.split([arrays.support_y.numel(), queries.numel()])
        means = share @ support.unflatten(0, (point.tasks, -1))
        scores = -torch.cdist(query.unflatten(0, (point.tasks, -1)), means).square()
        return F.cross_entropy(scores.flatten(0, 1), queries)

    def step() -> list[Tensor]:
        encoder.zero_grad()
        if point.trains:
            loss = loss_of()
            loss.backward()
        else:
            with torch.no_grad():
                loss = loss_of()
        return _result(loss.detach(), encoder, point.trains)

    return step


FASTMETA = Contestant("fastmeta", "fastmeta.ProtoNet", _fastmeta)
CONTESTANTS = (
    FASTMETA,
    Contestant("pytorch", "PyTorch", _plain),
    Contestant(
        "channels-last", "PyTorch, channels last",
        lambda point, arrays: _plain(point, arrays, torch.channels_last),
    ),
    Contestant(
        "compiled", "torch.compile",
        lambda point, arrays: _plain(point, arrays, compiled=True), compiles=True,
    ),
)  # fmt: skip


def contestants(point: Episodes, device: torch.device) -> tuple[Contestant, ...]:
    """The same everywhere."""
    return CONTESTANTS


def _episodes(
    tasks: int, classes: int, shots: int, queries: int, filters: int, image: tuple[int, int],
    trains: bool,
) -> Episodes:  # fmt: skip
    kind = "train" if trains else "eval"
    name = f"protonet-{kind}-{image[1]}x{image[1]}-C{filters}-T{tasks}-N{classes}-S{shots}"
    return Episodes(name, tasks, classes, shots, queries, filters, *image, trains)


# Omniglot as the paper trains on it (60-way, 1 shot, 5 queries) and as it is judged, and
# miniImageNet (5-way, 5 shots, 15 queries).
OPERATIONS: dict[str, Episodes] = {
    point.name: point
    for trains in (True, False)
    for point in (
        _episodes(1, 60, 1, 5, 64, (1, 28), trains),
        _episodes(8, 5, 1, 15, 64, (1, 28), trains),
        _episodes(1, 5, 5, 15, 64, (3, 84), trains),
    )
}
