"""Values of Python as they are now, to be compared with what they are later."""

from __future__ import annotations

import functools
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

__all__ = ["UNFROZEN", "Same", "frozen"]

_ATOMS = (
    bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device,
    torch.memory_format, torch.Size, slice, range,
)  # fmt: skip
# Of another kind, a cell without contents, functions that close over each other.
UNFROZEN = (TypeError, ValueError, RecursionError)
_BY_IDENTITY = (type, FunctionType, BuiltinFunctionType, MethodType, nn.Module)


class Same:
    """Equal to another of the very same object, and keeps it: addresses are given out again."""

    __slots__ = ("of",)

    def __init__(self, of: Any) -> None:
        self.of = of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.of is self.of

    def __hash__(self) -> int:
        return id(self.of)


def frozen(value: Any) -> Any:
    """A value that equals that of another time only where nothing changed; else UNFROZEN."""
    if isinstance(value, MethodType) and not isinstance(value.__self__, nn.Module):
        raise TypeError("what its object holds may change unseen")
    if isinstance(value, FunctionType) and value.__closure__:
        contents = [cell.cell_contents for cell in value.__closure__]
        return Same(value), [frozen(each) for each in contents if each is not value]
    if isinstance(value, _BY_IDENTITY):
        return Same(value)
    if type(value) in _ATOMS:
        return type(value), value
    if type(value) in (list, tuple):
        return type(value), [frozen(item) for item in value]
    if type(value) is functools.partial:
        return functools.partial, frozen([value.func, value.args, value.keywords])
    if type(value) is dict:
        return dict, [(frozen(key), frozen(item)) for key, item in value.items()]
    if type(value) in (set, frozenset):
        return type(value), {*value} if all(type(v) in _ATOMS for v in value) else frozen([*value])
    raise TypeError(f"cannot freeze {type(value).__name__}")
