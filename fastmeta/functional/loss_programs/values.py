"""What a loss reads beside its arguments: a program is made of it once, and must be of it still.

Forwards are watched otherwise (`fastmeta.watching`), which may be run to find out what they do. A
loss that writes a log or counts must not run at all for numbers that nobody gave it, so here all
that it may do has to be known beforehand.
"""

from __future__ import annotations

import argparse
import builtins
import functools
import math
from collections.abc import Callable, Hashable, Iterator
from types import (
    BuiltinFunctionType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from fastmeta.functional.forward import has_hooks
from fastmeta.functional.loss_programs.code import reads_of
from fastmeta.functional.loss_programs.kinds import classes_of, functions_run_unnamed
from fastmeta.words import kind_of

__all__ = ["is_small_constant", "unknown_value", "values_read"]


def values_read(loss: Callable[..., Any]) -> Hashable:
    """All that the loss can read beside its arguments, to be compared; None if that is not known.

    Known are functions, methods and objects that can be called, as far as they name numbers,
    strings, small tensors, containers of them, objects that hold some under names, functions like
    them, and what is PyTorch's; and PyTorch's own modules. Nobody looks for PyTorch's functions to
    be replaced.
    """
    try:
        return _Look().of(loss)
    except _Unknown:
        return None


def unknown_value(loss: Callable[..., Any]) -> str | None:
    """What keeps a loss from being known, or None."""
    try:
        _Look().of(loss)
    except _Unknown as reason:
        return str(reason)
    return None


def is_small_constant(value: Any) -> bool:
    """Whether a tensor holds a few numbers that nothing learns, for which nobody has to wait."""
    return (
        type(value) is Tensor and value.device.type == "cpu" and value.layout is torch.strided
        and value.numel() <= _MOST_NUMBERS and value.dtype in _DTYPES and not value.requires_grad
    )  # fmt: skip


class _Unknown(Exception):
    """Something that may change unseen, and the way to it."""

    def __init__(self, what: str, *way: str) -> None:
        super().__init__(what)
        self.what, self.way = what, way

    def __str__(self) -> str:
        return f"{'.'.join(self.way)}, {self.what}" if self.way else self.what

    def on_the_way(self, name: str) -> _Unknown:
        return _Unknown(self.what, name, *self.way)


_MOST_NUMBERS = 64
_MOST_ITEMS = 64  # of a container
_MOST_THINGS = 64  # functions and objects
_DEEPEST = 8  # containers in containers
_DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool)
_PLAIN = (
    bool, int, str, bytes, type(None), torch.dtype, torch.device, torch.Size, range,
    type(NotImplemented), type(...),
)  # fmt: skip
_BUILTINS = {
    abs, all, any, bool, callable, dict, divmod, enumerate, float, int, isinstance, len, list, max,
    min, pow, range, reversed, round, sorted, str, sum, tuple, zip,
}  # fmt: skip
_OF_MATH = {function for function in vars(math).values() if callable(function)}
_OF_PYTORCH = ("torch.nn.modules.", "torch.distributions.")
_NAMESPACES = (SimpleNamespace, argparse.Namespace)


class _Look:
    """Goes through what a loss may read, and notes what is there now.

    Objects are read by the attributes that the functions name, all of them: it does not matter
    through which variables they get them.
    """

    def __init__(self) -> None:
        self._notes: list[Hashable] = []
        self._places: dict[int, int] = {}  # of functions and objects, by id
        self._kept: list[Any] = []  # so that no id is that of another
        self._functions: list[FunctionType] = []
        self._objects: list[tuple[Any, int]] = []  # and how many names were looked up in it
        self._names: dict[str, Any] = {}
        self._unseen = False  # whether there are names that were not looked up in all objects
        self._held: set[type] = set()
        self._changed: set[type] = set()

    def of(self, loss: Any) -> Hashable:
        first = self._note(loss)
        while self._functions or self._unseen:
            while self._functions:
                self._notes.append(self._read(self._functions.pop()))
            self._look_up_names()
        if self._changed and not self._changed.isdisjoint(self._held):
            kind = (self._held & self._changed).pop()
            raise _Unknown(f"it reads a {kind.__name__}, and may change one")
        return first, *self._notes, torch.get_default_dtype(), Distribution._validate_args

    def _place(self, value: Any) -> tuple[int, bool]:
        """A number for it, and whether it is new."""
        if id(value) in self._places:
            return self._places[id(value)], False
        if len(self._kept) == _MOST_THINGS:
            raise _Unknown(f"it reads more than {_MOST_THINGS} functions and objects")
        self._kept.append(value)
        self._places[id(value)] = len(self._kept)
        return len(self._kept), True

    # ---- values ------------------------------------------------------------------------------

    def _note(self, value: Any, deep: int = 0) -> Hashable:
        kind = type(value)
        if kind is ModuleType and (value is torch or value is F or value is math):
            return value
        if kind is float:
            return kind, value.hex()  # 0.0 and -0.0 are two
        if kind in _PLAIN:
            return kind, value
        if kind in (tuple, list, dict, frozenset):
            return self._note_container(value, deep)
        if is_small_constant(value):
            return value.dtype, value.shape, value.detach().contiguous().numpy().tobytes()
        if kind is FunctionType and not _is_of_torch(value):
            return self._note_function(value)
        if kind is MethodType:
            return kind, self._note(value.__func__), self._note(value.__self__)
        if kind is functools.partial:
            pairs = tuple(sorted(value.keywords.items()))
            return kind, *(self._note(part, deep + 1) for part in (value.func, value.args, pairs))
        if isinstance(value, np.generic):
            return kind, value.tobytes()
        return self._note_known(value) or self._note_object(value)

    def _note_container(self, value: Any, deep: int) -> Hashable:
        if len(value) > _MOST_ITEMS or deep == _DEEPEST:
            raise _Unknown(f"a {type(value).__name__} of more than {_MOST_ITEMS} items")
        self._held.add(type(value))
        if type(value) is frozenset:
            return frozenset, frozenset([self._note(item, deep + 1) for item in value])
        if type(value) is not dict:
            return type(value).__name__, tuple([self._note(item, deep + 1) for item in value])
        items = []
        for key, item in value.items():
            try:
                items.append((self._note(key, deep + 1), self._note(item, deep + 1)))
            except _Unknown as reason:
                raise reason.on_the_way(f"[{key!r}]") from None
        return dict, tuple(items)

    def _note_known(self, value: Any) -> Hashable:
        """What does not change, or None."""
        if isinstance(value, FunctionType) and (value.__closure__ or hasattr(value, "__wrapped__")):
            raise _Unknown("PyTorch's wrapper of another function")
        if isinstance(value, (FunctionType, BuiltinFunctionType, ModuleType, type, np.ufunc)):
            known = _is_of_torch(value) or value is math or isinstance(value, np.ufunc)
            if known or value in _BUILTINS or value in _OF_MATH:
                return value
            raise _Unknown(_said_of(value))
        return None

    # ---- functions ---------------------------------------------------------------------------

    def _note_function(self, function: FunctionType) -> Hashable:
        place, new = self._place(function)
        if new:
            if function.__dict__:
                raise _Unknown("a function that wraps another one or has attributes")
            self._functions.append(function)
        return FunctionType, place

    def _read(self, function: FunctionType) -> Hashable:
        reads = reads_of(function.__code__)
        if reads.does is not None:
            raise _Unknown(reads.does)
        self._names.update(reads.attributes)
        self._unseen = True
        if reads.changes:
            self._changed |= reads.changes
        notes = [
            self._note_variable(name, _variable(function, name), attributes)
            for name, attributes in reads.variables
        ]
        defaults, others = function.__defaults__, function.__kwdefaults__
        notes.append(None if defaults is None else self._note(defaults))
        notes.append(None if others is None else self._note(tuple(others.items())))
        return function.__code__, *notes

    def _note_variable(
        self, name: str, value: Any, attributes: tuple[str, ...] | None
    ) -> Hashable:
        try:
            if attributes is not None and _has_names(value):
                return tuple([self._note_member(value, attribute) for attribute in attributes])
            return self._note(value)
        except _Unknown as reason:
            raise reason.on_the_way(name) from None

    def _note_member(self, owner: Any, name: str) -> Hashable:
        """An attribute of a module, or of a class of a user's."""
        try:
            owners = [owner] if isinstance(owner, ModuleType) else classes_of(owner)
        except TypeError as reason:
            raise _Unknown(str(reason)) from None
        found = [vars(one)[name] for one in owners if name in vars(one)]
        if not found:
            raise _Unknown(f"which has no {name} of its own")
        try:
            return tuple([self._note_attribute(value, owner) for value in found])
        except _Unknown as reason:
            raise reason.on_the_way(name) from None

    # ---- objects -----------------------------------------------------------------------------

    def _note_object(self, value: Any) -> Hashable:
        kind: Any = type(value)
        place, new = self._place(value)
        if not new:
            return kind, place
        if isinstance(value, nn.Module):
            self._check_module(value)
        if kind.__module__.startswith(_OF_PYTORCH):
            return kind, place, *self._note_settings(value)
        named = hasattr(value, "__dict__") or hasattr(kind, "__slots__")
        if not named or isinstance(value, Tensor):
            raise _Unknown(_said_of(value))
        try:
            functions = [] if kind in _NAMESPACES else functions_run_unnamed(kind)
        except TypeError as reason:
            raise _Unknown(str(reason)) from None
        self._objects.append((value, 0))
        self._unseen = True
        if isinstance(value, nn.Module):
            self._names["forward"] = ()
        names = tuple(vars(value)) if kind in _NAMESPACES else ()
        items = tuple(value) if isinstance(value, tuple) else ()
        return kind, place, names, self._note(items), *map(self._note_function, functions)

    def _check_module(self, module: nn.Module) -> None:
        if any(parameter is not None for parameter in module._parameters.values()):
            raise _Unknown(f"{kind_of(module)} with parameters")
        if has_hooks(module):
            raise _Unknown(f"{kind_of(module)} with hooks or a forward of its own")

    def _note_settings(self, value: Any) -> Iterator[Hashable]:
        """Of what is PyTorch's: all that it holds."""
        for name, held in _held_by(value).items():
            try:
                yield name, self._note(held)
            except _Unknown as reason:
                raise reason.on_the_way(name) from None

    def _look_up_names(self) -> None:
        self._unseen = False
        names = [*self._names] if self._objects else ()
        for i, (value, seen) in enumerate(self._objects):
            self._objects[i] = value, len(names)
            for name in names[seen:]:
                self._notes += [(i, name, note) for note in self._noted_in(value, name)]

    def _noted_in(self, value: Any, name: str) -> list[Hashable]:
        """Of the object and of its classes, whichever is found first by Python."""
        if name == "__dict__":
            raise _Unknown("it reads a __dict__")
        if name in _PARTS and isinstance(value, nn.Module):
            raise _Unknown(f"it asks a module for its {name}")
        kind, own = type(value), _held_by(value)
        classes = [] if kind in _NAMESPACES else classes_of(kind)
        found = [vars(cls)[name] for cls in classes if name in vars(cls)]
        try:
            notes = [self._note_attribute(attribute, value) for attribute in found]
            return [*notes, self._note(own[name])] if name in own else notes
        except _Unknown as reason:
            raise reason.on_the_way(name) from None

    def _note_attribute(self, attribute: Any, of: Any) -> Hashable:
        kind = type(attribute)
        if kind is property:
            return "property", self._note(attribute.fget)
        if kind in (staticmethod, classmethod):
            return kind.__name__, self._note(attribute.__func__)
        if kind is MemberDescriptorType:  # of __slots__
            return "slot", self._note(getattr(of, attribute.__name__, None))
        if kind.__name__ == "_tuplegetter":  # of a NamedTuple
            return "item"
        return self._note(attribute)


def _held_by(value: Any) -> dict[str, Any]:
    own = dict(getattr(value, "__dict__", {}))
    if not isinstance(value, nn.Module):
        return own
    plain = {name: held for name, held in own.items() if name not in _OF_EVERY_MODULE}
    return {**plain, **value._buffers, **value._modules, "training": value.training}


_PARTS = {
    "children", "modules", "parameters", "buffers", "state_dict", "named_children", "named_modules",
    "named_parameters", "named_buffers", "_modules", "_parameters", "_buffers", "load_state_dict",
    "add_module", "register_module", "register_buffer", "register_parameter",
}  # fmt: skip
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _variable(function: FunctionType, name: str) -> Any:
    free = function.__code__.co_freevars
    try:
        if name in free:
            return (function.__closure__ or ())[free.index(name)].cell_contents
        own = function.__globals__
        return own[name] if name in own else _NAMES_OF_PYTHON[name]
    except (KeyError, ValueError):  # a name that is not there, an empty cell
        raise _Unknown(f"it reads {name}, which is not there") from None


_NAMES_OF_PYTHON = vars(builtins)


def _has_names(value: Any) -> bool:
    """Whether what is read under a name of it is all that is read: of modules and classes."""
    return isinstance(value, (ModuleType, type)) and not _is_of_torch(value) and value is not math


def _said_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return "a tensor that requires grad, or of more than a few numbers"
    if isinstance(value, ModuleType):
        return "a module that it does more with than to read names of it"
    if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        return f"{getattr(value, '__qualname__', value)}, which nobody has looked into"
    return kind_of(value)


def _is_of_torch(value: Any) -> bool:
    if isinstance(value, FunctionType):  # whose __module__ functools.wraps would copy
        return str(value.__globals__.get("__name__")).partition(".")[0] == "torch"
    if isinstance(value, BuiltinFunctionType):
        return any(getattr(place, value.__name__, None) is value for place in (torch, F))
    if not isinstance(value, (ModuleType, type)):
        return False
    name = getattr(value, "__module__", None) or getattr(value, "__name__", "")
    return isinstance(name, str) and name.partition(".")[0] == "torch"
