"""The layers of a chain below the first one that adapts: the same for every task and step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fastmeta.functional.forward import (
    ELEMENTWISE,
    call_module,
    has_backward_hooks,
    has_hooks,
    task_forward,
)
from fastmeta.tasks import TaskBatch

__all__ = ["Prefix", "split"]

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
        module: the layers.
        names: of their parameters.
        flat: whether each sample goes through them by itself.
    """

    module: nn.Sequential
    names: tuple[str, ...]
    flat: bool

    def features(self, parameters: Mapping[str, Tensor], tasks: TaskBatch) -> TaskBatch:
        """The tasks with their inputs run through the layers: [T, S, ...] and [T, Q, ...]."""
        own = {name: parameters[name] for name in self.names}
        support = self._run(own, tasks.support_x)
        if tasks.query_x is tasks.support_x:
            return tasks.with_inputs(support, support)
        return tasks.with_inputs(support, self._run(own, tasks.query_x))

    def _run(self, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
        if not self.flat:
            return task_forward(self.module, own, x)
        return call_module(self.module, own, x.flatten(0, 1)).unflatten(0, x.shape[:2])


def split(module: nn.Module, adapted: tuple[str, ...]) -> tuple[Prefix, nn.Sequential] | None:
    """A chain cut before its first adapting child: (prefix, rest); None where there is no prefix.

    Both keep the children's names, so parameters are found under the same names.
    """
    if type(module) is not nn.Sequential or has_hooks(module) or has_backward_hooks(module):
        return None
    children = list(module._modules.items())
    adapting = {name.split(".")[0] for name in adapted}
    cut = next((i for i, (name, _) in enumerate(children) if name in adapting), 0)
    if cut == 0:
        return None
    below, rest = (nn.Sequential(OrderedDict(part)) for part in (children[:cut], children[cut:]))
    # A parameter tied across the cut is known under its name in the prefix alone.
    if set(_names(rest)) - set(_names(module)):
        return None
    return Prefix(below, _names(below), _sample_by_sample(below)), rest


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
