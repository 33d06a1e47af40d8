"""A cheap answer to: is this module still built as it was when we looked at it?"""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import Tensor, nn

from fastmeta.functional.forward import _GLOBAL_HOOKS, hook_dicts
from fastmeta.watching import unchanged
from fastmeta.watching.surroundings import OF_EVERY_MODULE, Surroundings
from fastmeta.watching.unchanged import COMPARED, flat

__all__ = ["Snapshot"]

# Dicts of a module that may be replaced as a whole, by __setstate__ for one.
_DICTS = (
    "_parameters", "_buffers", "_modules",
    "_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks",
)  # fmt: skip


class Snapshot:
    """Children, parameter names, attributes and hooks of a module and of all below it.

    Hooks of all modules (torch's global ones) count as well, and so does all that forwards read
    from Python, see `Surroundings`.

    Looking again takes a few microseconds, so what was derived from a module (its layers, the
    engine that runs it) can be kept between calls.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        owners = [*module.modules()]
        hooks = [hooks for owner in owners for hooks in hook_dicts(owner)]
        # A new attribute may stand before one of its class, of which a forward has read.
        dicts = [(owner._parameters, owner._buffers, owner.__dict__) for owner in owners]
        counted: list[Any] = [*_GLOBAL_HOOKS, *hooks, *chain.from_iterable(dicts)]
        self._seen = (
            flat((owner, type(owner), owner.__dict__) for owner in owners),
            flat(own for owner in owners for own in _own_dicts(owner)),
            flat((each, len(each)) for each in counted),
            flat((owner._modules, (*owner._modules.values(),)) for owner in owners),
            flat(attribute for owner in owners for attribute in _of_every_module(owner)),
            flat((owner.__dict__, "forward", "forward" in owner.__dict__) for owner in owners),
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
        self._sources = flat(sources)
        self._buffers = [
            (owner._buffers, key, buffer is None)
            for owner in owners for key, buffer in owner._buffers.items()
        ]  # fmt: skip

    def parameters(self) -> dict[str, Tensor] | None:
        """``dict(module.named_parameters())``, or None if the module is built otherwise now."""
        if not self._readable or not unchanged.unchanged(*self._seen):
            return None
        if not self._surroundings.are_same():
            return None
        for own, key in self._missing:
            if own.get(key, self) is not None:
                return None
        for own, key, first_own, first_key in self._aliases:
            if own.get(key) is not first_own.get(first_key):
                return None
        for own, key, is_none in self._buffers:
            if (own.get(key) is None) is not is_none:
                return None
        return unchanged.distinct_items(self._sources)


def _own_dicts(owner: nn.Module) -> list[tuple[dict[str, Any], str, Any]]:
    attributes = owner.__dict__
    return [(attributes, key, attributes[key]) for key in _DICTS if key in attributes]


def _of_every_module(owner: nn.Module) -> list[tuple[dict[str, Any], str, Any]]:
    """Whether it is in training mode, for one."""
    attributes = owner.__dict__
    own = [(key, attributes[key]) for key in OF_EVERY_MODULE & attributes.keys()]
    return [(attributes, key, value) for key, value in own if type(value) in COMPARED]
