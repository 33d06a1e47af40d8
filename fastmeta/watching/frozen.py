"""Values of Python as they are now, to be compared with what they are later."""

from __future__ import annotations

import datetime
import functools
from array import array
from collections import ChainMap, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType, MethodType
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "ATOMS", "CONTAINERS", "MOST_ITEMS", "UNFROZEN", "Same", "frozen", "held_by", "is_flat",
]  # fmt: skip

MOST_ITEMS = 4096  # of a container, that are looked at in each call
_MOST_BYTES = 4096  # of an array or a tensor

_EQUAL = (
    bool, int, str, bytes, type(None), type(...), type(NotImplemented), torch.dtype, torch.device,
    torch.memory_format, torch.layout, torch.Size, range, datetime.date, datetime.datetime,
    datetime.timedelta,
)  # fmt: skip
_WRITTEN = (complex, Decimal, Fraction)  # of which equal ones may differ in the sign of a zero
ATOMS = (float, *_EQUAL, *_WRITTEN)
CONTAINERS = (
    list, tuple, set, frozenset, dict, deque, ChainMap, MappingProxyType, slice, functools.partial,
)  # fmt: skip
# Of too many items, of which some cannot be hashed or read, of one that holds itself.
UNFROZEN = (TypeError, ValueError, RecursionError, RuntimeError, AttributeError, LookupError)


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
    """What equals that of another time only where nothing changed; else UNFROZEN.

    Of functions, classes and objects it tells that they are the same ones, not what they hold.
    """
    kind = type(value)
    if kind is float:
        return kind, value or value.hex()  # 0.0 equals -0.0
    if kind in _EQUAL:
        return kind, value
    if kind in _WRITTEN:
        return kind, repr(value)
    if kind in (list, tuple):
        return kind, tuple([frozen(item) for item in _few(value)])
    if kind is MethodType:
        return kind, value.__func__, frozen(value.__self__)
    if issubclass(kind, CONTAINERS):
        return _frozen_container(value)
    if _is_array(kind):
        return kind, str(value.dtype), value.shape, _few_bytes(value).tobytes()
    if issubclass(kind, (array, bytearray)):
        return kind, getattr(value, "typecode", ""), bytes(_few(value))
    if _is_small_tensor(value):
        # A tensor that NumPy has seen could not be resized any more.
        return Same(value), value.dtype, value.shape, value.clone().numpy().tobytes()
    if issubclass(kind, Tensor):
        return Same(value), value.requires_grad
    return Same(value)


def _frozen_container(value: Any) -> Any:
    """By what its first ancestor tells: a class of one's own might tell what it likes."""
    kind = type(value)
    if issubclass(kind, (set, frozenset)):
        return Same(kind), frozenset([frozen(item) for item in _few(value)])
    return Same(kind), tuple([frozen(item) for item in held_by(value)])


def held_by(value: Any) -> list[Any]:
    """What a container holds, in its order."""
    kind = type(value)
    if issubclass(kind, functools.partial):
        return [value.func, value.args, value.keywords]
    if issubclass(kind, slice):
        return [value.start, value.stop, value.step]
    if issubclass(kind, ChainMap):
        return [value.maps]
    if issubclass(kind, MappingProxyType):
        return [*_few(value).items()]
    if issubclass(kind, OrderedDict):  # of which dict does not know the order
        return [*OrderedDict.items(_few(value))]
    if issubclass(kind, dict):
        default = value.default_factory if issubclass(kind, defaultdict) else None
        return [default, *dict.items(_few(value))]
    if issubclass(kind, deque):
        return [value.maxlen, *deque.__iter__(_few(value))]
    base = next(base for base in (list, tuple, set, frozenset) if issubclass(kind, base))
    return [*base.__iter__(_few(value))]


def _few(value: Any) -> Any:
    if len(value) > MOST_ITEMS:
        raise ValueError(f"more than {MOST_ITEMS} items")
    return value


def _few_bytes(value: Any) -> Any:
    if value.nbytes > _MOST_BYTES or value.dtype.hasobject:
        raise ValueError(f"more than {_MOST_BYTES} bytes")
    return value


def is_flat(value: Any) -> bool:
    """Whether it is an array of numbers that can be compared."""
    kind = type(value)
    return issubclass(kind, (array, bytearray)) or _is_array(kind) or _is_small_tensor(value)


def _is_array(kind: type) -> bool:
    """Whether it is one of NumPy, or one of its scalars."""
    return kind.__module__ == "numpy" and hasattr(kind, "dtype") and hasattr(kind, "nbytes")


def _is_small_tensor(value: Any) -> bool:
    return (
        type(value) is Tensor and value.device.type == "cpu" and value.layout is torch.strided
        and value.numel() * value.element_size() <= _MOST_BYTES and not value.requires_grad
        and not torch._C._functorch.is_functorch_wrapped_tensor(value)
    )  # fmt: skip
