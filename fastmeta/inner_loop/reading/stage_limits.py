"""What stages of the native kernels cannot be, whatever samples they get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fastmeta.inner_loop.reading.layer_rules import several

__all__ = ["stride_as_seen", "unfit", "unfit_windows", "windows_of"]


def unfit(layer: Any, name: str) -> str | None:
    """Why stages cannot have such a layer, whatever it gets."""
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        if layer.groups != 1 or {*layer.dilation} != {1} or layer.padding_mode != "zeros":
            return f"{name} has groups, dilation or a padding mode that the native kernels lack"
        if layer.padding == "same" and any(k % 2 == 0 for k in layer.kernel_size):
            return f"{name} pads an even kernel unevenly"
    elif isinstance(layer, (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)) and layer.return_indices:
        return f"{name} returns indices"
    elif isinstance(layer, (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d)):
        return _unfit_pool(layer, name)
    return None


def _unfit_pool(layer: Any, name: str) -> str | None:
    if {*several(getattr(layer, "dilation", 1))} != {1} or getattr(layer, "return_indices", False):
        return f"{name} has a dilation or returns indices"
    if getattr(layer, "divisor_override", None) is not None:
        return f"{name} overrides its divisor"
    if {*several(layer.padding)} != {0}:
        return f"{name} has padding, which the native kernels lack"
    window, stride = windows_of(layer)
    if any(1 < s < w for s, w in zip(stride, window, strict=True)):
        return _OVERLAP.format(name)
    return None


def windows_of(layer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Windows and strides of a pool, as many of both."""
    window = several(layer.kernel_size)
    stride = window if layer.stride is None else several(layer.stride)
    sides = max(len(window), len(stride))
    return window * (sides // len(window)), stride * (sides // len(stride))


def stride_as_seen(
    pixels: Sequence[int], window: Sequence[int], stride: Sequence[int]
) -> list[int]:
    """Of a pool's windows; a lone one overlaps with none, whatever its stride is."""
    sides = zip(pixels, window, stride, strict=True)
    return [max(s, w) if n - w < s else s for n, w, s in sides]


def unfit_windows(
    name: str, pixels: Sequence[int], window: Sequence[int], stride: Sequence[int], rounds_up: bool
) -> str | None:
    """Why a pool does not fit so many pixels, or None."""
    sides = [*zip(pixels, window, stride, strict=True)]
    if any(n < w for n, w, _ in sides):
        return f"{name} leaves nothing of {[*pixels]} pixels"
    if rounds_up and any((n - w) % s for n, w, s in sides):
        return f"{name} has a ceil_mode that matters, which the native kernels lack"
    if any(s < w for _, w, s in sides):
        return _OVERLAP.format(name)
    return None


_OVERLAP = "{} has windows that overlap"
