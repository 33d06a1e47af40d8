"""What stages of the native kernels cannot be, whatever samples they get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fastmeta.inner_loop.reading.layer_rules import several
from fastmeta.inner_loop.reading.shape_layers import Over

__all__ = ["pooled", "unfit", "unfit_windows", "windows_of"]


def unfit(layer: Any, name: str) -> str | None:
    """Why stages cannot have such a layer, whatever it gets."""
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)):
        if layer.padding_mode != "zeros":
            return f"{name} has a padding mode that the native kernels lack"
        return _unfit_groups(layer, name)
    elif isinstance(layer, Over) and 0 in layer.dims:
        return f"{name} is over samples"
    elif isinstance(layer, (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)) and layer.return_indices:
        return f"{name} returns indices"
    elif isinstance(layer, (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d)):
        return _unfit_pool(layer, name)
    return None


def _unfit_groups(layer: Any, name: str) -> str | None:
    """Vectors are of at most 16 channels: they hold several groups, or groups are whole ones."""
    sizes = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    least, most = sorted(sizes)
    holds_several = 16 % most == 0 and most in (least, 2 * least)
    if layer.groups == 1 or holds_several or (least % 16 == 0 and most % 16 == 0):
        return None
    return (
        f"{name} has groups of {sizes[0]} channels that give {sizes[1]}, and the native kernels "
        "those of 1, 2, 4 or 8 that give as many, twice or half as many, and of whole 16"
    )


def _unfit_pool(layer: Any, name: str) -> str | None:
    if {*several(getattr(layer, "dilation", 1))} != {1} or getattr(layer, "return_indices", False):
        return f"{name} has a dilation or returns indices"
    if getattr(layer, "divisor_override", None) is not None:
        return f"{name} overrides its divisor"
    if {*several(layer.padding)} != {0} and not getattr(layer, "count_include_pad", True):
        return f"{name} leaves its padding out of the means, which the native kernels cannot"
    return None


def windows_of(layer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Windows and strides of a pool, as many of both."""
    window = several(layer.kernel_size)
    stride = window if layer.stride is None else several(layer.stride)
    sides = max(len(window), len(stride))
    return window * (sides // len(window)), stride * (sides // len(stride))


def unfit_windows(
    name: str,
    pixels: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    border: Sequence[int],
    rounds_up: bool,
) -> str | None:
    """Why a pool does not fit so many pixels, or None."""
    if any(2 * b > w for b, w in zip(border, window, strict=True)):
        return f"{name} has padding of more than half its windows"
    if min(pooled(pixels, window, stride, border)) < 1:
        return f"{name} leaves nothing of {[*pixels]} pixels"
    sides = zip(pixels, window, stride, border, strict=True)
    if rounds_up and any((n + 2 * b - w) % s for n, w, s, b in sides):
        return f"{name} has a ceil_mode that matters, which the native kernels lack"
    return None


def pooled(
    pixels: Sequence[int], window: Sequence[int], stride: Sequence[int], border: Sequence[int]
) -> list[int]:
    """Pixels that a pool makes; 0 or less where it does not fit."""
    sides = zip(pixels, window, stride, border, strict=True)
    return [(n + 2 * b - w) // s + 1 for n, w, s, b in sides]
