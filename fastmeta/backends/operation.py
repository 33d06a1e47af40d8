"""The raw calls of kernels as operators of PyTorch: ``torch.ops.fastmeta``.

A kernel reads addresses, of which tensors that are being traced have none. So where PyTorch's
dispatcher has a mode (torch.compile, torch.export, fake tensors, whoever counts or records), a
call goes through an operator, which such modes know how to treat; everywhere else it goes to the
kernel directly. Operators have no derivative: the functions above them have, made of operators.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["is_fake", "is_traced", "operation"]

_Raw = TypeVar("_Raw", bound=Callable[..., Any])

_library = torch.library.Library("fastmeta", "DEF")
# Kernels and what their results look like both depend on strides.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

_modes = torch._C._len_torch_dispatch_stack


def is_traced() -> bool:
    """Whether a mode of PyTorch's dispatcher watches, so that kernels must be called as operators.

    There no value of a tensor may be looked at.
    """
    return _modes() > 0


def is_fake(x: Tensor) -> bool:
    """Whether it has shape, dtype and strides, but no memory that a kernel could read."""
    return type(x) is FakeTensor


def operation(schema: str, fake: Callable[..., Any] | None = None) -> Callable[[_Raw], _Raw]:
    """Make a function an operator too, which it becomes where `is_traced` says so.

    Args:
        schema: ``name(Tensor x, int n) -> Tensor``, the arguments in the order of the function's;
            a module among them is a string to the operator, its name.
        fake: what the function returns, of fake tensors; None: the function, whose kernels start
            nothing where `is_fake` says so.
    """
    name = schema[: schema.index("(")]

    def register(raw: _Raw) -> _Raw:
        takes_module = schema.startswith(f"{name}(str kernels")

        def run(*args: Any) -> Any:
            return raw(import_module(args[0]), *args[1:]) if takes_module else raw(*args)

        def refuse(ctx: Any, *grads: Any) -> NoReturn:
            raise RuntimeError(
                f"torch.ops.fastmeta.{name} has no derivative: call fastmeta.functional instead"
            )

        _library.define(schema, tags=_TAGS)
        _library.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastmeta::{name}", fake or run, lib=_library)
        torch.library.register_autograd(f"fastmeta::{name}", refuse, lib=_library)
        operator = getattr(torch.ops.fastmeta, name).default

        @wraps(raw)
        def call(*args: Any) -> Any:
            if not _modes():
                return raw(*args)
            return operator(*[a.__name__ if isinstance(a, ModuleType) else a for a in args])

        return call  # type: ignore[return-value]

    return register
