"""What torch.compile does where it meets a function of ours: take it as a whole, or leave it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["runs_eagerly", "traced_whole"]

Function = TypeVar("Function", bound=Callable[..., Any])

_whole: list[Callable[..., Any]] = []
_eager: dict[Callable[..., Any], Callable[..., Any]] = {}

_REASON = (
    "fastmeta takes the gradients of an inner loop itself and runs outside of compiled graphs; "
    "torch.compile without fullgraph=True compiles what is around it"
)


def traced_whole(function: Function) -> Function:
    """Let torch.compile put a call of `function` into its graph without looking into it.

    When the graph is made into code the function runs on tensors without values, and its kernels
    are operators: see `fastmeta.backends.operation`.
    """
    _whole.append(function)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            _tell_dynamo()
        return function(*args, **kwargs)

    return run  # type: ignore[return-value]


def runs_eagerly(function: Function) -> Function:
    """Let torch.compile call `function` as it is: traced, native calls would read no real data."""
    _eager[function] = function

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            _tell_dynamo()
            return _eager[function](*args, **kwargs)
        return function(*args, **kwargs)

    return run  # type: ignore[return-value]


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
