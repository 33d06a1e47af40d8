"""What the resident engine calls, alike on every device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Kernels", "Step"]


class Step(NamedTuple):
    """Forward and backward in one call.

    Attributes:
        run: (call, addresses, predictions, loss, gradients of parameters, of rates, factor) ->
            nothing; they go to tensors, and are of the sum of the tasks' losses, times the factor.
        common_value: (tensor [n]) -> the number that all n are, or None.
        scale: (tensors or None, factor) -> nothing; in place.
    """

    run: Callable[..., None]
    common_value: Callable[[Tensor], float | None]
    scale: Callable[[Sequence[Tensor | None], float], None]


class Kernels(NamedTuple):
    """The native functions of one dtype. They take addresses; `like` is a tensor on their device.

    Attributes:
        chain: (layers, loss, number of parameters) -> the network.
        loss: (predictions, targets, whether samples are added up, steps) -> a loss of one's own;
            (classes, places, ignored label, whether the classes come last, their weights) -> the
            cross-entropy at places.
        call: (chain, ...) -> an inner loop on tensors of known shapes.
        forward: (call, like, addresses, keep, predictions, loss, fast) -> what backward needs.
        backward: (call, like, addresses, record, gradients ..., outputs ...) -> nothing.
        step: both at once, where the kernels can.
        unfit: (call, device) -> why the device cannot run it, or "".
        empty: (shape, like) -> a contiguous tensor to write to.
    """

    chain: Callable[..., Any]
    loss: Callable[..., Any]
    call: Callable[..., Any]
    forward: Callable[..., Any]
    backward: Callable[..., None]
    step: Step | None
    unfit: Callable[[Any, Any], str]
    empty: Callable[[tuple[int, ...], Tensor], Tensor]
