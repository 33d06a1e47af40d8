"""Whether a module's traced forward computes what the module does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from fastmeta.functional.forward import call_module, module_lock
from fastmeta.inner_loop.probe import hidden_from_saved_tensor_hooks
from fastmeta.inner_loop.reading.trace import own_name, trace

__all__ = ["differs", "is_alike", "unlike"]

# Two results are alike up to such a share of the largest number; rounding is far less.
_SHARE = 1e-3
# Runs of a module that tell how far it differs from itself.
_REPEATS = 3


def differs(module: nn.Module, parameters: Mapping[str, Tensor], x: Tensor) -> str | None:
    """A sentence if of x [S, ...] a module's traced forward, or its gradient, is another.

    A forward may ask whether it has got a tensor, which what it is traced with is not, or hand on
    what it gets with another gradient. How far the module differs from itself counts for nothing:
    sums on a GPU have other last bits in each run, and the gradient of a bias before a batch norm
    is 0 but for those.
    """
    with module_lock:
        root = nn.Sequential(module)
        traced = fx.GraphModule(root, trace(root))
        names = [name for name, _ in traced.named_parameters()]

    def read(theta: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return call_module(traced, {name: theta[own_name(name)] for name in names}, x)

    return unlike(module, read, parameters, x)


def unlike(
    module: nn.Module,
    read: Callable[[Mapping[str, Tensor], Tensor], Tensor],
    parameters: Mapping[str, Tensor],
    x: Tensor,
    rounds: bool = False,
) -> str | None:
    """`differs` of a function that a module's forward was read as: (parameters, x) -> result.

    rounds: it may have other last bits.
    """
    theta = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    with module_lock, hidden_from_saved_tensor_hooks(), torch.enable_grad():
        with _Asked() as asked:
            y = call_module(module, theta, x.clone())
        if asked.name is not None:
            return f"its forward asks for numbers ({asked.name}), which may be others later"
        expected = _with_gradients(y, theta)
        found = _with_gradients(read(theta, x.clone()), theta)
        if _alike(expected, found, [0.0] * len(found)):
            return None
        again = [
            _with_gradients(call_module(module, theta, x.clone()), theta) for _ in range(_REPEATS)
        ]
    if _alike(expected, found, _noise(expected, again, rounds)):
        return None
    return (
        "its forward computes something else when torch.fx traces it: does it ask for types, or "
        "call an autograd.Function?"
    )


class _Asked(TorchFunctionMode):
    """Notes what turns numbers of a tensor into Python's: of a proxy a forward may not ask for it.

    Attributes:
        name: of the latest such function, or None.
    """

    name: str | None = None

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in _OF_NUMBERS:
            self.name = name
        return function(*args, **(kwargs or {}))


_OF_NUMBERS = (
    "__array__", "__bool__", "__complex__", "__contains__", "__dlpack__", "__float__", "__index__",
    "__int__", "allclose", "argwhere", "data_ptr", "equal", "is_nonzero", "item", "nonzero",
    "numpy", "tolist", "unique",
)  # fmt: skip


def _with_gradients(y: Tensor, theta: Mapping[str, Tensor]) -> list[Tensor]:
    if not y.requires_grad:
        return [y, *map(torch.zeros_like, theta.values())]
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
    gradients = torch.autograd.grad(
        y, [*theta.values()], weights, allow_unused=True, materialize_grads=True
    )
    return [y.detach(), *gradients]


def _alike(expected: list[Tensor], found: list[Tensor], noise: list[float]) -> bool:
    return all(is_alike(x, y, off=off) for x, y, off in zip(expected, found, noise, strict=True))


def is_alike(
    expected: Tensor, found: Tensor, share: float = _SHARE, off: float = 0.0
) -> bool:
    """Whether two results are the same up to what rounding may do."""
    within = share * _largest(expected) + off
    return expected.shape == found.shape and torch.allclose(
        expected, found, rtol=share, atol=within, equal_nan=True
    )


def _noise(expected: list[Tensor], again: list[list[Tensor]], rounds: bool) -> list[float]:
    """How far the output and each gradient may be off, if runs of one module differ; else 0.

    The few repeats may miss what a tensor of few elements does. So if anything differs, what is
    rounding beside the largest gradient is noise too; none is taken for more than its share.
    """
    if not expected[0].is_floating_point():
        return [0.0] * len(expected)
    own = [max(_largest(x - y) for y in ys) for x, *ys in zip(expected, *again, strict=True)]
    if not any(own) and not rounds:
        return own
    sizes = [_largest(x) for x in expected]
    beside = [sizes[0], *[max(sizes[1:], default=0.0)] * len(sizes[1:])]
    eps = torch.finfo(expected[0].dtype).eps
    most = max(_SHARE, 4 * eps)
    return [
        min(max(16 * off, 64 * eps * size), most * size)
        for off, size in zip(own, beside, strict=True)
    ]


def _largest(x: Tensor) -> float:
    return float(x.detach().abs().nan_to_num(0, 0, 0).max()) if x.numel() else 0.0
