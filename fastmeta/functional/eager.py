"""Functions that torch.compile must not look into."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["runs_eagerly"]

Function = TypeVar("Function", bound=Callable[..., Any])


def runs_eagerly(function: Function) -> Function:
    """Let torch.compile call `function` as it is: traced, native calls would read no real data."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return run  # type: ignore[return-value]
