"""Who has the values that forwards read, and what gives them anew."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType, MemberDescriptorType
from typing import Any, Protocol

__all__ = ["Attribute", "KnownModule", "Owner", "Vars", "Whole", "own_of"]


class Owner(Protocol):
    def get(self, name: str, /) -> Any: ...


class Attribute:
    """What a function or a cell has under a name; None where it has nothing."""

    def __init__(self, of: Any) -> None:
        self.of = of

    def get(self, name: str, /) -> Any:
        try:
            return getattr(self.of, name, None)
        except ValueError:  # an empty cell
            return None


class Vars(Attribute):
    """What a module, a class without its bases, or an object without its class has."""

    def __init__(self, of: Any) -> None:
        super().__init__(of)
        self._slots = _slots(type(of))

    def names(self) -> set[str]:
        return {*own_of(self.of), *self._slots}

    def get(self, name: str, /) -> Any:
        own = own_of(self.of)
        return own[name] if name in own else self._in_slot(name)

    def _in_slot(self, name: str) -> Any:
        try:
            return self._slots[name].__get__(self.of) if name in self._slots else None
        except AttributeError:  # an empty one
            return None


class KnownModule(Vars):
    """One of which functions and classes stay the same, and modules in it."""

    def __init__(self, of: Any) -> None:
        super().__init__(of)
        self._data = {n for n, value in own_of(of).items() if type(value) in _DATA}

    def names(self) -> set[str]:
        return self._data


class Whole(Vars):
    """An object's class and how many attributes it has: a new one may hide one of its class."""

    def __init__(self, of: Any) -> None:
        super().__init__(of)
        self._class = type(of)

    def get(self, name: str, /) -> Any:
        return type(self.of) is self._class, len(own_of(self.of))


def own_of(value: Any) -> Mapping[str, Any]:
    """Its `__dict__`, whatever its class makes of that name."""
    try:
        if issubclass(type(value), type):
            return vars(value)
        return object.__getattribute__(value, "__dict__")
    except AttributeError:
        return _NOTHING


_DATA = (bool, int, float, str, list, tuple, dict, set)
_NOTHING: Mapping[str, Any] = MappingProxyType({})


def _slots(kind: type) -> dict[str, Any]:
    return {
        name: slot
        for cls in reversed(type.mro(kind))
        if "__slots__" in vars(cls)
        for name, slot in vars(cls).items()
        if type(slot) is MemberDescriptorType and not name.startswith("__")
    }
