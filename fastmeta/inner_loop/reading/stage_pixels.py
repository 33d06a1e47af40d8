"""Pools, parts of images, zeros around them, repeated pixels and other shapes, as stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from fastmeta.inner_loop.reading.layer_rules import several
from fastmeta.inner_loop.reading.shape_layers import (
    Largest,
    Mean,
    Over,
    Padded,
    Part,
    Picked,
    Repeated,
    Reshaped,
    Viewed,
    inferred,
    place_of,
    slices,
    unflattened,
    whole,
)
from fastmeta.inner_loop.reading.stage_limits import pooled, unfit_windows, windows_of
from fastmeta.inner_loop.reading.stage_values import Names

if TYPE_CHECKING:
    from fastmeta.inner_loop.reading.stage_builder import StageBuilder

__all__ = ["PADDINGS", "PIXELS"]


def _max_pool(to: StageBuilder, names: Names, layer: Any, name: str) -> str | None:
    return to.unlike(layer, name, nn.MaxPool1d) or _pool(to, layer, name, "max")


def _average_pool(to: StageBuilder, names: Names, layer: Any, name: str) -> str | None:
    return to.unlike(layer, name, nn.AvgPool1d) or _pool(to, layer, name, "average")


def _adaptive_pool(to: StageBuilder, names: Names, layer: Any, name: str) -> str | None:
    of_sequences = (nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d)
    unlike = to.unlike(layer, name, of_sequences)
    if unlike is not None:
        return unlike
    largest = isinstance(layer, (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d))
    pixels, sides = to.shape[1:], to.sides(layer.output_size)
    wanted = [n if k is None else k for k, n in zip(sides, pixels, strict=True)]
    if any(k < 1 or n % k for k, n in zip(wanted, pixels, strict=True)):
        return f"{name} makes {wanted} of {[*pixels]} pixels, in windows that are not alike"
    window = [n // k for k, n in zip(wanted, pixels, strict=True)]
    _put_parts(to, "max" if largest else "average", window)
    return None


def _over(to: StageBuilder, names: Names, layer: Over, name: str) -> str | None:
    dims = {place_of(dim, to.rank) for dim in layer.dims}
    if not dims or 1 in dims:
        return f"{name} is over something else than all pixels of a row, a column or an image"
    sides = {2, 3} if to.rank == 2 else dims
    window = [n if d in sides else 1 for d, n in enumerate(to.shape[1:], start=2)]
    _put_parts(to, "max" if isinstance(layer, Largest) else "average", window)
    to.rank -= 0 if layer.keepdim else len(dims)
    return None


def _pool(to: StageBuilder, layer: Any, name: str, kind: str) -> str | None:
    window, stride = map(to.sides, windows_of(layer))
    border = to.sides(layer.padding, 0)
    reason = unfit_windows(name, to.shape[1:], window, stride, border, layer.ceil_mode)
    if reason is None:
        out = pooled(to.shape[1:], window, stride, border)
        _put_pool(to, kind, window, stride, out, border, border)
    return reason


def _put_parts(to: StageBuilder, kind: str, window: Sequence[int]) -> None:
    """Windows side by side."""
    out = [n // w for n, w in zip(to.shape[1:], window, strict=True)]
    _put_pool(to, kind, window, window, out)


def _put_pool(
    to: StageBuilder, kind: str, window: Any, stride: Any, out: Any, before: Any = (0, 0),
    behind: Any = (0, 0),
) -> None:  # fmt: skip
    if {*window, *stride} == {1} and {*before, *behind} == {0}:
        return
    to.stage_before("pool").update(
        pool=kind, window=tuple(window), pool_stride=tuple(stride),
        pool_before=tuple(before), pool_behind=tuple(behind), out_h=out[0], out_w=out[1],
    )  # fmt: skip
    to.shape = (to.shape[0], *out)


def _pad(to: StageBuilder, names: Names, layer: Padded, name: str) -> str | None:
    if to.rank == 1 or len(layer.around) > 2 * (to.rank - 1) or len(layer.around) % 2:
        return f"{name} pads something else than pixels"
    if any(n < 0 for n in layer.around):
        return f"{name} leaves out pixels"
    last, others = layer.around[:2], layer.around[2:4] or (0, 0)
    sides = (*others, *last)
    if to.rank == 2 and to.shape[1] != 1:  # a sequence that is one pixel wide
        sides = (*last, *others)
    to.around = tuple(a + b for a, b in zip(to.around, sides, strict=True))
    return None


def _pad_zeros(to: StageBuilder, names: Names, layer: Any, name: str) -> str | None:
    if getattr(layer, "value", 0) != 0:
        return f"{name} pads with something else than zeros"
    return _pad(to, names, Padded(several(layer.padding)), name)


def _pick(to: StageBuilder, names: Names, layer: Picked, name: str) -> str | None:
    if to.rank == 1:
        return f"{name} picks some of a row's numbers"
    if to.rank == 2 and 1 not in to.shape[1:]:
        return f"{name} gets samples {to.said()}"
    (channels, channel_goes), *sides = slices(layer.places, to.said())
    if channel_goes or channels.step != 1 or not channels:
        return f"{name} picks a channel by itself, or some that are not side by side"
    if to.rank == 2:
        sides.insert(0 if to.shape[1] == 1 else 1, (range(1), False))
    if any(at.step < 1 or not at for at, _ in sides):
        return f"{name} picks no pixels, or turns them round"
    _put_channels(to, channels)
    (rows, row_goes), (columns, column_goes) = sides
    out = len(rows), len(columns)
    behind = [at[-1] + 1 - n for (at, _), n in zip(sides, to.shape[1:], strict=True)]
    before, steps = (-rows.start, -columns.start), (rows.step, columns.step)
    _put_pool(to, "average", (1, 1), steps, out, before, behind)
    to.rank -= row_goes + column_goes
    return None


def _part(to: StageBuilder, names: Names, layer: Part, name: str) -> str | None:
    flat = to.rank == 1 and to.shape[1:] != (1, 1)
    if flat or place_of(layer.dim, to.rank) != 1:
        return f"{name} cuts something else than the channels"
    sizes = layer.sizes(to.shape[0])
    if sum(sizes) != to.shape[0] or not all(size > 0 for size in sizes):
        return f"{name} makes {sizes} of {to.shape[0]} channels"
    if not -len(sizes) <= layer.at < len(sizes):
        return f"{name} makes {len(sizes)} pieces"
    at = layer.at % len(sizes)
    begin = sum(sizes[:at])
    _put_channels(to, range(begin, begin + sizes[at]))
    return None


def _glu(to: StageBuilder, names: Names, layer: nn.GLU, name: str) -> str | None:
    """One half of the channels times the sigmoid of the other."""
    both = to.here(False)
    for at in (1, 0):
        to.go_to(both)
        reason = _part(to, names, Part(layer.dim, at, lambda n: [n // 2] * 2), name)
        if reason is not None:
            return reason
        if at == 1:
            to.activate(("sigmoid", 0.0, 0.0))
            gate = to.here(False)
    to.put_join("multiply", gate)
    return None


def _hard_swish(to: StageBuilder, names: Names, layer: nn.Hardswish, name: str) -> str | None:
    """x relu6(x + 3) / 6: Howard et al. 2019, section 5.2."""
    x = to.here(False)
    to.go_to(x)
    to.activate(("clamp", -3.0, 3.0))
    to.activate(("affine", 1 / 6, 0.5))
    to.put_join("multiply", x)
    return None


def _put_channels(to: StageBuilder, taken: range) -> None:
    if len(taken) == to.shape[0]:
        return
    to.new_stage().update(join="pick", other_c=taken.start)
    to.shape_of_product(to.stages[-1], len(taken), *to.shape[1:])


def _repeat(to: StageBuilder, names: Names, layer: Repeated, name: str) -> str | None:
    if to.rank == 1:
        return f"{name} gets flat samples"
    pixels = to.shape[1:]
    if layer.size is None:
        sides = zip(pixels, to.sides(layer.factor), strict=True)
        wanted = [n * factor for n, factor in sides]
    else:
        given = zip(pixels, to.sides(layer.size, None), strict=True)
        wanted = [n if size is None else size for n, size in given]
    if any(k < n or k % n for k, n in zip(wanted, pixels, strict=True)):
        return f"{name} makes {wanted} of {[*pixels]} pixels"
    to.new_stage().update(join="repeat")
    to.shape_of_product(to.stages[-1], to.shape[0], *map(int, wanted))
    return None


def _upsample(to: StageBuilder, names: Names, layer: nn.Upsample, name: str) -> str | None:
    if layer.mode not in ("nearest", "nearest-exact"):
        return f"{name} interpolates between pixels"
    return _repeat(to, names, Repeated(layer.scale_factor, layer.size), name)


# ---- shapes --------------------------------------------------------------------------------------


def _flatten(to: StageBuilder, names: Names, layer: nn.Flatten, name: str) -> str | None:
    return _view(to, whole(to.said(), layer.start_dim, layer.end_dim), name)


def _reshape(to: StageBuilder, names: Names, layer: Reshaped, name: str) -> str | None:
    return _view(to, inferred(layer.sample, math.prod(to.shape)), name)


def _viewed(to: StageBuilder, names: Names, layer: Viewed, name: str) -> str | None:
    to.squeezes = to.squeezes or layer.squeezes
    return _view(to, layer.shape(to.said()), name)


def _unflatten(to: StageBuilder, names: Names, layer: nn.Unflatten, name: str) -> str | None:
    return _viewed(to, names, unflattened(layer.dim, layer.unflattened_size), name)


def _view(to: StageBuilder, wanted: Sequence[int], name: str) -> str | None:
    given = to.said()
    if wanted == given:
        return None
    if not 1 <= len(wanted) <= 3:
        return f"{name} makes {wanted} of samples {given}"
    if to.at < 0:
        to.go_to(to.input_of(wanted))
        return None
    seen = to.here(True)._replace(rank=len(wanted)).seen
    if seen != wanted and not (to.rank == 1 and to.spread(wanted)):
        return f"{name} makes {wanted} of what a layer gives, {given}"
    to.rank = len(wanted)
    return None


PADDINGS = nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d
PIXELS: dict[type, Any] = {
    nn.MaxPool1d: _max_pool,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool1d: _average_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool1d: _adaptive_pool,
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    nn.AdaptiveMaxPool1d: _adaptive_pool,
    nn.AdaptiveMaxPool2d: _adaptive_pool,
    Mean: _over,
    Largest: _over,
    Padded: _pad,
    **dict.fromkeys(PADDINGS, _pad_zeros),
    Part: _part,
    Picked: _pick,
    Repeated: _repeat,
    nn.GLU: _glu,
    nn.Hardswish: _hard_swish,
    nn.Upsample: _upsample,
    nn.UpsamplingNearest2d: _upsample,
    nn.Flatten: _flatten,
    nn.Unflatten: _unflatten,
    Reshaped: _reshape,
    Viewed: _viewed,
}
