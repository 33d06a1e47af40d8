"""What torch.compile does where it meets a function of ours: take it as a whole, or leave it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.autograd.forward_ad as forward_ad

__all__ = ["Function", "apply_to_plain", "runs_eagerly", "traced_whole"]

_Callable = TypeVar("_Callable", bound=Callable[..., Any])

_compiling = torch.compiler.is_dynamo_compiling
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
_transforms_are_active = torch._C._are_functorch_transforms_active
_unwrap_if_dead = torch._C._functorch.unwrap_if_dead

_whole: list[Callable[..., Any]] = []
_eager: dict[Callable[..., Any], Callable[..., Any]] = {}

_REASON = (
    "fastmeta takes the gradients of an inner loop itself and runs outside of compiled graphs; "
    "torch.compile without fullgraph=True compiles what is around it"
)


def traced_whole(function: _Callable) -> _Callable:
    """Let torch.compile put a call of `function` into its graph without looking into it.

    When the graph is made into code the function runs on tensors without values, and its kernels
    are operators: see `fastmeta.backends.operation`.
    """
    _whole.append(function)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if _compiling():
            _tell_dynamo()
        return function(*args, **kwargs)

    return run  # type: ignore[return-value]


def runs_eagerly(function: _Callable) -> _Callable:
    """Let torch.compile call `function` as it is: traced, native calls would read no real data."""
    _eager[function] = function

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if _compiling():
            _tell_dynamo()
            return _eager[function](*args, **kwargs)
        return function(*args, **kwargs)

    return run  # type: ignore[return-value]


class Function(torch.autograd.Function):
    """An autograd.Function whose backward is never compiled, and says what it cannot take.

    Where a compiled step calls ``loss.backward()``, torch.compile looks into the backward of what
    ran outside of its graphs too. What it compiled there could not be differentiated once more, and
    meta-gradients came out wrong without a word.

    What it returns may be changed in place, unless it is a view of an argument.

    Attributes:
        takes_no_ctx: whether its `forward` is a function of tensors, beside a `setup_context`.
    """

    takes_no_ctx: bool

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.takes_no_ctx = "setup_context" in vars(cls)
        cls.forward = staticmethod(_owning(cls.forward))  # type: ignore[method-assign]
        cls.backward = staticmethod(_as_backward(cls.backward))  # type: ignore[method-assign]

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """`apply` without binding a signature, and without a graph node where nothing
        differentiates: both cost more than most kernels.
        """
        if _transforms_are_active():
            return super().apply(*args)
        plain = [_unwrap_if_dead(a) if isinstance(a, torch.Tensor) else a for a in args]
        if cls.takes_no_ctx and not torch.is_grad_enabled() and forward_ad._current_level < 0:
            return cls.forward(*plain)
        return apply_to_plain(cls, *plain)


def apply_to_plain(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply` without its look at each argument: none is a wrapper of torch.func, and
    none of its transforms is active.
    """
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


def _owning(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward with results that are no views: autograd lets nobody write into one from here."""

    @functools.wraps(forward)
    def run(*args: Any) -> Any:
        results = forward(*args)
        if isinstance(results, tuple):
            return tuple([_own(y, args) for y in results])
        return _own(results, args)

    return run


def _own(y: Any, args: tuple[Any, ...]) -> Any:
    if not isinstance(y, torch.Tensor) or not y._is_view() or any(_shares(y, a) for a in args):
        return y
    return torch.ops.aten._unsafe_view(y, y.shape)


def _shares(y: torch.Tensor, x: Any) -> bool:
    return isinstance(x, torch.Tensor) and y._base is (x._base if x._is_view() else x)


def _as_backward(function: Callable[..., Any]) -> Callable[..., Any]:
    _eager[function] = function

    @functools.wraps(function)
    def run(ctx: Any, *grads: Any) -> Any:
        if _compiling():
            _tell_dynamo()
            return _eager[function](ctx, *grads)
        try:
            return function(ctx, *grads)
        except RuntimeError as error:
            if not any(isinstance(g, torch.Tensor) and _is_legacy_batched(g) for g in grads):
                raise
            raise RuntimeError(
                "fastmeta.functional takes gradients one at a time, not a batch of them "
                "(is_grads_batched=True); torch.func.vmap over torch.func.vjp does that"
            ) from error

    return run


def _tell_dynamo() -> None:
    """Tell the compiler about all of our functions, once it is there: importing it takes seconds.

    It calls this while it traces, instead of tracing it.
    """
    while _whole:
        torch.compiler.allow_in_graph(_whole.pop())
    for function, told in _eager.items():
        if told is function:
            _eager[function] = torch.compiler.disable(function, reason=_REASON)


_tell_dynamo._dynamo_marked_constant = True  # type: ignore[attr-defined]
