"""A cheap answer to: is this module still built as it was when we looked at it?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta.backends import cpu
from fastmeta.functional.forward import _GLOBAL_HOOKS, hook_dicts
from fastmeta.inner_loop.surroundings import Surroundings

__all__ = ["Snapshot"]

_PLAIN = (bool, int, float, str, tuple, type(None))
# Dicts of a module that may be replaced as a whole, by __setstate__ for one.
_DICTS = (
    "_parameters", "_buffers", "_modules",
    "_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks",
)  # fmt: skip


class Snapshot:
    """Children, parameter names, plain attributes and hooks of a module and of all below it.

    Hooks of all modules (torch's global ones) count as well, and so do the global variables and
    attributes of classes that forwards read.

    Looking again takes a few microseconds, so what was derived from a module (its layers, the
    engine that runs it) can be kept between calls.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        owners = [*module.modules()]
        hooks = [hooks for owner in owners for hooks in hook_dicts(owner)]
        # A new attribute may stand before one of its class, of which a forward has read.
        dicts = [own for owner in owners for own in (owner._parameters, owner.__dict__)]
        counted: list[Any] = [*_GLOBAL_HOOKS, *hooks, *dicts]
        self._seen = (
            _flat((owner, type(owner), owner.__dict__) for owner in owners),
            _flat(own for owner in owners for own in _own_dicts(owner)),
            _flat((each, len(each)) for each in counted),
            _flat((owner._modules, (*owner._modules.values(),)) for owner in owners),
            _flat(attribute for owner in owners for attribute in _plain_attributes(owner)),
            _flat((owner.__dict__, "forward", "forward" in owner.__dict__) for owner in owners),
        )
        # Of a scripted module they are no dicts, and nobody can tell what changes in it.
        self._readable = all(isinstance(d, dict) for o in owners for _, _, d in _own_dicts(o))
        self._surroundings = Surroundings(module)
        missing, aliases, sources = [], [], []
        first: dict[int, tuple[dict[str, Any], str]] = {}
        for prefix, owner in module.named_modules():
            for key, parameter in owner._parameters.items():
                source = (owner._parameters, key)
                if parameter is None:
                    missing.append(source)
                elif id(parameter) in first:
                    aliases.append((*source, *first[id(parameter)]))
                else:
                    first[id(parameter)] = source
                    sources.append((f"{prefix}.{key}" if prefix else key, *source))
        self._missing = missing  # places for a parameter that hold None
        self._aliases = aliases
        self._sources = _flat(sources)

    def parameters(self) -> dict[str, Tensor] | None:
        """``dict(module.named_parameters())``, or None if the module is built otherwise now."""
        if not self._readable or not _unchanged(*self._seen):
            return None
        if not self._surroundings.are_same():
            return None
        for own, key in self._missing:
            if own.get(key, self) is not None:
                return None
        for own, key, first_own, first_key in self._aliases:
            if own.get(key) is not first_own.get(first_key):
                return None
        return _distinct_items(self._sources)


def _flat(groups: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    """One tuple: the native code reads it faster than tuples in a tuple."""
    return tuple(chain.from_iterable(groups))


def _groups(flat: tuple[Any, ...], n: int) -> Iterator[tuple[Any, ...]]:
    return zip(*[iter(flat)] * n, strict=True)


def _own_dicts(owner: nn.Module) -> list[tuple[dict[str, Any], str, Any]]:
    attributes = owner.__dict__
    return [(attributes, key, attributes[key]) for key in _DICTS if key in attributes]


def _plain_attributes(owner: nn.Module) -> list[tuple[dict[str, Any], str, Any]]:
    attributes = owner.__dict__
    kinds = (*_PLAIN, FunctionType, BuiltinFunctionType, torch.dtype)
    return [(attributes, key, v) for key, v in attributes.items() if type(v) in kinds]


def _all_same(
    owners: tuple[Any, ...],
    objects: tuple[Any, ...],
    lengths: tuple[Any, ...],
    values: tuple[Any, ...],
    items: tuple[Any, ...],
    keys: tuple[Any, ...],
) -> bool:
    """What the native `unchanged` tells, where there is none."""
    return (
        all(type(o) is kind and o.__dict__ is own for o, kind, own in _groups(owners, 3))
        and all(own.get(key) is held for own, key, held in _groups(objects, 3))
        and all(len(each) == length for each, length in _groups(lengths, 2))
        and all([*map(id, each.values())] == [*map(id, held)] for each, held in _groups(values, 2))
        and all(key in own and _same(own[key], value) for own, key, value in _groups(items, 3))
        and all((key in own) is there for own, key, there in _groups(keys, 3))
    )


def _same(found: Any, value: Any) -> bool:
    """Whether plain values are equal; all else, tensors for one, is the same only as itself."""
    if found is value:
        return True
    if type(found) is not type(value) or type(found) not in _PLAIN:
        return False
    if type(found) is tuple:
        return len(found) == len(value) and all(map(_same, found, value))
    return bool(found == value)


def _all_distinct(sources: tuple[Any, ...]) -> dict[str, Any] | None:
    """What the native `distinct_items` gives, where there is none."""
    found = {name: own.get(key) for name, own, key in _groups(sources, 3)}
    numbers = {*map(id, found.values())}
    whole = len(numbers) == len(found) and id(None) not in numbers
    return found if whole else None


_unchanged, _distinct_items = (
    (_all_same, _all_distinct)
    if cpu.native is None
    else (cpu.native.unchanged, cpu.native.distinct_items)
)
