"""Classes of users, as far as it is known what their objects do."""

from __future__ import annotations

import abc
import typing
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    FunctionType,
    MethodDescriptorType,
    WrapperDescriptorType,
)

from torch import nn

__all__ = ["classes_of", "functions_run_unnamed"]

_BASES = (object, nn.Module, tuple, abc.ABC, typing.Generic, typing.Protocol)
# What Python runs when objects are made, shown or copied, which no loss does.
_AT_OTHER_TIMES = {
    "__init__", "__new__", "__post_init__", "__repr__", "__str__", "__init_subclass__",
    "__subclasshook__", "__class_getitem__", "__reduce__", "__reduce_ex__", "__getstate__",
    "__setstate__", "__getnewargs__", "__del__", "__setattr__", "__delattr__", "__replace__",
    "__annotate__", "__annotate_func__", "__hash__", "__copy__", "__deepcopy__", "__dir__",
    "__sizeof__",
}  # fmt: skip
_ANYTHING = ("__getattr__", "__getattribute__", "__torch_function__", "__class__")


def classes_of(kind: type) -> list[type]:
    """A class and its bases that are a user's; TypeError if they are not plain ones of Python."""
    if type(kind) not in (type, abc.ABCMeta, type(typing.Protocol)):
        raise TypeError(f"{kind.__qualname__}, a class of a metaclass")
    own = [cls for cls in kind.__mro__ if cls not in _BASES]
    for cls in own:
        if not _is_made_in_python(cls) or cls.__module__.partition(".")[0] == "torch":
            raise TypeError(f"an object of the class {kind.__qualname__}")
        if any(name in vars(cls) for name in _ANYTHING):
            raise TypeError(f"{kind.__qualname__}, which finds attributes in a way of its own")
    return own


def _is_made_in_python(cls: type) -> bool:
    native = (WrapperDescriptorType, MethodDescriptorType, ClassMethodDescriptorType)
    if any(isinstance(value, native) for value in vars(cls).values()):
        return False
    return not isinstance(vars(cls).get("__new__"), BuiltinFunctionType)


def functions_run_unnamed(kind: type) -> list[FunctionType]:
    """Those that Python itself may run for operators, calls, items and the like."""
    found = [
        vars(cls)[name]
        for cls in classes_of(kind) for name in [*vars(cls)]
        if name.startswith("__") and name.endswith("__") and name not in _AT_OTHER_TIMES
    ]  # fmt: skip
    return [function for function in found if type(function) is FunctionType]
