"""Convolutions and linear layers as stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from fastmeta.inner_loop.reading.stage_values import NO_BORDER, Names, Taps

if TYPE_CHECKING:
    from fastmeta.inner_loop.reading.stage_builder import StageBuilder

__all__ = ["PRODUCTS"]


def _conv(to: StageBuilder, names: Names, layer: nn.Conv1d | nn.Conv2d, name: str) -> str | None:
    unlike = to.unlike(layer, name, nn.Conv1d)
    if unlike is not None:
        return unlike
    if layer.in_channels != to.shape[0]:
        return f"{name} takes {layer.in_channels} channels but gets {to.shape[0]}"
    above, below, left, right = to.around
    before, behind = (to.sides(sides, 0) for sides in _borders(layer))
    before = before[0] + above, before[1] + left
    behind = behind[0] + below, behind[1] + right
    kernel, stride = to.sides(layer.kernel_size), to.sides(layer.stride)
    to.around = NO_BORDER
    taps = Taps(kernel, stride, to.sides(layer.dilation), before, behind)
    return _product(to, names, layer, name, taps, layer.groups)


def _transposed(to: StageBuilder, names: Names, layer: Any, name: str) -> str | None:
    unlike = to.unlike(layer, name, nn.ConvTranspose1d)
    if unlike is not None:
        return unlike
    if layer.in_channels != to.shape[0]:
        return f"{name} takes {layer.in_channels} channels but gets {to.shape[0]}"
    kernel, stride = to.sides(layer.kernel_size), to.sides(layer.stride)
    dilation, padding = to.sides(layer.dilation), to.sides(layer.padding, 0)
    more = to.sides(layer.output_padding, 0)
    if any(m >= s for m, s in zip(more, stride, strict=True)):
        return f"{name} pads its output by more than its stride"
    sides = zip(to.shape[1:], kernel, stride, dilation, padding, more, strict=True)
    size = [(n - 1) * s - 2 * p + d * (k - 1) + m + 1 for n, k, s, d, p, m in sides]
    taps = Taps(kernel, stride, dilation, padding, padding)
    kind, outputs = "transposed", layer.out_channels
    return _put(to, names, layer, name, taps, kind, outputs, size, layer.groups)


def _linear(to: StageBuilder, names: Names, layer: nn.Linear, name: str) -> str | None:
    if to.rank > 1:
        return f"{name} gets samples {to.said()} that were not flattened"
    if layer.in_features != math.prod(to.shape):
        return f"{name} takes {layer.in_features} inputs but gets {math.prod(to.shape)}"
    return _product(to, names, layer, name, Taps(to.shape[1:]))


def _product(
    to: StageBuilder, names: Names, layer: Any, name: str, taps: Taps, groups: int = 1
) -> str | None:
    outputs, size = layer.weight.shape[0], taps.over(to.shape[1:])
    kind = "grouped" if groups > 1 else "dense"
    return _put(to, names, layer, name, taps, kind, outputs, size, groups)


def _put(
    to: StageBuilder, names: Names, layer: Any, name: str, taps: Taps, kind: str, outputs: int,
    size: Sequence[int], groups: int = 1,
) -> str | None:  # fmt: skip
    if min(outputs, *size) < 1:
        return f"{name} leaves nothing of samples {list(to.shape)}"
    stage = to.new_stage()
    stage.update(
        product=kind, product_groups=groups,
        **{side: tuple(pair) for side, pair in taps._asdict().items()},
        weight=to.parameter(names["weight"]),
        bias=-1 if layer.bias is None else to.parameter(names["bias"]),
    )  # fmt: skip
    to.shape_of_product(stage, outputs, *size)
    return None


def _borders(layer: nn.Conv1d | nn.Conv2d) -> tuple[list[int], list[int]]:
    """Zeros before and behind each side."""
    padding: Any = layer.padding
    if padding == "same":
        around = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [n // 2 for n in around], [n - n // 2 for n in around]
    each = [0 for _ in layer.kernel_size] if padding == "valid" else [*padding]
    return each, each


PRODUCTS: dict[type, Any] = {
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.ConvTranspose1d: _transposed,
    nn.ConvTranspose2d: _transposed,
    nn.Linear: _linear,
}
