"""What forwards read beside their module: global variables and attributes of classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn

__all__ = ["surroundings"]

_KNOWN = ("torch", "fastmeta")  # packages that do not change while they are used
Place = tuple[Mapping[str, Any], str]


def surroundings(module: nn.Module) -> list[tuple[Mapping[str, Any], str, Any]]:
    """Where forwards may read beside their attributes, by name, and what is there now.

    Functions that they call are followed; what a method of some other object reads is not.
    """
    places: dict[tuple[int, str], Place] = {}
    functions = []
    for owner in _classes(module):
        own: Mapping[str, Any] = vars(owner)
        functions += [f for value in own.values() if (f := _function(value)) is not None]
        names = [name for name in own if not (name.startswith("__") and name.endswith("__"))]
        places |= {(id(own), name): (own, name) for name in names}
    seen: set[int] = set()
    while functions:
        function = functions.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        for own, name in _globals(function):
            places[id(own), name] = own, name
            following = _function(own[name])
            if following is not None and not _is_known(following.__module__):
                functions.append(following)
    return [(own, name, own[name]) for own, name in places.values()]


def _classes(module: nn.Module) -> set[type]:
    bases = {base for part in module.modules() for base in type(part).__mro__}
    return {base for base in bases if base is not object and not _is_known(base.__module__)}


def _is_known(name: str | None) -> bool:
    return (name or "").partition(".")[0] in _KNOWN


def _function(value: Any) -> FunctionType | None:
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, property):
        value = value.fget
    return value if isinstance(value, FunctionType) else None


def _globals(function: FunctionType) -> Iterator[Place]:
    """The global variables that a function names, and what it may read of modules among them."""
    names, own = {*_names(function.__code__)}, function.__globals__
    for name in names & own.keys():
        value = own[name]
        if not isinstance(value, ModuleType):
            yield own, name
        elif not _is_known(value.__name__):
            yield from ((vars(value), each) for each in names & vars(value).keys())


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
