"""torch.nn.utils.weight_norm, which makes a weight in a hook before each call of its module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.utils.weight_norm import WeightNorm

from fastmeta.functional.forward import has_hooks

__all__ = ["has_other_hooks", "made_by_hooks", "without_made"]


def made_by_hooks(module: nn.Module) -> set[str]:
    """The attributes that such hooks set, each time anew."""
    return {hook.name for hook in module._forward_pre_hooks.values() if type(hook) is WeightNorm}


def has_other_hooks(module: nn.Module) -> bool:
    """`has_hooks`, but for such hooks, of which nothing is left that the forward would not make."""
    own = module._forward_pre_hooks
    if not made_by_hooks(module) or len(made_by_hooks(module)) < len(own):
        return has_hooks(module)
    module._forward_pre_hooks = type(own)()
    try:
        return has_hooks(module)
    finally:
        module._forward_pre_hooks = own


@contextmanager
def without_made(module: nn.Module) -> Iterator[None]:
    """For a block in which what hooks have made is not there, and is put back after it.

    A copy of it would be refused, since it has a history, and a forward that is traced leaves there
    what is no tensor.
    """
    parts = [(vars(part), name) for part in module.modules() for name in made_by_hooks(part)]
    made = [(own, name, own.pop(name)) for own, name in parts if name in own]
    try:
        yield
    finally:
        for own, name in parts:
            own.pop(name, None)
        for own, name, value in made:
            own[name] = value
