"""The calls of a forward as stages of the native kernels, one after another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from fastmeta.inner_loop.reading.affine import Activation, composed
from fastmeta.inner_loop.reading.calls import Call
from fastmeta.inner_loop.reading.joins import Join
from fastmeta.inner_loop.reading.layer_rules import several
from fastmeta.inner_loop.reading.layers import activation_of, is_idle, unknown
from fastmeta.inner_loop.reading.parameter_calls import BatchNormOfAny, InstanceNormOfAny
from fastmeta.inner_loop.reading.shape_layers import (
    Mean,
    OfSizes,
    Padded,
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
from fastmeta.inner_loop.reading.stage_limits import (
    pooled,
    unfit,
    unfit_windows,
    windows_of,
)
from fastmeta.inner_loop.reading.trace import Unknown

__all__ = ["ADDERS", "StageBuilder"]

Names = Mapping[str, str]  # the module's, of a layer's parameters by its own
_NO_STAGE = -2
_NO_BORDER = (0, 0, 0, 0)


class _Value(NamedTuple):
    """What a call gives.

    Attributes:
        at: the stage that gives it, -1 for the module's input.
        shape: C, H, W.
        rank: dimensions that the module sees: C, H, W; or C and all pixels; or all in one.
        open: no call but the next one reads it, so that one may become a part of the stage.
        around: zeros before and behind height and width, which only a convolution takes.
    """

    at: int
    shape: tuple[int, ...]
    rank: int
    open: bool
    around: tuple[int, ...] = _NO_BORDER

    @property
    def seen(self) -> list[int]:
        """The shape of a sample as PyTorch has it."""
        c, h, w = self.shape
        above, below, left, right = self.around
        shape = c, h + above + below, w + left + right
        return [*shape[: self.rank - 1], math.prod(shape[self.rank - 1 :])]


class _Taps(NamedTuple):
    """Of a kernel over an image, height and width of each."""

    kernel: Sequence[int]
    stride: Sequence[int] = (1, 1)
    dilation: Sequence[int] = (1, 1)
    before: Sequence[int] = (0, 0)
    behind: Sequence[int] = (0, 0)

    def over(self, pixels: Sequence[int]) -> list[int]:
        """Pixels that it makes; 0 where it does not fit."""
        sides = zip(pixels, *self, strict=True)
        free = [(n + b + e - d * (k - 1) - 1, s) for n, k, s, d, b, e in sides]
        return [n // s + 1 if n >= 0 else 0 for n, s in free]


_PADDINGS = nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d


def _takes_border(layer: Any) -> bool:
    return isinstance(layer, (nn.Conv1d, nn.Conv2d, Padded, *_PADDINGS)) or is_idle(layer)


def _borders(layer: nn.Conv1d | nn.Conv2d) -> tuple[list[int], list[int]]:
    """Zeros before and behind each side."""
    padding: Any = layer.padding
    if padding == "same":
        around = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [n // 2 for n in around], [n - n // 2 for n in around]
    each = [0 for _ in layer.kernel_size] if padding == "valid" else [*padding]
    return each, each


@dataclass
class StageBuilder:
    """Sequences [C, L] are images one pixel high, or one wide where they come of other images.

    Attributes:
        squeezes: a lone sample would lose its dimension.
    """

    module: nn.Module
    sample: tuple[int, ...]
    stages: list[dict[str, Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    values: list[_Value] = field(default_factory=list)
    squeezes: bool = False

    def __post_init__(self) -> None:
        self.input = self._input_of(self.sample)
        self._go_to(self.input)

    def _input_of(self, sample: Sequence[int]) -> _Value:
        """The module's input, read in that shape."""
        channels, *sides = sample
        missing = (1,) * (2 - len(sides))
        return _Value(-1, (channels, *missing, *sides), len(sample), True)

    def add(self, call: Call) -> str | None:
        """Take one more call, or say why not."""
        sources = [self.values[i] if i >= 0 else self.input for i in call.inputs]
        source = sources[0]
        if call.in_place and not source.open:
            return f"{call.name} changes in place what others read"
        self._go_to(source)
        if any(s.around != _NO_BORDER for s in sources) and not _takes_border(call.layer):
            return f"{call.name} gets what is padded, as convolutions alone do"
        if isinstance(call.layer, Join):
            reason = self._join(call.layer, sources)
        elif type(call.layer) is OfSizes:
            reason = self._sized(call.layer, call)
        else:
            reason = self._layer(call.parameters, call.layer, call.name)
        open_still = source.open or self.at != source.at
        self.values.append(self._here(call.alone and open_still)._replace(around=self.around))
        return reason

    def _sized(self, sized: OfSizes, call: Call) -> str | None:
        shapes = [(self.values[i] if i >= 0 else self.input).seen for i in call.sizes]
        try:
            layers = sized.layers(shapes)
        except Unknown as unreadable:
            return str(unreadable)
        for layer, names in layers:
            reason = self._layer(names, layer, call.name)
            if reason is not None:
                return reason
        return None

    def _layer(self, names: Names, layer: nn.Module, name: str) -> str | None:
        if is_idle(layer):
            return None
        add = ADDERS.get(type(layer))
        if add is not None:
            try:
                return unfit(layer, name) or add(self, names, layer, name)
            except ValueError as error:
                return f"{name} is of {error}"
        activation = activation_of(layer)
        if activation is None:
            return unknown(name)
        self._activate(activation)
        return None

    def _activate(self, activation: Activation) -> None:
        here = self._stage_before("pool")
        both = composed(here["activation"], activation)
        if both is None:
            here, both = self._stage_before("activation", "pool"), activation
        here["activation"] = both

    def _go_to(self, value: _Value) -> None:
        self.at, self.shape, self.rank, self.open, self.around = value

    def _here(self, is_open: bool) -> _Value:
        return _Value(self.at, self.shape, self.rank, is_open)

    # ---- joins -----------------------------------------------------------------------------------

    def _join(self, join: Join, sources: Sequence[_Value]) -> str | None:
        for other in sources[1:]:
            if join.kind == "channels":
                reason = self._beside(join, other)
            else:
                reason = self._together(join, other)
            if reason is not None:
                return reason
        return None

    def _beside(self, join: Join, other: _Value) -> str | None:
        if (self.rank, *self.shape[1:]) != (other.rank, *other.shape[1:]):
            return f"{join.name} is of samples {self.said()} and {other.seen}"
        try:
            is_of_channels = place_of(join.dim, self.rank) == 1
        except ValueError as error:
            return f"{join.name} is along {error}"
        if not is_of_channels or (self.rank == 1 and self.shape[1:] != (1, 1)):
            return f"{join.name} is along something else than the channels"
        channels, *sides = self.shape
        self._put_join("channels", other)
        self._shape_of_product(self.stages[-1], channels + other.shape[0], *sides)
        return None

    def _together(self, join: Join, other: _Value) -> str | None:
        own = self._here(False)
        if join.kind == "difference":
            self._go_to(other._replace(open=False))
            self._activate(("affine", -1.0, 0.0))
            other = self._here(False)
            self._go_to(own)
        smaller, larger = sorted((own, other), key=lambda value: (math.prod(value.shape), value.at))
        fits = all(n in (1, m) for n, m in zip(smaller.shape, larger.shape, strict=True))
        flat = own.rank == 1 and smaller.shape[1:] != larger.shape[1:]
        if own.rank != other.rank or not fits or flat:
            return f"{join.name} is of samples {own.seen} and {other.seen}"
        if join.in_place and own.shape != larger.shape:
            return f"{join.name} in place is of samples {own.seen} and {other.seen}"
        self._go_to(larger)
        self._put_join("multiply" if join.kind == "multiply" else "sum", smaller)
        return None

    def _put_join(self, kind: str, other: _Value) -> None:
        c, h, w = other.shape
        self._new_stage().update(join=kind, other=other.at, other_c=c, other_h=h, other_w=w)

    # ---- products ------------------------------------------------------------------------------

    def _conv(self, names: Names, layer: nn.Conv1d | nn.Conv2d, name: str) -> str | None:
        unlike = self._unlike(layer, name, nn.Conv1d)
        if unlike is not None:
            return unlike
        if layer.in_channels != self.shape[0]:
            return f"{name} takes {layer.in_channels} channels but gets {self.shape[0]}"
        kind = "depthwise" if layer.groups > 1 else "dense"
        if kind == "depthwise" and not layer.in_channels == layer.out_channels == layer.groups:
            return f"{name} has {layer.groups} groups of several channels"
        above, below, left, right = self.around
        before, behind = (self._sides(sides, 0) for sides in _borders(layer))
        before = before[0] + above, before[1] + left
        behind = behind[0] + below, behind[1] + right
        kernel, stride = self._sides(layer.kernel_size), self._sides(layer.stride)
        self.around = _NO_BORDER
        taps = _Taps(kernel, stride, self._sides(layer.dilation), before, behind)
        return self._product(names, layer, name, taps, kind)

    def _transposed(self, names: Names, layer: Any, name: str) -> str | None:
        """Of the input with zeros between its pixels, by the taps in reverse order."""
        unlike = self._unlike(layer, name, nn.ConvTranspose1d)
        if unlike is not None:
            return unlike
        if layer.in_channels != self.shape[0]:
            return f"{name} takes {layer.in_channels} channels but gets {self.shape[0]}"
        kernel, stride = self._sides(layer.kernel_size), self._sides(layer.stride)
        dilation, padding = self._sides(layer.dilation), self._sides(layer.padding, 0)
        more = self._sides(layer.output_padding, 0)
        sides = zip(kernel, dilation, padding, strict=True)
        before = [d * (k - 1) - p for k, d, p in sides]
        if min(before) < 0:
            return f"{name} has more padding than its kernel reaches"
        if max(stride) > 1:
            c, h, w = self.shape
            self._new_stage().update(join="insert", stride=tuple(stride))
            pixels = [(n - 1) * s + 1 for n, s in zip((h, w), stride, strict=True)]
            self._shape_of_product(self.stages[-1], c, *pixels)
        behind = [b + m for b, m in zip(before, more, strict=True)]
        taps = _Taps(kernel, (1, 1), dilation, before, behind)
        reason = self._product(names, layer, name, taps, outputs=layer.out_channels)
        if reason is None:
            self.stages[-1]["turned"] = True
        return reason

    def _linear(self, names: Names, layer: nn.Linear, name: str) -> str | None:
        if self.rank > 1:
            return f"{name} gets samples {self.said()} that were not flattened"
        if layer.in_features != math.prod(self.shape):
            return f"{name} takes {layer.in_features} inputs but gets {math.prod(self.shape)}"
        return self._product(names, layer, name, _Taps(self.shape[1:]))

    def _product(
        self, names: Names, layer: Any, name: str, taps: _Taps, kind: str = "dense",
        outputs: int | None = None,
    ) -> str | None:  # fmt: skip
        c = layer.weight.shape[0] if outputs is None else outputs
        size = taps.over(self.shape[1:])
        if min(c, *size) < 1:
            return f"{name} leaves nothing of samples {list(self.shape)}"
        stage = self._new_stage()
        stage.update(
            product=kind, **{side: tuple(pair) for side, pair in taps._asdict().items()},
            weight=self._parameter(names["weight"]),
            bias=-1 if layer.bias is None else self._parameter(names["bias"]),
        )  # fmt: skip
        self._shape_of_product(stage, c, *size)
        return None

    # ---- norms, pools ----------------------------------------------------------------------------

    def _batch_norm(self, names: Names, layer: Any, name: str) -> str | None:
        for_images = isinstance(layer, nn.BatchNorm2d)
        if type(layer) is not BatchNormOfAny and for_images != (self.rank == 3):
            return f"{name} gets samples {self.said()}"
        if layer.affine and layer.num_features != self.shape[0]:
            return f"{name} takes {layer.num_features} channels but gets {self.shape[0]}"
        return self._norm(names, layer, name, "batch", 1)

    def _group_norm(self, names: Names, layer: nn.GroupNorm, name: str) -> str | None:
        if layer.num_channels != self.shape[0]:
            return f"{name} takes {layer.num_channels} channels but gets {self.shape[0]}"
        return self._norm(names, layer, name, "group", layer.num_groups)

    def _instance_norm(self, names: Names, layer: Any, name: str) -> str | None:
        unlike = self._unlike(layer, name, nn.InstanceNorm1d)
        if type(layer) is not InstanceNormOfAny and unlike is not None:
            return unlike
        if layer.num_features not in (self.shape[0], None):
            return f"{name} takes {layer.num_features} channels but gets {self.shape[0]}"
        if self.rank == 1 or self.shape[1:] == (1, 1):
            return f"{name} is over single pixels"
        return self._norm(names, layer, name, "group", self.shape[0])

    def _layer_norm(self, names: Names, layer: nn.LayerNorm, name: str) -> str | None:
        over, whole, samples = [*layer.normalized_shape], math.prod(self.shape), self.said()
        if over == samples:
            groups, scale = 1, "elements"
        elif over == samples[1:]:
            groups, scale = self.shape[0], "pixels"
        else:
            return f"{name} is over {over} of samples {samples}"
        if whole == self.shape[0] and groups == 1:  # as many parameters as channels
            return self._put_norm(names, layer, name, "group", groups)
        reason = self._put_statistics(layer, name, "group", groups)
        if reason is None and layer.weight is not None:
            self._put_scale(names, layer, scale)
        return reason

    def _put_scale(self, names: Names, layer: nn.LayerNorm, scale: str) -> None:
        stage = self._new_stage()
        stage.update(product=scale, weight=self._parameter(names["weight"]))
        if layer.bias is not None:
            stage["bias"] = self._parameter(names["bias"])

    def _norm(self, names: Names, layer: Any, name: str, kind: str, groups: int) -> str | None:
        if self.rank == 1 and self.shape[1:] != (1, 1):
            return f"{name} is over flattened samples {list(self.shape)}"
        return self._put_norm(names, layer, name, kind, groups)

    def _put_norm(self, names: Names, layer: Any, name: str, kind: str, groups: int) -> str | None:
        reason = self._put_statistics(layer, name, kind, groups)
        if reason is not None:
            return reason
        for key, own in (("gamma", "weight"), ("beta", "bias")):
            if getattr(layer, own) is not None:
                self.stages[self.at][key] = self._parameter(names[own])
        return None

    def _put_statistics(self, layer: Any, name: str, kind: str, groups: int) -> str | None:
        if type(layer.eps) is not float:
            return f"{name} has an eps that is not a number"
        stage = self._stage_before("norm", "activation", "pool")
        stage.update(norm=kind, groups=groups, eps=layer.eps)
        return None

    def _max_pool(self, names: Names, layer: nn.MaxPool1d | nn.MaxPool2d, name: str) -> str | None:
        return self._unlike(layer, name, nn.MaxPool1d) or self._pool(layer, name, "max")

    def _average_pool(self, names: Names, layer: Any, name: str) -> str | None:
        return self._unlike(layer, name, nn.AvgPool1d) or self._pool(layer, name, "average")

    def _adaptive_pool(self, names: Names, layer: Any, name: str) -> str | None:
        of_sequences = (nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d)
        unlike = self._unlike(layer, name, of_sequences)
        if unlike is not None:
            return unlike
        largest = isinstance(layer, (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d))
        pixels, sides = self.shape[1:], self._sides(layer.output_size)
        wanted = [n if k is None else k for k, n in zip(sides, pixels, strict=True)]
        if any(k < 1 or n % k for k, n in zip(wanted, pixels, strict=True)):
            return f"{name} makes {wanted} of {[*pixels]} pixels, in windows that are not alike"
        window = [n // k for k, n in zip(wanted, pixels, strict=True)]
        self._put_parts("max" if largest else "average", window)
        return None

    def _mean(self, names: Names, layer: Mean, name: str) -> str | None:
        dims = {place_of(dim, self.rank) for dim in layer.dims}
        if not dims or 1 in dims:
            return f"{name} is over something else than all pixels of a row, a column or an image"
        sides = {2, 3} if self.rank == 2 else dims
        window = [n if d in sides else 1 for d, n in enumerate(self.shape[1:], start=2)]
        self._put_parts("average", window)
        self.rank -= 0 if layer.keepdim else len(dims)
        return None

    def _pool(self, layer: Any, name: str, kind: str) -> str | None:
        window, stride = map(self._sides, windows_of(layer))
        border = self._sides(layer.padding, 0)
        reason = unfit_windows(name, self.shape[1:], window, stride, border, layer.ceil_mode)
        if reason is None:
            out = pooled(self.shape[1:], window, stride, border)
            self._put_pool(kind, window, stride, out, border, border)
        return reason

    def _put_parts(self, kind: str, window: Sequence[int]) -> None:
        """Windows side by side."""
        out = [n // w for n, w in zip(self.shape[1:], window, strict=True)]
        self._put_pool(kind, window, window, out)

    def _put_pool(
        self, kind: str, window: Any, stride: Any, out: Any, before: Any = (0, 0),
        behind: Any = (0, 0),
    ) -> None:  # fmt: skip
        if {*window, *stride} == {1} and {*before, *behind} == {0}:
            return
        self._stage_before("pool").update(
            pool=kind, window=tuple(window), pool_stride=tuple(stride),
            pool_before=tuple(before), pool_behind=tuple(behind), out_h=out[0], out_w=out[1],
        )  # fmt: skip
        self.shape = (self.shape[0], *out)

    # ---- shapes ----------------------------------------------------------------------------------

    def _flatten(self, names: Names, layer: nn.Flatten, name: str) -> str | None:
        return self._view(whole(self.said(), layer.start_dim, layer.end_dim), name)

    def _reshape(self, names: Names, layer: Reshaped, name: str) -> str | None:
        return self._view(inferred(layer.sample, math.prod(self.shape)), name)

    def _viewed(self, names: Names, layer: Viewed, name: str) -> str | None:
        self.squeezes = self.squeezes or layer.squeezes
        return self._view(layer.shape(self.said()), name)

    def _unflatten(self, names: Names, layer: nn.Unflatten, name: str) -> str | None:
        return self._viewed(names, unflattened(layer.dim, layer.unflattened_size), name)

    def _view(self, wanted: Sequence[int], name: str) -> str | None:
        given = self.said()
        if wanted == given:
            return None
        if not 1 <= len(wanted) <= 3:
            return f"{name} makes {wanted} of samples {given}"
        if self.at < 0:
            self._go_to(self._input_of(wanted))
            return None
        seen = self._here(True)._replace(rank=len(wanted)).seen
        if seen != wanted:
            return f"{name} makes {wanted} of what a layer gives, {given}"
        self.rank = len(wanted)
        return None

    # ---- some pixels, and pixels again and again -------------------------------------------------

    def _pad(self, names: Names, layer: Padded, name: str) -> str | None:
        if self.rank == 1 or len(layer.around) > 2 * (self.rank - 1) or len(layer.around) % 2:
            return f"{name} pads something else than pixels"
        if any(n < 0 for n in layer.around):
            return f"{name} leaves out pixels"
        last, others = layer.around[:2], layer.around[2:4] or (0, 0)
        sides = (*others, *last)
        if self.rank == 2 and self.shape[1] != 1:  # a sequence that is one pixel wide
            sides = (*last, *others)
        self.around = tuple(a + b for a, b in zip(self.around, sides, strict=True))
        return None

    def _pad_zeros(self, names: Names, layer: Any, name: str) -> str | None:
        if getattr(layer, "value", 0) != 0:
            return f"{name} pads with something else than zeros"
        return self._pad(names, Padded(several(layer.padding)), name)

    def _pick(self, names: Names, layer: Picked, name: str) -> str | None:
        if self.rank == 1:
            return f"{name} picks some of a row's numbers"
        if self.rank == 2 and 1 not in self.shape[1:]:
            return f"{name} gets samples {self.said()}"
        channels, *sides = slices(layer.places, self.said())
        if channels != (range(self.shape[0]), False):
            return f"{name} picks some channels"
        if self.rank == 2:
            sides.insert(0 if self.shape[1] == 1 else 1, (range(1), False))
        if any(at.step < 1 or not at for at, _ in sides):
            return f"{name} picks no pixels, or turns them round"
        (rows, row_goes), (columns, column_goes) = sides
        out = len(rows), len(columns)
        behind = [at[-1] + 1 - n for (at, _), n in zip(sides, self.shape[1:], strict=True)]
        before, steps = (-rows.start, -columns.start), (rows.step, columns.step)
        self._put_pool("average", (1, 1), steps, out, before, behind)
        self.rank -= row_goes + column_goes
        return None

    def _repeat(self, names: Names, layer: Repeated, name: str) -> str | None:
        if self.rank == 1:
            return f"{name} gets flat samples"
        pixels = self.shape[1:]
        if layer.size is None:
            sides = zip(pixels, self._sides(layer.factor), strict=True)
            wanted = [n * factor for n, factor in sides]
        else:
            given = zip(pixels, self._sides(layer.size, None), strict=True)
            wanted = [n if size is None else size for n, size in given]
        if any(k < n or k % n for k, n in zip(wanted, pixels, strict=True)):
            return f"{name} makes {wanted} of {[*pixels]} pixels"
        self._new_stage().update(join="repeat")
        self._shape_of_product(self.stages[-1], self.shape[0], *map(int, wanted))
        return None

    def _upsample(self, names: Names, layer: nn.Upsample, name: str) -> str | None:
        if layer.mode not in ("nearest", "nearest-exact"):
            return f"{name} interpolates between pixels"
        return self._repeat(names, Repeated(layer.scale_factor, layer.size), name)

    # ---- samples ---------------------------------------------------------------------------------

    def said(self) -> list[int]:
        """The shape of a sample as PyTorch has it."""
        return self._here(True)._replace(around=self.around).seen

    def _unlike(
        self, layer: nn.Module, name: str, of_sequences: type | tuple[type, ...]
    ) -> str | None:
        """A sentence if a layer is not for samples of as many sides as these."""
        if self.rank == 1:
            return f"{name} gets flat samples"
        in_a_row = self.rank == 2 and 1 in self.shape[1:]
        if isinstance(layer, of_sequences) != in_a_row or (self.rank == 2) != in_a_row:
            return f"{name} gets samples {self.said()}"
        return None

    def _sides(self, value: Any, other: Any = 1) -> tuple[Any, Any]:
        """Height and width of what a layer says of its sides; of sequences one is another."""
        given = several(value)
        if self.rank == 3:
            return given[0], given[-1]
        return (other, given[0]) if self.shape[1] == 1 else (given[0], other)

    # ---- stages ----------------------------------------------------------------------------------

    def _stage_before(self, *later: str) -> dict[str, Any]:
        """The stage that gives what is here, or a new one if it has any of these already."""
        if self.at < 0 or not self.open:
            return self._new_stage()
        stage = self.stages[self.at]
        taken = any(stage[key] not in ("none", None) for key in later)
        return self._new_stage() if taken else stage

    def _new_stage(self) -> dict[str, Any]:
        c, h, w = self.shape
        stage: dict[str, Any] = dict(
            input=self.at, join="none", other=_NO_STAGE, in_c=c, in_h=h, in_w=w,
            other_c=0, other_h=0, other_w=0, product="none", weight=-1, bias=-1, turned=False,
            **_Taps((1, 1))._asdict(),
            norm="none", groups=1, eps=0.0, gamma=-1, beta=-1, activation=None,
            pool="none", window=(1, 1), pool_stride=(1, 1), pool_before=(0, 0), pool_behind=(0, 0),
        )  # fmt: skip
        self._shape_of_product(stage, c, h, w)
        self.stages.append(stage)
        self.at, self.open = len(self.stages) - 1, True
        return stage

    def _shape_of_product(self, stage: dict[str, Any], c: int, h: int, w: int) -> None:
        stage.update(c=c, h=h, w=w, out_h=h, out_w=w)
        self.shape = (c, h, w)

    def _parameter(self, name: str) -> int:
        self.names.append(name)
        return len(self.names) - 1


ADDERS: dict[type, Any] = {
    nn.Conv1d: StageBuilder._conv,
    nn.Conv2d: StageBuilder._conv,
    nn.ConvTranspose1d: StageBuilder._transposed,
    nn.ConvTranspose2d: StageBuilder._transposed,
    nn.Linear: StageBuilder._linear,
    nn.BatchNorm1d: StageBuilder._batch_norm,
    nn.BatchNorm2d: StageBuilder._batch_norm,
    BatchNormOfAny: StageBuilder._batch_norm,
    nn.GroupNorm: StageBuilder._group_norm,
    nn.LayerNorm: StageBuilder._layer_norm,
    nn.InstanceNorm1d: StageBuilder._instance_norm,
    nn.InstanceNorm2d: StageBuilder._instance_norm,
    InstanceNormOfAny: StageBuilder._instance_norm,
    nn.MaxPool1d: StageBuilder._max_pool,
    nn.MaxPool2d: StageBuilder._max_pool,
    nn.AvgPool1d: StageBuilder._average_pool,
    nn.AvgPool2d: StageBuilder._average_pool,
    nn.AdaptiveAvgPool1d: StageBuilder._adaptive_pool,
    nn.AdaptiveAvgPool2d: StageBuilder._adaptive_pool,
    nn.AdaptiveMaxPool1d: StageBuilder._adaptive_pool,
    nn.AdaptiveMaxPool2d: StageBuilder._adaptive_pool,
    nn.Flatten: StageBuilder._flatten,
    nn.Unflatten: StageBuilder._unflatten,
    Mean: StageBuilder._mean,
    Padded: StageBuilder._pad,
    **dict.fromkeys(_PADDINGS, StageBuilder._pad_zeros),
    Picked: StageBuilder._pick,
    Repeated: StageBuilder._repeat,
    nn.Upsample: StageBuilder._upsample,
    nn.UpsamplingNearest2d: StageBuilder._upsample,
    Reshaped: StageBuilder._reshape,
    Viewed: StageBuilder._viewed,
}
