"""A cheap answer to: is this module still built as it was when we looked at it?"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastmeta.functional.forward import hook_dicts

__all__ = ["Snapshot"]

_PLAIN = (bool, int, float, str, tuple, type(None))


class Snapshot:
    """Children, parameter names, plain attributes and hooks of a module and of all below it.

    Looking again costs about half a microsecond a submodule, so what was derived from a module
    (its layers, the engine that runs it) can be kept between calls.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._rows = [_Row(owner) for owner in module.modules()]
        self._sources = []
        self._aliases = []
        first: dict[int, tuple[dict[str, Any], str]] = {}
        for prefix, owner in module.named_modules():
            for key, parameter in owner._parameters.items():
                if parameter is None:
                    continue
                source = (owner._parameters, key)
                if id(parameter) in first:
                    self._aliases.append((*source, *first[id(parameter)]))
                else:
                    first[id(parameter)] = source
                    self._sources.append((f"{prefix}.{key}" if prefix else key, *source))

    def parameters(self) -> dict[str, Tensor] | None:
        """``dict(module.named_parameters())``, or None if the module is built otherwise now."""
        for row in self._rows:
            if row.look() != row.seen:
                return None
        for own, key, first_own, first_key in self._aliases:
            if own[key] is not first_own[first_key]:
                return None
        parameters = {name: own[key] for name, own, key in self._sources}
        return parameters if len({*map(id, parameters.values())}) == len(parameters) else None


class _Row:
    """One module's own part of it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = module.__dict__
        self.names = [key for key, value in self.attributes.items() if type(value) in _PLAIN]
        self.children = module._modules
        self.parameters = module._parameters
        self.hooks = hook_dicts(module)
        self.seen = self.look()

    def look(self) -> tuple[Any, ...]:
        read = self.attributes.get
        return (
            type(self.module),
            [read(name) for name in self.names],
            "forward" in self.attributes,
            [*self.children.values()],
            [key for key, parameter in self.parameters.items() if parameter is not None],
            [len(hooks) for hooks in self.hooks],
        )
