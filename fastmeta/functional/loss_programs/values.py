"""What a loss reads beside its arguments: a program is made of it once, and must be of it still."""

from __future__ import annotations

import builtins
import dis
import functools
import math
from collections.abc import Callable, Hashable, Iterable
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from fastmeta.functional.forward import hook_dicts

__all__ = ["is_small_constant", "values_read"]


def values_read(loss: Callable[..., Any]) -> Hashable:
    """All that the loss can read beside its arguments, to be compared; None if that is not known.

    Known are functions that name numbers, strings, lists and small tensors, functions like them,
    and what is PyTorch's; and PyTorch's own losses. Nobody looks for PyTorch's functions to be
    replaced.
    """
    try:
        return _of(loss, 0), torch.get_default_dtype(), Distribution._validate_args
    except _Unknown:
        return None


class _Unknown(Exception):
    pass


def is_small_constant(value: Any) -> bool:
    """Whether a tensor holds a few numbers that nothing learns, for which nobody has to wait."""
    return (
        type(value) is Tensor and value.device.type == "cpu" and value.layout is torch.strided
        and value.numel() <= _MOST_NUMBERS and value.dtype in _DTYPES and not value.requires_grad
    )  # fmt: skip


_MOST_NUMBERS = 64
_DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool)
_DEEPEST = 8  # calls
_PLAIN = (bool, int, float, str, type(None), torch.dtype)
_BUILTINS = {
    abs, bool, enumerate, float, int, isinstance, len, list, max, min, pow, range, round, sum,
    tuple, zip,
}  # fmt: skip


def _of(value: Any, depth: int) -> Hashable:
    kind = type(value)
    if kind is float:
        return kind, value.hex()  # 0.0 and -0.0 are two
    if kind in _PLAIN:
        return kind, value
    if kind in (tuple, list):
        return kind, tuple(_of(item, depth) for item in value)
    if is_small_constant(value):
        return value.dtype, value.shape, value.detach().contiguous().numpy().tobytes()
    if kind is functools.partial:
        pairs = tuple(sorted(value.keywords.items()))
        return _all_of((value.func, value.args, pairs), depth)
    if kind is FunctionType and not _is_of_torch(value):
        return _of_function(value, depth)
    if isinstance(value, nn.Module):
        return _of_module(value, depth)
    if isinstance(value, FunctionType) and (value.__closure__ or hasattr(value, "__wrapped__")):
        raise _Unknown  # PyTorch's wrapper of another one
    if isinstance(value, (FunctionType, BuiltinFunctionType, ModuleType, type)):
        if _is_of_torch(value) or value is math or value in _BUILTINS or value in _OF_MATH:
            return value
    raise _Unknown


_OF_MATH = {function for function in vars(math).values() if callable(function)}


def _all_of(values: Iterable[Any], depth: int) -> Hashable:
    return tuple([_of(value, depth) for value in values])


def _is_of_torch(value: Any) -> bool:
    if isinstance(value, FunctionType):  # whose __module__ functools.wraps would copy
        return str(value.__globals__.get("__name__")).partition(".")[0] == "torch"
    if isinstance(value, BuiltinFunctionType):
        return any(getattr(place, value.__name__, None) is value for place in (torch, F))
    name = getattr(value, "__module__", None) or getattr(value, "__name__", "")
    return isinstance(name, str) and name.partition(".")[0] == "torch"


def _of_function(function: FunctionType, depth: int) -> Hashable:
    names = _globals_read(function.__code__)
    if names is None or depth == _DEEPEST or function.__dict__:
        raise _Unknown
    own, built_in = function.__globals__, vars(builtins)
    try:
        read = [own[name] if name in own else built_in[name] for name in names]
        read += [cell.cell_contents for cell in function.__closure__ or ()]
    except (KeyError, ValueError):  # a name that is not there, an empty cell
        raise _Unknown from None
    read += [function.__defaults__, *(function.__kwdefaults__ or {}).items()]
    if _changes_lists(function.__code__) and any(type(value) is list for value in read):
        raise _Unknown
    return function.__code__, _all_of(read, depth + 1)


@functools.lru_cache(maxsize=256)
def _globals_read(code: CodeType) -> tuple[str, ...] | None:
    """The global names of a function that only reads, and defines none but comprehensions."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    within = [_globals_read(one) if one.co_name in _COMPREHENSIONS else None for one in inner]
    instructions = [*dis.get_instructions(code)]
    if None in within or any(_does_more(i, code) for i in instructions):
        return None
    if any(name.startswith(_STATES) for name in code.co_names):
        return None
    names = [i.argval for i in instructions if i.opname == "LOAD_GLOBAL"]
    return tuple(dict.fromkeys([*names, *(name for names in within for name in names or ())]))


def _does_more(instruction: dis.Instruction, code: CodeType) -> bool:
    name = instruction.opname
    if name == "STORE_DEREF":  # a name of its own, which a comprehension reads
        return instruction.argval not in code.co_cellvars
    return name in _OTHERWISE or ("YIELD" in name and code.co_name != "<genexpr>")


@functools.lru_cache(maxsize=256)
def _changes_lists(code: CodeType) -> bool:
    """Whether it might change a list, of its own or another."""
    stores = any(i.opname in ("STORE_SUBSCR", "DELETE_SUBSCR") for i in dis.get_instructions(code))
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return stores or not _CHANGE.isdisjoint(code.co_names) or any(map(_changes_lists, inner))


_COMPREHENSIONS = ("<genexpr>", "<listcomp>")
_CHANGE = {"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"}


# Of PyTorch, which change.
_STATES = ("is_", "are_", "get_", "set_", "initial_", "seed", "backends", "storage")
_OTHERWISE = {
    "IMPORT_NAME", "STORE_GLOBAL", "DELETE_GLOBAL", "STORE_ATTR", "DELETE_ATTR", "DELETE_DEREF",
    "LOAD_NAME", "LOAD_BUILD_CLASS",
}  # fmt: skip


def _of_module(loss: nn.Module, depth: int) -> Hashable:
    """Of PyTorch's losses the settings, if they learn nothing and nobody hooked into them."""
    plain = type(loss).__module__ == "torch.nn.modules.loss" and "forward" not in vars(loss)
    if not plain or loss._parameters or any(hook_dicts(loss)):
        raise _Unknown
    settings = {k: v for k, v in vars(loss).items() if not k.startswith("_") and k != "training"}
    return type(loss), _all_of([*settings.items(), *loss._buffers.items()], depth)
