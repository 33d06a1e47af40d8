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
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["FakeTensor", "is_traced", "nobody_sees_values", "operation"]

_Raw = TypeVar("_Raw", bound=Callable[..., Any])

_library = torch.library.Library("fastmeta", "DEF")
# Kernels and what their results look like both depend on strides.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

_modes = torch._C._len_torch_dispatch_stack
_TRACERS = tuple(
    getattr(torch._C._TorchDispatchModeKey, name) for name in ("FAKE", "PROXY", "FUNCTIONAL")
)


def is_traced() -> bool:
    """Whether a mode of PyTorch's dispatcher watches, so that kernels are called as operators."""
    return _modes() > 0


def nobody_sees_values() -> bool:
    """Whether such a mode makes a graph, of tensors whose values nobody may look at."""
    if torch.compiler.is_dynamo_compiling() or not _modes():
        return False
    return any(torch._C._get_dispatch_mode(key) is not None for key in _TRACERS)


def operation(schema: str, fake: Callable[..., Any] | None = None) -> Callable[[_Raw], _Raw]:
    """Make a function an operator too, which it becomes where `is_traced` says so.

    Args:
        schema: ``name(Tensor x, int n) -> Tensor``, the arguments in the order of the function's;
            a module among them is a string to the operator, its name.
        fake: what the function returns, of fake tensors; None: the function, whose kernels start
            nothing on a `FakeTensor`, which has no memory.
    """
    name = schema[: schema.index("(")]

    def register(raw: _Raw) -> _Raw:
        takes_module = schema.startswith(f"{name}(str kernels")

        def run(*args: Any) -> Any:
            return raw(import_module(args[0]), *args[1:]) if takes_module else raw(*args)

        def with_grad_mode(*args: Any) -> Any:
            compute = _WithoutDerivative.apply if torch.is_grad_enabled() else _below_autograd
            found = compute(operator, *args)
            return list(found) if schema.endswith("Tensor[]") else found

        _library.define(schema, tags=_TAGS)
        _library.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastmeta::{name}", fake or run, lib=_library)
        # Not register_autograd, which takes most of the time that importing all of this takes.
        _library.impl(name, with_grad_mode, "Autograd")
        operator = getattr(torch.ops.fastmeta, name).default

        @wraps(raw)
        def call(*args: Any) -> Any:
            if not _modes():
                return raw(*args)
            return operator(*[a.__name__ if isinstance(a, ModuleType) else a for a in args])

        return call  # type: ignore[return-value]

    return register


class _WithoutDerivative(torch.autograd.Function):
    """(operator, *arguments) -> what it returns; its backward is an error."""

    @staticmethod
    def forward(ctx: Any, operator: Any, *args: Any) -> Any:
        ctx.operator = operator
        return _below_autograd(operator, *args)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(
            f"torch.ops.{ctx.operator} has no derivative: call fastmeta.functional instead"
        )


def _below_autograd(operator: Any, *args: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        found = operator(*args)
    return tuple(found) if isinstance(found, list) else found
