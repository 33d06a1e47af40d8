"""The calls of a forward as stages of the native kernels, one after another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fastmeta.inner_loop.reading.affine import Activation, composed
from fastmeta.inner_loop.reading.calls import Call
from fastmeta.inner_loop.reading.joins import Join
from fastmeta.inner_loop.reading.layer_rules import several
from fastmeta.inner_loop.reading.layers import activation_of, is_idle, unknown
from fastmeta.inner_loop.reading.shape_layers import OfSizes, Padded, place_of
from fastmeta.inner_loop.reading.stage_limits import unfit
from fastmeta.inner_loop.reading.stage_norms import NORMS
from fastmeta.inner_loop.reading.stage_pixels import PADDINGS, PIXELS
from fastmeta.inner_loop.reading.stage_products import PRODUCTS
from fastmeta.inner_loop.reading.stage_values import NO_BORDER, Names, Taps, Value
from fastmeta.inner_loop.reading.trace import Unknown

__all__ = ["ADDERS", "StageBuilder"]

# (builder, parameters, layer, what to call it) -> None, or why it is no part of a stage
ADDERS: dict[type, Any] = {**PRODUCTS, **NORMS, **PIXELS}
_NO_STAGE = -2


def _takes_border(layer: Any) -> bool:
    return isinstance(layer, (nn.Conv1d, nn.Conv2d, Padded, *PADDINGS)) or is_idle(layer)


@dataclass
class StageBuilder:
    """Sequences [C, L] are images one pixel high, or one wide where they come of other images.

    Attributes:
        squeezes: a lone sample would lose its dimension.
        norms: the batch norms, each with the stage whose norm it is.
    """

    module: nn.Module
    sample: tuple[int, ...]
    stages: list[dict[str, Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    squeezes: bool = False
    norms: list[tuple[int, nn.Module]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.input = self.input_of(self.sample)
        self.go_to(self.input)

    def input_of(self, sample: Sequence[int]) -> Value:
        """The module's input, read in that shape."""
        channels, *sides = sample
        missing = (1,) * (2 - len(sides))
        return Value(-1, (channels, *missing, *sides), len(sample), True)

    def add(self, call: Call) -> str | None:
        """Take one more call, or say why not."""
        sources = [self.values[i] if i >= 0 else self.input for i in call.inputs]
        source = sources[0]
        if call.in_place and not source.open:
            return f"{call.name} changes in place what others read"
        self.go_to(source)
        if any(s.around != NO_BORDER for s in sources) and not _takes_border(call.layer):
            return f"{call.name} gets what is padded, as convolutions alone do"
        if isinstance(call.layer, Join):
            reason = self._join(call.layer, sources)
        elif type(call.layer) is OfSizes:
            reason = self._sized(call.layer, call)
        else:
            reason = self._layer(call.parameters, call.layer, call.name)
        open_still = source.open or self.at != source.at
        self.values.append(self.here(call.alone and open_still)._replace(around=self.around))
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
        self.activate(activation)
        return None

    def activate(self, activation: Activation) -> None:
        here = self.stage_before("pool")
        both = composed(here["activation"], activation)
        if both is None:
            here, both = self.stage_before("activation", "pool"), activation
        here["activation"] = both

    def go_to(self, value: Value) -> None:
        self.at, self.shape, self.rank, self.open, self.around = value

    def here(self, is_open: bool) -> Value:
        return Value(self.at, self.shape, self.rank, is_open)

    def _join(self, join: Join, sources: Sequence[Value]) -> str | None:
        for other in sources[1:]:
            if join.kind == "channels":
                reason = self._beside(join, other)
            else:
                reason = self._together(join, other)
            if reason is not None:
                return reason
        return None

    def _beside(self, join: Join, other: Value) -> str | None:
        if (self.rank, *self.shape[1:]) != (other.rank, *other.shape[1:]):
            return f"{join.name} is of samples {self.said()} and {other.seen}"
        try:
            is_of_channels = place_of(join.dim, self.rank) == 1
        except ValueError as error:
            return f"{join.name} is along {error}"
        if not is_of_channels or (self.rank == 1 and self.shape[1:] != (1, 1)):
            return f"{join.name} is along something else than the channels"
        channels, *sides = self.shape
        self.put_join("channels", other)
        self.shape_of_product(self.stages[-1], channels + other.shape[0], *sides)
        return None

    def _together(self, join: Join, other: Value) -> str | None:
        own = self.here(False)
        if join.kind == "difference":
            self.go_to(other._replace(open=False))
            self.activate(("affine", -1.0, 0.0))
            other = self.here(False)
            self.go_to(own)
        smaller, larger = sorted((own, other), key=lambda value: (math.prod(value.shape), value.at))
        fits = all(n in (1, m) for n, m in zip(smaller.shape, larger.shape, strict=True))
        flat = own.rank == 1 and smaller.shape[1:] != larger.shape[1:]
        if own.rank != other.rank or not fits or flat:
            return f"{join.name} is of samples {own.seen} and {other.seen}"
        if join.in_place and own.shape != larger.shape:
            return f"{join.name} in place is of samples {own.seen} and {other.seen}"
        self.go_to(larger)
        self.put_join("multiply" if join.kind == "multiply" else "sum", smaller)
        return None

    def put_join(self, kind: str, other: Value) -> None:
        c, h, w = other.shape
        self.new_stage().update(join=kind, other=other.at, other_c=c, other_h=h, other_w=w)

    def said(self) -> list[int]:
        """The shape of a sample as PyTorch has it."""
        return self.here(True)._replace(around=self.around).seen

    def unlike(
        self, layer: nn.Module, name: str, of_sequences: type | tuple[type, ...]
    ) -> str | None:
        """A sentence if a layer is not for samples of as many sides as these."""
        if self.rank == 1:
            return f"{name} gets flat samples"
        in_a_row = self.rank == 2 and 1 in self.shape[1:]
        if isinstance(layer, of_sequences) != in_a_row or (self.rank == 2) != in_a_row:
            return f"{name} gets samples {self.said()}"
        return None

    def sides(self, value: Any, other: Any = 1) -> tuple[Any, Any]:
        """Height and width of what a layer says of its sides; of sequences one is another."""
        given = several(value)
        if self.rank == 3:
            return given[0], given[-1]
        return (other, given[0]) if self.shape[1] == 1 else (given[0], other)

    def stage_before(self, *later: str) -> dict[str, Any]:
        """The stage that gives what is here, or a new one if it has any of these already."""
        if self.at < 0 or not self.open:
            return self.new_stage()
        stage = self.stages[self.at]
        taken = any(stage[key] not in ("none", None) for key in later)
        return self.new_stage() if taken else stage

    def new_stage(self) -> dict[str, Any]:
        c, h, w = self.shape
        stage: dict[str, Any] = dict(
            input=self.at, join="none", other=_NO_STAGE, in_c=c, in_h=h, in_w=w,
            other_c=0, other_h=0, other_w=0, product="none", product_groups=1, weight=-1, bias=-1,
            **Taps((1, 1))._asdict(),
            norm="none", groups=1, eps=0.0, gamma=-1, beta=-1, mean=-1, variance=-1,
            activation=None,
            pool="none", window=(1, 1), pool_stride=(1, 1), pool_before=(0, 0), pool_behind=(0, 0),
        )  # fmt: skip
        self.shape_of_product(stage, c, h, w)
        self.stages.append(stage)
        self.at, self.open = len(self.stages) - 1, True
        return stage

    def spread(self, sample: Sequence[int]) -> bool:
        """Let the linear layer that gives what is here give an image, if one does."""
        stage = self.stages[self.at] if self.at >= 0 and self.open else {}
        plain = stage.get("product") == "dense" and stage["norm"] == stage["pool"] == "none"
        sides = [stage[side] for side in ("in_h", "in_w", "h", "w")] if plain else []
        if set(sides) != {1} or len(sample) < 2:
            return False
        channels, *pixels = [*sample[:1], *[1] * (3 - len(sample)), *sample[1:]]
        size = tuple(pixels)
        stage.update(product="spread", **Taps(size)._asdict())
        self.shape_of_product(stage, channels, *size)
        return True

    def shape_of_product(self, stage: dict[str, Any], c: int, h: int, w: int) -> None:
        stage.update(c=c, h=h, w=w, out_h=h, out_w=w)
        self.shape = (c, h, w)

    def parameter(self, name: str) -> int:
        self.names.append(name)
        return len(self.names) - 1
