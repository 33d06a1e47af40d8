"""What the resident engine calls, alike on every device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Kernels"]


class Kernels(NamedTuple):
    """The native functions of one dtype. They take addresses; `like` is a tensor on their device.

    Attributes:
        chain: (layers, loss, number of parameters) -> the network.
        call: (chain, ...) -> an inner loop on tensors of known shapes.
        forward: (call, like, addresses, keep, predictions, loss, fast) -> what backward needs.
        backward: (call, like, addresses, record, gradients ..., outputs ...) -> nothing.
        unfit: (call, device) -> why the device cannot run it, or "".
    """

    chain: Callable[..., Any]
    call: Callable[..., Any]
    forward: Callable[..., Any]
    backward: Callable[..., None]
    unfit: Callable[[Any, Any], str]
