"""Which values of Python need no watching, and which can be watched."""

from __future__ import annotations

import logging
import threading
from types import (
    BuiltinFunctionType,
    CodeType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    ModuleType,
    SimpleNamespace,
    WrapperDescriptorType,
)
from typing import Any

import torch
from torch import Tensor

from fastmeta.watching.frozen import ATOMS

__all__ = ["KNOWN", "is_idle", "is_object", "is_of", "own_classes", "tells"]

# Packages of whose objects, constants most often, no number depends.
_CONSTANT = ("abc", "dataclasses", "enum", "typing", "typing_extensions")
# Those of whose functions nothing changes while they are used.
KNOWN = (
    "torch", "fastmeta", "numpy", *_CONSTANT, "_collections", "_functools", "_operator", "builtins",
    "cmath", "collections", "contextlib", "copy", "functools", "itertools", "logging", "math",
    "numbers", "operator", "types", "warnings",
)  # fmt: skip
# What PyTorch can be asked for beside tensors, but for its default dtype, which is watched.
_ASKED = {name for name in dir(torch) if name.startswith(("are_", "get_", "initial_", "is_"))}
_ASKED -= {"get_default_dtype", "is_tensor", *dir(Tensor)}
_STATES = _ASKED | {"backends", "default_generator", "get_worker_info"}
# What gives anything by its name, as a text, or from outside.
_TELLTALES = {
    "__builtins__", "__globals__", "__import__", "__subclasses__", "eval", "exec", "f_back",
    "f_globals", "fromfile", "genfromtxt", "globals", "import_module", "load", "loadtxt", "memmap",
    "open",
}  # fmt: skip

_IDLE = (
    object, *ATOMS, CodeType, GetSetDescriptorType, MemberDescriptorType, MethodDescriptorType,
    WrapperDescriptorType,
)  # fmt: skip
_IDLE_OF = (
    "_collections._tuplegetter", "numpy.dtypes", "numpy.ufunc", "numpy._ArrayFunctionDispatcher",
    "operator.itemgetter", "re.Pattern", "torch._ops", "torch.finfo", "torch.iinfo",
    "types.GenericAlias", "types.UnionType",
)  # fmt: skip
_PYTHON_S = 1 << 9 | 1 << 10  # flags of classes that are made, and may be inherited


def is_of(packages: tuple[str, ...], name: Any) -> bool:
    return str(name or "").partition(".")[0] in packages


def tells(name: str) -> bool:
    """Whether what has such a name tells of what nobody watches."""
    return name in _TELLTALES or name in _STATES


def own_classes(kind: type) -> list[type]:
    """A class and what it inherits, but for what does not change."""
    return [c for c in type.mro(kind) if c is not object and not is_of(KNOWN, c.__module__)]


def is_idle(value: Any) -> bool:
    """Whether nothing in it changes, or nothing that matters."""
    kind = type(value)
    if kind is BuiltinFunctionType:
        return _is_idle_function(value)
    if issubclass(kind, type):
        return False
    name = f"{kind.__module__}.{kind.__name__}"
    is_constant = kind in _IDLE or is_of(_CONSTANT, kind.__module__) or name.startswith(_IDLE_OF)
    return is_constant or issubclass(kind, logging.Logger)


def _is_idle_function(function: Any) -> bool:
    of = function.__self__
    if of is not None and type(of) is not ModuleType and not isinstance(of, type):
        return False
    module = function.__module__ if of is None else getattr(of, "__name__", None)
    if isinstance(of, type):
        module = of.__module__
    return is_of(KNOWN, module or "torch") and function.__name__ not in _STATES


def is_object(kind: type) -> bool:
    """Whether all that such a value has are attributes that Python looks up."""
    if kind is SimpleNamespace:
        return True
    if issubclass(kind, threading.local) or is_of(("torch", "fastmeta", "numpy"), kind.__module__):
        return False
    return kind.__flags__ & _PYTHON_S == _PYTHON_S and _base_in_c(kind) is object


def _base_in_c(kind: type) -> type:
    """The class that makes it, of those that are not written in Python."""
    made = (c for c in kind.__mro__ if type(vars(c).get("__new__")) is BuiltinFunctionType)
    return next(made, object)
