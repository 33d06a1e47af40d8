"""A module's forward on the samples of many tasks, each with statistics of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta.functional.forward import call_module, task_forward
from fastmeta.functional.loss_programs import NO_LOSS
from fastmeta.inner_loop.engines.features import Features, convolutional, unfit_inputs
from fastmeta.inner_loop.loop import InnerLoop

__all__ = ["TaskForward"]


@dataclass(frozen=True)
class TaskForward:
    """``task_forward(module, ...)``, on the native kernels where they are faster.

    It holds as long as the module is built as it was.

    Attributes:
        flat: whether each sample goes through the module by itself.
        native: whether the kernels may run it.
        known: what the kernels make of samples, or why they do not, by shape.
    """

    module: nn.Module
    flat: bool = False
    native: bool = True
    known: dict[torch.Size, Features | str] = field(default_factory=dict, repr=False)

    def __call__(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """[T, n, ...] of samples [T, n, ...], with parameters that all tasks share."""
        features = self._features(x)
        if isinstance(features, str) or features.unfit(parameters, x) is not None:
            return self._by_torch(parameters, x)
        return features(parameters, x)

    def _features(self, x: Tensor) -> Features | str:
        if not self.native:
            return "another engine was asked for"
        unfit = unfit_inputs(x)
        if unfit is not None:
            return unfit
        sample = x.shape[2:]
        if sample not in self.known:
            self.known[sample] = self._found(sample)
        return self.known[sample]

    def _found(self, sample: torch.Size) -> Features | str:
        loop = InnerLoop(self.module, NO_LOSS, 0, 1, ())
        network: Any = convolutional(loop, sample)
        if isinstance(network, str):
            return network
        return Features(loop, network, loop)

    def _by_torch(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        if not self.flat:
            return task_forward(self.module, parameters, x)
        return call_module(self.module, parameters, x.flatten(0, 1)).unflatten(0, x.shape[:2])
