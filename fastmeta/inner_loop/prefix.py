"""What of a forward lies below all that adapts: the same for every task and step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fastmeta.functional.forward import (
    ELEMENTWISE,
    has_backward_hooks,
    has_hooks,
)
from fastmeta.inner_loop.engines.task_forward import TaskForward
from fastmeta.inner_loop.reading.cuts import halves
from fastmeta.tasks import TaskBatch

__all__ = ["Prefix", "split", "split_inputs"]

# Layers that treat each sample by itself, so that all tasks' samples can be one batch.
_SAMPLE_BY_SAMPLE = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.LayerNorm, nn.GroupNorm,
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, *ELEMENTWISE,
)  # fmt: skip


@dataclass(frozen=True)
class Prefix:
    """The layers below the inner loop.

    Attributes:
        forward: runs the layers.
        names: of their parameters.
    """

    forward: TaskForward
    names: tuple[str, ...]

    def features(self, parameters: Mapping[str, Tensor], tasks: TaskBatch) -> TaskBatch:
        """The tasks with their inputs run through the layers: [T, S, ...] and [T, Q, ...]."""
        own = {name: parameters[name] for name in self.names}
        support = self.forward(own, tasks.support_x)
        if tasks.query_x is tasks.support_x:
            return tasks.with_inputs(support, support)
        return tasks.with_inputs(support, self.forward(own, tasks.query_x))


def split(
    module: nn.Module, adapted: tuple[str, ...], native: bool = True
) -> tuple[Prefix, nn.Module] | None:
    """A module cut before what adapts first: (prefix, rest); None where there is no prefix.

    Both keep the module's names, so parameters are found under the same names.
    """
    if has_hooks(module) or has_backward_hooks(module):
        return None
    return _prefix(module, adapted, _halves(module, adapted), native)


def split_inputs(
    module: nn.Module, adapted: tuple[str, ...], native: bool = True
) -> tuple[Prefix, nn.Module] | None:
    """`split` before the first parameter, of a forward that is written by hand."""
    if type(module) is nn.Sequential or has_backward_hooks(module):
        return None
    return _prefix(module, adapted, halves(module, lambda name: True), native)


def _prefix(
    module: nn.Module, adapted: tuple[str, ...], parts: tuple[nn.Module, nn.Module] | None,
    native: bool,
) -> tuple[Prefix, nn.Module] | None:  # fmt: skip
    if parts is None:
        return None
    below, rest = parts
    names = set(_names(rest))
    # A parameter tied across the cut is known under its name in the prefix alone.
    if not names <= set(_names(module)) or not names.issuperset(adapted):
        return None
    return Prefix(TaskForward(below, _sample_by_sample(below), native), _names(below)), rest


def _halves(module: nn.Module, adapted: tuple[str, ...]) -> tuple[nn.Module, nn.Module] | None:
    if type(module) is not nn.Sequential:
        parts = halves(module, adapted.__contains__)
        return parts if parts is not None and _names(parts[0]) else None
    children = list(module._modules.items())
    adapting = {name.split(".")[0] for name in adapted}
    cut = next((i for i, (name, _) in enumerate(children) if name in adapting), 0)
    if cut == 0:
        return None
    below, rest = (nn.Sequential(OrderedDict(part)) for part in (children[:cut], children[cut:]))
    return below, rest


def _names(module: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, _ in module.named_parameters())


def _sample_by_sample(module: nn.Module) -> bool:
    if has_hooks(module):
        return False
    if type(module) is nn.Sequential:
        return all(_sample_by_sample(child) for child in module)
    if type(module) is nn.Flatten:
        return module.start_dim >= 1
    return type(module) in _SAMPLE_BY_SAMPLE
