"""A cheap answer to: is this module still built as it was when we looked at it?"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastmeta.backends import cpu
from fastmeta.functional.forward import hook_dicts

__all__ = ["Snapshot"]

_PLAIN = (bool, int, float, str, tuple, type(None))


class Snapshot:
    """Children, parameter names, plain attributes and hooks of a module and of all below it.

    Looking again takes a few microseconds, so what was derived from a module (its layers, the
    engine that runs it) can be kept between calls.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        owners = [*module.modules()]
        hooks = [hooks for owner in owners for hooks in hook_dicts(owner)]
        counted = [*hooks, *[owner._parameters for owner in owners]]
        self._seen = (
            tuple((owner, type(owner)) for owner in owners),
            tuple((each, len(each)) for each in counted),
            tuple((owner._modules, (*owner._modules.values(),)) for owner in owners),
            tuple(attribute for owner in owners for attribute in _plain_attributes(owner)),
            tuple((owner.__dict__, "forward", "forward" in owner.__dict__) for owner in owners),
        )
        self._missing = []  # places for a parameter that hold None
        self._sources = []
        self._aliases = []
        first: dict[int, tuple[dict[str, Any], str]] = {}
        for prefix, owner in module.named_modules():
            for key, parameter in owner._parameters.items():
                source = (owner._parameters, key)
                if parameter is None:
                    self._missing.append(source)
                elif id(parameter) in first:
                    self._aliases.append((*source, *first[id(parameter)]))
                else:
                    first[id(parameter)] = source
                    self._sources.append((f"{prefix}.{key}" if prefix else key, *source))

    def parameters(self) -> dict[str, Tensor] | None:
        """``dict(module.named_parameters())``, or None if the module is built otherwise now."""
        try:
            if not _unchanged(*self._seen):
                return None
            parameters = {name: own[key] for name, own, key in self._sources}
            for own, key in self._missing:
                if own[key] is not None:
                    return None
            for own, key, first_own, first_key in self._aliases:
                if own[key] is not first_own[first_key]:
                    return None
        except KeyError:  # a parameter is gone
            return None
        numbers = {*map(id, parameters.values())}
        whole = len(numbers) == len(parameters) and id(None) not in numbers
        return parameters if whole else None


def _plain_attributes(owner: nn.Module) -> list[tuple[dict[str, Any], str, Any]]:
    attributes = owner.__dict__
    return [(attributes, key, v) for key, v in attributes.items() if type(v) in _PLAIN]


def _all_same(
    types: tuple[Any, ...],
    lengths: tuple[Any, ...],
    values: tuple[Any, ...],
    items: tuple[Any, ...],
    keys: tuple[Any, ...],
) -> bool:
    """What the native `unchanged` tells, where there is none."""
    return (
        all(type(owner) is kind for owner, kind in types)
        and all(len(each) == length for each, length in lengths)
        and all([*map(id, each.values())] == [*map(id, held)] for each, held in values)
        and all(key in own and _same(own[key], value) for own, key, value in items)
        and all((key in own) is there for own, key, there in keys)
    )


def _same(found: Any, value: Any) -> bool:
    return found is value or (type(found) is type(value) and found == value)


_unchanged = _all_same if cpu.native is None else cpu.native.unchanged
