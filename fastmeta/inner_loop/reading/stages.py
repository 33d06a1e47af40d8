"""Which modules are stages that the native kernels know, and what they look like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fastmeta.inner_loop.reading.calls import calls_of
from fastmeta.inner_loop.reading.joins import Join
from fastmeta.inner_loop.reading.layers import (
    activation_of,
    is_idle,
    misshapen,
    unknown,
    unlike_parameters,
)
from fastmeta.inner_loop.reading.shape_layers import OfSizes
from fastmeta.inner_loop.reading.stage_builder import ADDERS, StageBuilder
from fastmeta.inner_loop.reading.stage_limits import unfit
from fastmeta.inner_loop.reading.stage_values import NO_BORDER

__all__ = ["Stages", "finished", "never_fits", "stages_of"]

_MAX_STAGES = 256


@dataclass(frozen=True)
class Stages:
    """A module as the native kernels see it, for samples of one shape.

    Attributes:
        stages: the fields of the native side's Stage.
        names: the module's parameters and buffers, in the order that the stages' indices mean.
        sample: the shape of one sample, (C, H, W), (C, L) or (I,).
        shape: of what becomes of it.
        fewest: samples that a task must have: batch norm of one value a channel means nothing.
        squeezes: lone samples would lose their dimension.
        norms: the layers that are batch norms, or stand for some function's, and their stages.
        buffers: of the names; an inner loop reads none.
    """

    stages: tuple[dict[str, Any], ...]
    names: tuple[str, ...]
    sample: tuple[int, ...]
    shape: tuple[int, ...]
    fewest: int
    squeezes: bool = False
    norms: tuple[tuple[int, Any], ...] = ()
    buffers: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        return math.prod(self.shape)


def stages_of(module: nn.Module, sample: Sequence[int]) -> Stages | str:
    """The stages that a module is for samples of a shape, or a sentence saying why it is none."""
    if len(sample) not in (1, 2, 3):
        return f"samples are {list(sample)}: the native kernels take [C, H, W], [C, L] or [I]"
    calls = calls_of(module)
    if isinstance(calls, str):
        return calls
    shapes = misshapen(module, [(call.layer, call.parameters) for call in calls])
    if shapes is not None:
        return shapes
    builder = StageBuilder(module, tuple(sample))
    for call in calls:
        reason = builder.add(call)
        if reason is not None:
            return reason
    return finished(builder)


def never_fits(module: nn.Module) -> str | None:
    """Why stages cannot have the layers, whatever the shape of the samples, or None."""
    calls = calls_of(module)
    if isinstance(calls, str):
        return calls
    layers = [(call, call.layer) for call in calls if not isinstance(call.layer, Join)]
    for call, layer in layers:
        known = type(layer) in (*ADDERS, OfSizes) or is_idle(layer)
        if not known and activation_of(layer) is None:
            return unknown(call.name)
        if (reason := unfit(layer, call.name)) is not None:
            return reason
    own = [name for call, _ in layers for name in call.parameters.values()]
    return unlike_parameters(module, own) or misshapen(
        module, [(layer, call.parameters) for call, layer in layers]
    )


def finished(builder: StageBuilder) -> Stages | str:
    """What a builder has made, or a sentence why that is no network."""
    if not builder.stages:
        return "the module has no layer"
    if builder.at != len(builder.stages) - 1:
        return "the last layer does not make the output"
    if builder.around != NO_BORDER:
        return "what is padded at last goes into no convolution"
    all_read = {stage[key] for stage in builder.stages for key in ("input", "other")}
    if not all_read.issuperset(range(len(builder.stages) - 1)):
        return "nothing but the shape of a layer's result is read"
    whole = [builder.stages[0][key] for key in ("in_c", "in_h", "in_w")]
    for stage in builder.stages:
        own = [stage[key] for key in ("in_c", "in_h", "in_w")]
        read = [own] if stage["input"] == -1 else []
        read += [[stage[key] for key in ("other_c", "other_h", "other_w")]] * (stage["other"] == -1)
        if any(shape != whole for shape in read):
            return "samples are read as they are and flattened"
    if len(builder.stages) > _MAX_STAGES:
        return f"the network has {len(builder.stages)} stages, and the kernels take {_MAX_STAGES}"
    unlike = unlike_parameters(builder.module, builder.names)
    if unlike is not None:
        return unlike
    lone = any(s["norm"] == "batch" and s["h"] * s["w"] == 1 for s in builder.stages)
    return Stages(
        tuple(builder.stages), tuple(builder.names), builder.sample, tuple(builder.said()),
        2 if lone or builder.squeezes else 1, builder.squeezes, tuple(builder.norms),
    )  # fmt: skip
