"""Norms as parts of stages."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import nn

from fastmeta.inner_loop.reading.parameter_calls import BatchNormOfAny, InstanceNormOfAny
from fastmeta.inner_loop.reading.stage_values import Names

if TYPE_CHECKING:
    from fastmeta.inner_loop.reading.stage_builder import StageBuilder

__all__ = ["NORMS"]


def _batch_norm(to: StageBuilder, names: Names, layer: Any, name: str) -> str | None:
    for_images = isinstance(layer, nn.BatchNorm2d)
    if type(layer) is not BatchNormOfAny and for_images != (to.rank == 3):
        return f"{name} gets samples {to.said()}"
    if layer.affine and layer.num_features != to.shape[0]:
        return f"{name} takes {layer.num_features} channels but gets {to.shape[0]}"
    reason = _norm(to, names, layer, name, "batch", 1)
    if reason is None:
        to.norms.append((to.at, layer))
    return reason


def _group_norm(to: StageBuilder, names: Names, layer: nn.GroupNorm, name: str) -> str | None:
    if layer.num_channels != to.shape[0]:
        return f"{name} takes {layer.num_channels} channels but gets {to.shape[0]}"
    return _norm(to, names, layer, name, "group", layer.num_groups)


def _instance_norm(to: StageBuilder, names: Names, layer: Any, name: str) -> str | None:
    unlike = to.unlike(layer, name, nn.InstanceNorm1d)
    if type(layer) is not InstanceNormOfAny and unlike is not None:
        return unlike
    if layer.num_features not in (to.shape[0], None):
        return f"{name} takes {layer.num_features} channels but gets {to.shape[0]}"
    if to.rank == 1 or to.shape[1:] == (1, 1):
        return f"{name} is over single pixels"
    return _norm(to, names, layer, name, "group", to.shape[0])


def _layer_norm(to: StageBuilder, names: Names, layer: nn.LayerNorm, name: str) -> str | None:
    over, whole, samples = [*layer.normalized_shape], math.prod(to.shape), to.said()
    if over == samples:
        groups, scale = 1, "elements"
    elif over == samples[1:]:
        groups, scale = to.shape[0], "pixels"
    else:
        return f"{name} is over {over} of samples {samples}"
    if whole == to.shape[0] and groups == 1:  # as many parameters as channels
        return _put_norm(to, names, layer, name, "group", groups)
    reason = _put_statistics(to, layer, name, "group", groups)
    if reason is None and layer.weight is not None:
        _put_scale(to, names, layer, scale)
    return reason


def _put_scale(to: StageBuilder, names: Names, layer: nn.LayerNorm, scale: str) -> None:
    stage = to.new_stage()
    stage.update(product=scale, weight=to.parameter(names["weight"]))
    if layer.bias is not None:
        stage["bias"] = to.parameter(names["bias"])


def _norm(
    to: StageBuilder, names: Names, layer: Any, name: str, kind: str, groups: int
) -> str | None:
    if to.rank == 1 and to.shape[1:] != (1, 1):
        return f"{name} is over flattened samples {list(to.shape)}"
    return _put_norm(to, names, layer, name, kind, groups)


def _put_norm(
    to: StageBuilder, names: Names, layer: Any, name: str, kind: str, groups: int
) -> str | None:
    reason = _put_statistics(to, layer, name, kind, groups)
    if reason is not None:
        return reason
    for key, own in (("gamma", "weight"), ("beta", "bias")):
        if getattr(layer, own) is not None:
            to.stages[to.at][key] = to.parameter(names[own])
    return None


def _put_statistics(to: StageBuilder, layer: Any, name: str, kind: str, groups: int) -> str | None:
    if type(layer.eps) is not float:
        return f"{name} has an eps that is not a number"
    stage = to.stage_before("norm", "activation", "pool")
    stage.update(norm=kind, groups=groups, eps=layer.eps)
    return None


NORMS: dict[type, Any] = {
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    BatchNormOfAny: _batch_norm,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    InstanceNormOfAny: _instance_norm,
}
