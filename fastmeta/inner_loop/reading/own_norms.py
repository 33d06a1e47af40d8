"""Batch norms as a call of their module has them, not as an inner loop does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fastmeta.inner_loop.reading.stages import Stages

__all__ = ["Learning", "with_own_norms"]


class Learning(NamedTuple):
    """A batch norm that keeps running statistics of what goes through it.

    Attributes:
        stage: whose norm it is.
        norm: the layer.
        pixels: numbers of a channel that a sample brings.
    """

    stage: int
    norm: Any
    pixels: int

    def learn(self, moments: Tensor, samples: int) -> None:
        """Update the statistics as PyTorch's forward does.

        Args:
            moments: [2, C], mean and ``1 / sqrt(variance + eps)`` of the batch.
            samples: in the batch; with the pixels more than one number.
        """
        norm, count = self.norm, samples * self.pixels
        with torch.no_grad():
            share = norm.momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
            if share is None:
                tracked = norm.num_batches_tracked
                share = 0.0 if tracked is None else 1 / float(tracked)
            mean, scale = moments
            variance = (scale**-2 - norm.eps).clamp_(min=0) * (count / (count - 1))
            for running, now in ((norm.running_mean, mean), (norm.running_var, variance)):
                running.mul_(1 - share).add_(now, alpha=share)


def with_own_norms(
    module: nn.Module, stages: Stages
) -> tuple[Stages, tuple[Learning, ...]] | str:
    """The stages with norms in eval() by their running statistics, and those that learn theirs.

    A sentence where a norm keeps statistics and is no stage's.
    """
    names = {id(buffer): name for name, buffer in module.named_buffers()}
    kept = {id(part) for part in module.modules() if _keeps_statistics(part)}
    if not kept <= {id(norm) for _, norm in stages.norms}:
        return "a norm keeps running statistics that the native kernels do not"
    parts = {id(part) for part in module.modules()}
    fields, read = [dict(stage) for stage in stages.stages], [*stages.names]
    learning = []
    for at, norm in stages.norms:
        if id(norm) not in parts:
            return "a function is its batch norm, and may have statistics of its own"
        if id(norm) not in kept:
            continue
        if norm.training:
            learning.append(Learning(at, norm, fields[at]["h"] * fields[at]["w"]))
            continue
        fields[at].update(norm="running", mean=len(read), variance=len(read) + 1)
        read += [names[id(norm.running_mean)], names[id(norm.running_var)]]
    buffers = (*stages.buffers, *read[len(stages.names) :])
    return replace(stages, stages=tuple(fields), names=tuple(read), buffers=buffers), (*learning,)


def _keeps_statistics(part: nn.Module) -> bool:
    return isinstance(part, _NormBase) and part.running_mean is not None
