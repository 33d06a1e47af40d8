"""Single operations: convolution with weights of their own for each task, and its two transposes.

In float32, 3x3 with padding 1, beside PyTorch's own. Everyone gets the data in the layout that
their own results have, as in the middle of a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from fastmeta.bench.gate import relative_error
from fastmeta.functional import conv2d, conv2d_input_gradient, conv2d_weight_gradient

FAMILY = "conv2d"


@dataclass(frozen=True)
class Operation:
    """``product``: ``"forward"``, or of its gradients ``"input"`` or ``"weight"``."""

    name: str
    product: str
    tasks: int
    samples: int
    inputs: int
    outputs: int
    size: int  # height and width

    @property
    def useful_flops(self) -> int:
        return 2 * self.tasks * self.samples * self.size**2 * 9 * self.inputs * self.outputs


POINT = Operation


class Arrays(NamedTuple):
    """x [T, S, I, H, W], weight [T, O, I, 3, 3], grad [T, S, O, H, W]"""

    x: Tensor
    weight: Tensor
    grad: Tensor

    @property
    def data_bytes(self) -> int:
        """Two of them are read, one is written."""
        return sum(each.numel() * each.element_size() for each in self)


Call = Callable[[], Any]


@dataclass(frozen=True)
class Contestant:
    """A way to compute an operation.

    ``build(operation, arrays)`` returns the call, and ``by_task(operation, result)`` what the call
    returned, task by task.
    """

    name: str
    title: str
    build: Callable[[Operation, Arrays], Call]
    by_task: Callable[[Operation, Any], Iterable[Tensor]] = lambda operation, result: result
    compiles: bool = False

    def why_not(self, operation: Operation) -> str | None:
        """Everyone computes every operation."""
        return None

    def error(self, operation: Operation, result: Any, exact: list[Tensor]) -> float:
        """The relative error of the worst task."""
        return relative_error(list(self.by_task(operation, result)), exact)


def make_arrays(operation: Operation, seed: int = 0) -> Arrays:
    """Draw everything from the standard normal distribution, in float32."""
    generator = torch.Generator().manual_seed(seed)
    samples, image = (operation.tasks, operation.samples), (operation.size, operation.size)
    return Arrays(
        torch.randn(*samples, operation.inputs, *image, generator=generator),
        torch.randn(
            operation.tasks, operation.outputs, operation.inputs, 3, 3, generator=generator
        ),
        torch.randn(*samples, operation.outputs, *image, generator=generator),
    )


def exact_result(operation: Operation, arrays: Arrays) -> list[Tensor]:
    """In float64, a task at a time."""
    tasks = zip(*arrays, strict=True)
    return [_convolve(operation, *(each.double() for each in task)) for task in tasks]


def _convolve(
    operation: Operation, x: Tensor, weight: Tensor, grad: Tensor, groups: int = 1
) -> Tensor:
    """PyTorch's, of one task or of all tasks as groups."""
    if operation.product == "forward":
        return F.conv2d(x, weight, padding=1, groups=groups)
    if operation.product == "input":
        return conv2d_input(x.shape, weight, grad, padding=1, groups=groups)
    return conv2d_weight(x, weight.shape, grad, padding=1, groups=groups)


# ---- who computes it ---------------------------------------------------------------------------


def _fastmeta(operation: Operation, arrays: Arrays) -> Call:
    x, grad = (_pixels_first(each) for each in (arrays.x, arrays.grad))
    size, weight = (operation.size, operation.size), arrays.weight
    if operation.product == "forward":
        return lambda: conv2d(x, weight, padding=1)
    if operation.product == "input":
        return lambda: conv2d_input_gradient(grad, weight, size, padding=1)
    return lambda: conv2d_weight_gradient(grad, x, 3, padding=1)


def _pixels_first(images: Tensor) -> Tensor:
    """The same values with the channels last in memory."""
    return images.movedim(2, -1).contiguous().movedim(-1, 2)


def _per_task(memory_format: torch.memory_format) -> Callable[[Operation, Arrays], Call]:
    def build(operation: Operation, arrays: Arrays) -> Call:
        tasks = [
            [each.contiguous(memory_format=memory_format) for each in task]
            for task in zip(*arrays, strict=True)
        ]
        return lambda: [_convolve(operation, *task) for task in tasks]

    return build


def _grouped(operation: Operation, arrays: Arrays) -> Call:
    x, grad = (each.transpose(0, 1).flatten(1, 2) for each in (arrays.x, arrays.grad))
    weight = arrays.weight.flatten(0, 1)
    return lambda: _convolve(operation, x, weight, grad, groups=operation.tasks)


def _of_groups(operation: Operation, result: Tensor) -> Tensor:
    if operation.product == "weight":
        return result.unflatten(0, (operation.tasks, -1))
    return result.unflatten(1, (operation.tasks, -1)).transpose(0, 1)


FASTMETA = Contestant("fastmeta", "fastmeta.functional", _fastmeta)
CONTESTANTS = (
    FASTMETA,
    Contestant("per-task", "F.conv2d task by task", _per_task(torch.contiguous_format)),
    Contestant("per-task-last", "the same, channels last", _per_task(torch.channels_last)),
    Contestant("grouped", "F.conv2d with tasks as groups", _grouped, _of_groups),
)


def contestants(operation: Operation, device: torch.device) -> tuple[Contestant, ...]:
    """The same everywhere."""
    return CONTESTANTS


# ---- what is measured --------------------------------------------------------------------------


def _operation(
    product: str, inputs: int, outputs: int, size: int, samples: int, tasks: int
) -> Operation:
    part = "" if product == "forward" else f"-{product}"
    name = f"{FAMILY}{part}-{inputs}to{outputs}-{size}x{size}-T{tasks}"
    return Operation(name, product, tasks, samples, inputs, outputs, size)


# Conv4-64's first and second layer on Omniglot, Conv4-32's second on miniImageNet. The first
# layer's inputs need no gradient.
OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        _operation(product, *shape, tasks)
        for shape in ((1, 64, 28, 25), (64, 64, 14, 25), (32, 32, 42, 5))
        for tasks in (4, 32)
        for product in ("forward", "input", "weight")
        if (product, shape[0]) != ("input", 1)
    )
}
