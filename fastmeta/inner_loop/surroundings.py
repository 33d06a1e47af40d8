"""What forwards read beside their module: global variables, attributes of classes, closures."""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Iterator, Mapping, Set
from itertools import chain
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from fastmeta.inner_loop.frozen import UNFROZEN, Same, frozen

__all__ = ["CONTAINERS", "MOST_ITEMS", "Surroundings"]

_KNOWN = ("torch", "fastmeta")  # packages that do not change while they are used
_BEGINNINGS = ("forward", "__call__", "__getattr__", "__getattribute__")
CONTAINERS = (list, dict, set)
_CHANGING = (*CONTAINERS, functools.partial)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
MOST_ITEMS = 4096  # items of a container that are looked at in each call
_DEEPEST = 3  # attributes of attributes
_UNNAMED = {"__call__", "__getitem__", "__float__", "__enter__"}  # which no name calls


class _Owner(Protocol):
    def get(self, name: str, /) -> Any: ...


class Surroundings:
    """Global variables, attributes of classes, closures and defaults that a module's forwards name.

    Functions that they call are followed, and attributes that they name of what they name are
    watched. What is found by a text (`getattr`, `globals()[...]`) is not.
    """

    def __init__(self, module: nn.Module) -> None:
        places = _NameFollower(module).places.values()
        self.seen = [(owner, name, _kept(owner.get(name))) for owner, name in places]
        for part in module.modules():
            held = [n for n, value in vars(part).items() if type(value) in _CHANGING]
            held = [name for name in held if name not in _OF_EVERY_MODULE]
            if type(part).__module__.startswith("torch."):  # whose own follow its parameters
                held = [name for name in held if not name.startswith("_")]
            self.seen += [(vars(part), name, _kept(vars(part)[name])) for name in held]

    def are_same(self) -> bool:
        return all(_is_same(owner.get(name), kept) for owner, name, kept in self.seen)


class _Kept(NamedTuple):
    value: Any
    like: Any  # what tells more than that it is the same object, or None


def _kept(value: Any) -> _Kept:
    if type(value) in (list, tuple, dict, set, frozenset) and len(value) > MOST_ITEMS:
        return _Kept(value, None)
    return _Kept(value, _like(value))


def _like(value: Any) -> Any:
    if type(value) in (Tensor, nn.Parameter):
        return None if value.is_inference() else value._version
    try:
        return frozen(value)
    except (*UNFROZEN, RuntimeError, AttributeError, LookupError):  # proxies may raise anything
        return _like_items(value)


def _like_items(value: Any) -> Any:
    """Of a container that holds what cannot be frozen: that is the same as itself."""
    if type(value) in (list, tuple):
        return type(value), [Same(item) if _like(item) is None else _like(item) for item in value]
    if type(value) is dict and all(type(key) in _BUILT_IN for key in value):
        return dict, [*value], _like_items([*value.values()])
    return None


def _is_same(found: Any, kept: _Kept) -> bool:
    if kept.like is None or type(kept.value) in (Tensor, nn.Parameter):
        return found is kept.value and (kept.like is None or kept.like == _like(found))
    return type(found) is type(kept.value) and bool(_like(found) == kept.like)


# ---- places ------------------------------------------------------------------------------------


class _Attribute:
    """What a function or a cell has under a name; None where it has nothing."""

    def __init__(self, of: Any) -> None:
        self.of = of

    def get(self, name: str, /) -> Any:
        try:
            return getattr(self.of, name, None)
        except ValueError:  # an empty cell
            return None


class _Vars(_Attribute):
    """What a module, a class without its bases, or an object without its class has."""

    def get(self, name: str, /) -> Any:
        return _own(self.of).get(name)


class _NameFollower:
    """Follows a module's forwards; `places` has an owner and a name for each they may read."""

    def __init__(self, module: nn.Module) -> None:
        self.places: dict[tuple[int, str], tuple[_Owner, str]] = {}
        self._functions: list[tuple[FunctionType, Any]] = []  # with the object that has it
        self._seen: set[tuple[int, int]] = set()
        self._families = [*_families(module).values()]
        for part in module.modules():
            for value in vars(part).values():
                self._functions += [(function, None) for function in _functions(value)]
        for name in _BEGINNINGS:
            self._read_of_classes(name)
        while self._functions:
            function, of = self._functions.pop()
            if (id(function), id(of)) not in self._seen and not _is_known(function.__module__):
                self._seen.add((id(function), id(of)))
                self._read(function, of)

    def _add(
        self, owner: _Owner, name: str, attributes: Set[str], deep: int = 0, of: Any = None
    ) -> None:
        place = id(owner.of if isinstance(owner, _Attribute) else owner), name
        value = owner.get(name)
        self._functions += [(function, of) for function in _functions(value)]
        if place in self.places:
            return
        self.places[place] = owner, name
        if deep < _DEEPEST:
            self._add_attributes(value, attributes, deep + 1)

    def _add_attributes(self, value: Any, names: Set[str], deep: int) -> None:
        owners = _with_attributes(value)
        for name in (names | _UNNAMED) & {*chain.from_iterable(map(_own, owners))}:
            for owner in owners:  # an object may get what so far its class alone has
                self._add(_Vars(owner), name, names, deep, value)

    def _read_of_classes(self, name: str, attributes: Set[str] = frozenset()) -> None:
        """What an attribute of a module may be: also of a class that does not have it yet."""
        for family in self._families:
            if any(name in vars(cls) for cls in family):
                for cls in family:
                    self._add(_Vars(cls), name, attributes)

    def _read(self, function: FunctionType, of: Any) -> None:
        variables, attributes, imports = _names(function.__code__)
        self._add_attributes(of, attributes, 1)
        own: Any = function.__globals__
        for module in imports & sys.modules.keys():
            self._add_attributes(sys.modules[module], attributes, 1)
        for name in variables:
            self._add(own, name, attributes)
        for cell in function.__closure__ or ():
            self._add(_Attribute(cell), "cell_contents", attributes)
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            self._add(_Attribute(function), name, set())
        for name in attributes & {*vars(function)}:
            self._add(_Attribute(function), name, set())
        for name in attributes:
            self._read_of_classes(name, attributes)


def _families(module: nn.Module) -> dict[int, list[type]]:
    """Of each kind of module that is not PyTorch's, its classes that are not either."""
    families = {}
    for kind in map(type, module.modules()):
        own = [c for c in kind.__mro__ if c is not object and not _is_known(c.__module__)]
        if own:
            families[id(kind)] = own
    return families


def _is_known(name: Any) -> bool:
    return str(name or "").partition(".")[0] in _KNOWN


def _functions(value: Any, deep: int = _DEEPEST) -> Iterator[FunctionType]:
    """Those behind a function, a method or a property, what they wrap, and those in containers."""
    kind = type(value)
    if kind is FunctionType:
        yield value
        inner = [value.__wrapped__] if "__wrapped__" in vars(value) else []
    elif kind in (staticmethod, classmethod):
        inner = [value.__func__]
    elif kind is property:
        inner = [value.fget]
    elif kind in (functools.partial, functools.partialmethod):
        inner = [value.func, *value.args, *value.keywords.values()]
    elif kind is functools._lru_cache_wrapper:
        inner = [value.__wrapped__]
    elif kind in (list, tuple) and len(value) <= MOST_ITEMS:
        inner = [*value]
    elif kind is dict and len(value) <= MOST_ITEMS:
        inner = [*value.values()]
    else:
        inner = []
    for each in inner:
        if type(each) in _WITH_FUNCTIONS or (deep and type(each) in (list, tuple, dict)):
            yield from _functions(each, deep - 1)


_WITH_FUNCTIONS = (
    FunctionType, staticmethod, classmethod, property, functools.partial, functools.partialmethod,
    functools._lru_cache_wrapper,
)  # fmt: skip


def _with_attributes(value: Any) -> list[Any]:
    """Where a module, a class or an object has its attributes, as far as it is not PyTorch's."""
    kind = type(value)
    if kind is ModuleType:
        return [] if _is_known(vars(value).get("__name__")) else [value]
    if kind is FunctionType or kind in _BUILT_IN:
        return []
    classes = type.mro(value) if issubclass(kind, type) else kind.__mro__
    own = [c for c in classes if c is not object and not _is_known(c.__module__)]
    return [value, *own] if own and not issubclass(kind, type) else own


def _own(value: Any) -> Mapping[str, Any]:
    """Its `__dict__`, whatever its class makes of that name."""
    try:
        if issubclass(type(value), type):
            return vars(value)
        return object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}


_BUILT_IN = (int, float, str, bool, type(None), list, tuple, dict, set, frozenset)


def _names(code: CodeType) -> tuple[set[str], set[str], set[str]]:
    """Global variables, attributes and modules that code names, that of functions in it too."""
    variables, attributes, imports = set(), set(), set()
    for instruction in dis.get_instructions(code):
        kind, name = instruction.opname, instruction.argval
        if kind in ("LOAD_GLOBAL", "LOAD_NAME"):
            variables.add(name)
        elif kind == "IMPORT_NAME":
            imports.add(name)
        elif kind in ("LOAD_METHOD", "IMPORT_FROM") or ("ATTR" in kind and isinstance(name, str)):
            attributes.add(name)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            for names, more in zip((variables, attributes, imports), _names(constant), strict=True):
                names |= more
    return variables, attributes, imports
