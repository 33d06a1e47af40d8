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

    def fits(self, dtype: torch.dtype, channels: int) -> bool:
        """Whether the statistics are such that PyTorch would update them."""
        return _are_plain(self.norm, dtype, channels)

    def learn(self, moments: Tensor, samples: int) -> None:
        """Update the statistics as PyTorch's forward does.

        Args:
            moments: [2, C], mean and variance of the batch.
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
            mean, variance = moments
            unbiased = variance * (count / (count - 1))
            for running, now in ((norm.running_mean, mean), (norm.running_var, unbiased)):
                # .data: as in PyTorch no graph that holds them takes this for a change.
                running.data.mul_(1 - share).add_(now, alpha=share)


def with_own_norms(
    module: nn.Module, twin: nn.Module, stages: Stages, dtype: torch.dtype
) -> tuple[Stages, tuple[Learning, ...]] | str:
    """The stages with norms in eval() by their running statistics, and those that learn theirs.

    twin: a copy of the module, of which the stages were read.

    Returns:
        A sentence where a norm keeps statistics and is no stage's, or of another kind than samples
        of `dtype` need.
    """
    names = {id(part): name for name, part in twin.named_modules()}
    own = {name: part for name, part in module.named_modules() if _keeps_statistics(part)}
    norms = [(at, names.get(id(norm))) for at, norm in stages.norms]
    if any(name is None for _, name in norms):
        return "a function is its batch norm, and may have statistics of its own"
    if not own.keys() <= {name for _, name in norms}:
        return "a norm keeps running statistics that the native kernels do not"
    buffers = {id(buffer): name for name, buffer in module.named_buffers()}
    fields, read, learning = [dict(stage) for stage in stages.stages], [*stages.names], []
    for at, name in norms:
        norm: Any = own.get(str(name))
        if norm is None:
            continue
        if not _are_plain(norm, dtype, fields[at]["c"]):
            return "running statistics are not one number a channel, of the inputs' dtype"
        if not norm.training:
            fields[at].update(norm="running", mean=len(read), variance=len(read) + 1)
            read += [buffers[id(norm.running_mean)], buffers[id(norm.running_var)]]
        elif norm.track_running_stats:
            learning.append(Learning(at, norm, fields[at]["h"] * fields[at]["w"]))
    found = (*stages.buffers, *read[len(stages.names) :])
    return replace(stages, stages=tuple(fields), names=tuple(read), buffers=found), (*learning,)


def _keeps_statistics(part: nn.Module) -> bool:
    if not isinstance(part, _NormBase):
        return False
    return part.running_mean is not None or part.running_var is not None


def _are_plain(norm: Any, dtype: torch.dtype, channels: int) -> bool:
    statistics = (norm.running_mean, norm.running_var)
    return all(
        type(own) is Tensor and own.dtype is dtype and own.shape == (channels,)
        and own.is_contiguous() and not own.requires_grad and own.device.type == "cpu"
        for own in statistics
    )  # fmt: skip
