"""What a module's forwards may read from Python beside their arguments: their names, followed."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from enum import Enum
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from torch import nn

from fastmeta.watching.code_names import Names, names_of
from fastmeta.watching.frozen import CONTAINERS, UNFROZEN, frozen, held_by, is_flat
from fastmeta.watching.kinds import KNOWN, is_idle, is_object, is_of, own_classes, tells
from fastmeta.watching.owners import Attribute, KnownModule, Owner, Vars, Whole, own_of
from fastmeta.watching.weight_norm import made_by_hooks

__all__ = ["OF_EVERY_MODULE", "Followed"]

OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_TELL_ANYTHING = ("sys", "builtins", "gc", "inspect", "ctypes", "importlib")  # modules
_OF_TYPES = {"callable", "hasattr", "isinstance", "issubclass", "type"}
_BY_TEXT = {"__dict__", "attrgetter", "getattr", "hasattr", "methodcaller", "vars"}
_MADE = frozenset(("__init__", "__new__", "__post_init__"))  # called where an object is made
_UNCALLED = _MADE | {"__del__", "__reduce__", "__reduce_ex__", "__repr__", "__setstate__"}
_MOST_PLACES = 1024  # beside attributes of the module's parts


class Followed:
    """Attributes of a module's parts, and what their forwards name: global variables, attributes of
    classes and objects, closures and defaults.

    Functions that they call are followed, and so are objects, classes and modules that they get
    hold of: there all attributes count that some of these functions name, whatever they name them
    of.

    Attributes:
        places: an owner and a name of each.
        functions: that were followed.
        unwatched: a sentence if there is something of which nobody could tell that it changes.
        catches: the name of a function that catches exceptions, if one does.
        asks_types: whether one asks for a type, which a proxy is none of.
    """

    def __init__(self, module: nn.Module) -> None:
        self.places: dict[tuple[int, str], tuple[Owner, str]] = {}
        self.functions: list[FunctionType] = []
        self.unwatched: str | None = None
        self.catches: str | None = None
        self.asks_types = False
        self._seen: dict[int, Any] = {id(part): part for part in module.modules()}
        self._hidden: list[tuple[nn.Module, str]] = []  # attributes that follow the parameters
        self._kinds = {*map(type, module.modules())}
        self._read = 0  # of the functions
        self._names, self._texts = {"forward", "__getattr__"}, set[str]()
        self._families: dict[tuple[int, bool], _Family] = {}
        for part in module.modules():
            self._add_part(part)
        self._follow()

    def _follow(self) -> None:
        known: tuple[int, ...] = ()
        most = len(self.places) + _MOST_PLACES
        while known != (known := self._size()) and len(self.places) < most:
            while self._read < len(self.functions):
                self._read += 1
                self._read_function(self.functions[self._read - 1])
            for family in [*self._families.values()]:
                self._read_attributes(family)
            for part, name in self._hidden:
                if name in self._names - OF_EVERY_MODULE:
                    self._add(vars(part), name, f"{type(part).__name__}.{name}")
        if len(self.places) >= most:
            self._give_up("its forward reads too much of Python to be watched")

    def _size(self) -> tuple[int, ...]:
        return tuple(
            map(len, (self.functions, self._names, self._texts, self._families, self.places))
        )

    # ---- functions -------------------------------------------------------------------------------

    def _read_function(self, function: FunctionType) -> None:
        called = function.__qualname__
        for cell in function.__closure__ or ():
            self._add(Attribute(cell), "cell_contents", f"a variable of {called}")
        if is_of(KNOWN, function.__globals__.get("__name__")):
            return
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            self._add(Attribute(function), name, f"a default of {called}")
        self._read_names(function, names_of(function.__code__))

    def _read_names(self, function: FunctionType, names: Names) -> None:
        self._names |= names.attributes
        if not _BY_TEXT.isdisjoint(names.attributes | names.variables):
            self._texts |= names.texts | {""}
        if not _OF_TYPES.isdisjoint(names.variables):
            self.asks_types = True
        if names.catches:
            self.catches = function.__qualname__
        named = names.variables | names.attributes - {"eval"}  # which each module has
        for name in sorted(filter(tells, named)):
            self._give_up(f"{function.__qualname__} reads {name}, which nobody watches")
        own: Any = function.__globals__
        for name in names.variables:
            self._add(own, name, f"the global variable {name}")
        for name in _modules(names.imports, str(own.get("__package__") or "")):
            self._add(sys.modules, name, f"the module {name}")
        for name in names.attributes & vars(function).keys():
            self._add(Attribute(function), name, f"{function.__qualname__}.{name}")

    # ---- attributes ------------------------------------------------------------------------------

    def _add(self, owner: Owner, name: str, called: str) -> None:
        place = id(owner.of if isinstance(owner, Attribute) else owner), name
        if place not in self.places:
            self.places[place] = owner, name
            self._look_at(owner.get(name), called)

    def _read_attributes(self, family: _Family) -> None:
        for name in family.names(self._names, self._texts):
            for owner in family.owners:  # an object may get what so far its class alone has
                own = vars(owner.of) if type(owner.of) is ModuleType else owner
                self._add(own, name, f"{family.called}.{name}")
        if "" in self._texts or self.catches is not None:  # it may ask what is not there yet
            for owner in family.owners:
                self._add(Whole(owner.of), "", family.called)

    def _add_part(self, part: nn.Module) -> None:
        called, own = type(part).__name__, Vars(part)
        of_torch = is_of(KNOWN, type(part).__module__)
        made = made_by_hooks(part)
        for name, value in vars(part).items():
            if name in made:
                continue
            if of_torch and name.startswith("_") and not is_idle(value):
                self._hidden.append((part, name))
            elif name not in OF_EVERY_MODULE:
                self._add(vars(part), name, f"{called}.{name}")
        for name in own.names() - vars(part).keys() - made:
            self._add(own, name, f"{called}.{name}")
        self._add_family([], type(part), called)

    def _add_family(
        self, objects: list[Vars], kind: type, called: str, *, made: bool = False,
        whole: bool = False,
    ) -> None:  # fmt: skip
        classes = [*own_classes(kind), *own_classes(type(kind))]
        owners = [*objects, *map(Vars, classes)]
        if owners:
            key = id(objects[0].of if objects else kind), made
            uncalled = _UNCALLED - _MADE if made else _UNCALLED
            self._families.setdefault(key, _Family(owners, called, uncalled, whole))

    # ---- values ----------------------------------------------------------------------------------

    def _look_at(self, value: Any, called: str, verb: str = "is") -> None:
        if type(value) is str:
            self._texts_of(value)
        if id(value) in self._seen or is_idle(value):
            return
        self._seen[id(value)] = value
        kind = type(value)
        inner = _behind(value)
        if kind is FunctionType:
            self.functions.append(value)
        elif inner is not None:
            self._look_at_all(inner, called)
        elif issubclass(kind, type):
            self._add_class(value)
        elif kind is ModuleType:
            self._add_module(value)
        elif issubclass(kind, nn.Module):
            self._add_module_beside(value, called)
        elif issubclass(kind, Enum):
            self._add(Vars(value), "_value_", called)
            self._add_family([Vars(value)], kind, called)
        elif not self._is_data(value, called):
            self._give_up(
                f"{called} {verb} a {kind.__name__}, of which a later change would not be seen"
            )

    def _texts_of(self, value: str) -> None:
        if value.isidentifier():
            self._texts.add(value)

    def _look_at_all(self, values: Iterable[Any], called: str) -> None:
        for value in values:
            self._look_at(value, called, "holds")

    def _add_class(self, kind: type) -> None:
        self._add_family([], kind, kind.__name__, made=kind not in self._kinds)
        if issubclass(kind, Enum):
            self._look_at_all(kind.__members__.values(), kind.__name__)

    def _add_module(self, module: ModuleType) -> None:
        name = vars(module).get("__name__")
        if is_of(_TELL_ANYTHING, name):
            self._give_up(f"its forward reads the module {name}, which tells of anything")
        else:
            owner = KnownModule(module) if is_of(KNOWN, name) else Vars(module)
            self._families.setdefault((id(module), False), _Family([owner], str(name)))

    def _add_module_beside(self, module: nn.Module, called: str) -> None:
        """One that is no part of the module: all that it has."""
        for name in own_of(module):
            self._add(Vars(module), name, f"{called} is a {type(module).__name__}, whose {name}")
        self._add(Whole(module), "", called)
        self._add_family([Vars(module)], type(module), called)

    def _is_data(self, value: Any, called: str) -> bool:
        """Whether it is a container, an array or an object, or both, that can be watched."""
        kind = type(value)
        is_container = issubclass(kind, CONTAINERS)
        if is_container or is_flat(value):
            try:
                frozen(value)
                self._look_at_all(held_by(value) if is_container else (), called)
            except UNFROZEN:
                return False
        elif not is_object(kind):
            return False
        if is_object(kind) or own_classes(kind):
            self._add_object(value, called)
        return True

    def _add_object(self, value: Any, called: str) -> None:
        kind = type(value)
        self._add(Whole(value), "", called)
        # What the methods of a known class name is not looked up.
        whole = any(is_of(KNOWN, c.__module__) for c in kind.__mro__ if c.__module__ not in _PLAIN)
        self._add_family([Vars(value)], kind, called, whole=whole)

    def _give_up(self, sentence: str) -> None:
        self.unwatched = self.unwatched or sentence


_PLAIN = ("abc", "builtins", "typing")  # modules of classes that read no attributes


class _Family(NamedTuple):
    """Who is asked for an attribute, one after another.

    Attributes:
        called: what to call the first in a sentence.
        uncalled: methods of which Python calls none here.
        whole: whether all attributes of the first count, named or not.
    """

    owners: list[Vars]
    called: str
    uncalled: frozenset[str] = _UNCALLED
    whole: bool = False

    def names(self, named: set[str], texts: set[str]) -> set[str]:
        """The attributes that count; by texts, "" among them, an object's all."""
        found = set[str]()
        for owner in self.owners:
            own = owner.names()
            if issubclass(type(owner.of), (type, ModuleType)):
                found |= {n for n in own if n in named or _is_like(n, texts)}
                found |= {n for n in own - self.uncalled if _is_called_unnamed(owner, n)}
            else:
                found |= own if self.whole or "" in texts else own & named
        return found


def _modules(imports: Iterable[str], package: str) -> set[str]:
    """Full names that imports in a package may mean: they tell not from where they count."""
    parts = package.split(".") if package else []
    above = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    relative = {f"{parent}.{name}".rstrip(".") for parent in above for name in imports}
    return {*imports, *(name.partition(".")[0] for name in imports), *relative} - {""}


def _is_like(name: str, texts: set[str]) -> bool:
    """Whether some text may be a part of a name, where texts are names."""
    if "" not in texts or name.startswith("__"):
        return False
    return any(len(text) > 1 and text in name for text in texts)


def _is_called_unnamed(owner: Vars, name: str) -> bool:
    is_special = name.startswith("__") and name.endswith("__") and issubclass(type(owner.of), type)
    return is_special and type(owner.get(name)) in (FunctionType, property, staticmethod)


def _behind(value: Any) -> list[Any] | None:
    """What a wrapper of functions wraps; None for what is none."""
    kind = type(value)
    if kind in (staticmethod, classmethod):
        return [value.__func__]
    if kind is MethodType:
        return [value.__func__, value.__self__]
    if kind is property:
        return [value.fget]
    if kind is functools.cached_property:
        return [value.func]
    if kind is functools.partialmethod:
        return [value.func, value.args, value.keywords]
    if kind is functools._lru_cache_wrapper:
        return [value.__wrapped__]
    return None
