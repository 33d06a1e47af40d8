"""The calls of a forward as stages of the native kernels, one after another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from fastmeta.inner_loop.calls import Call, Reshaped
from fastmeta.inner_loop.layers import activation_of, is_idle, unknown
from fastmeta.inner_loop.parameter_calls import BatchNormOfAny

__all__ = ["ADDERS", "NO_STAGE", "StageBuilder", "unfit"]

Names = Mapping[str, str]  # the module's, of a layer's parameters by its own
NO_STAGE = -2


def unfit(layer: Any, name: str) -> str | None:
    """Why stages cannot have such a layer, whatever it gets."""
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        if layer.groups != 1 or {*layer.dilation} != {1} or layer.padding_mode != "zeros":
            return f"{name} has groups, dilation or a padding mode that the native kernels lack"
        if layer.padding == "same" and any(k % 2 == 0 for k in layer.kernel_size):
            return f"{name} pads an even kernel unevenly"
    elif isinstance(layer, (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)):
        if {*_several(layer.output_size)} != {1}:
            return f"{name} leaves more than one pixel"
    elif isinstance(layer, (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d)):
        return _unfit_pool(layer, name)
    return None


def _unfit_pool(layer: Any, name: str) -> str | None:
    if {*_several(getattr(layer, "dilation", 1))} != {1} or getattr(layer, "return_indices", False):
        return f"{name} has a dilation or returns indices"
    if getattr(layer, "divisor_override", None) is not None:
        return f"{name} overrides its divisor"
    if {*_several(layer.padding)} != {0} or layer.ceil_mode:
        return f"{name} has padding or ceil_mode, which the native kernels lack"
    window = _several(layer.kernel_size)
    stride = window if layer.stride is None else _several(layer.stride)
    sides = max(len(window), len(stride))
    window, stride = (side * (sides // len(side)) for side in (window, stride))
    if any(s < w for s, w in zip(stride, window, strict=True)):
        return f"{name} has windows that overlap"
    return None


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


class _Value(NamedTuple):
    """What a call gives.

    Attributes:
        at: the stage that gives it, -1 for the module's input.
        shape: C, H, W.
        flat: the module has flattened it.
        open: no call but the next one reads it, so that one may become a part of the stage.
    """

    at: int
    shape: tuple[int, ...]
    flat: bool
    open: bool


@dataclass
class StageBuilder:
    """Sequences [C, L] are images one pixel high."""

    module: nn.Module
    sample: tuple[int, ...]
    stages: list[dict[str, Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    values: list[_Value] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.input = self._input_of(self.sample)
        self._go_to(self.input)

    def _input_of(self, sample: Sequence[int]) -> _Value:
        """The module's input, read in that shape."""
        self.sequences = len(sample) == 2
        channels, *sides = sample
        missing = (1,) * (2 - len(sides))
        return _Value(-1, (channels, *missing, *sides), not sides, True)

    def add(self, call: Call) -> str | None:
        """Take one more call, or say why not."""
        sources = [self.values[i] if i >= 0 else self.input for i in call.inputs]
        source = sources[0]
        if call.in_place and not source.open:
            return f"{call.name} changes in place what others read"
        self._go_to(source)
        if call.layer is None:
            reason = self._sum(sources[1])
        else:
            reason = self._layer(call.parameters, call.layer, call.name)
        open_still = source.open or self.at != source.at
        self.values.append(self._here(call.alone and open_still))
        return reason

    def _layer(self, names: Names, layer: nn.Module, name: str) -> str | None:
        if is_idle(layer):
            return None
        add = ADDERS.get(type(layer))
        if add is not None:
            return unfit(layer, name) or add(self, names, layer, name)
        activation = activation_of(layer)
        if activation is None:
            return unknown(name)
        self._stage_before("activation", "pool")["activation"] = activation
        return None

    def _go_to(self, value: _Value) -> None:
        self.at, self.shape, self.flat, self.open = value

    def _here(self, is_open: bool) -> _Value:
        return _Value(self.at, self.shape, self.flat, is_open)

    def _sum(self, other: _Value) -> str | None:
        if (self.shape, self.flat) != (other.shape, other.flat):
            return f"a sum is of samples {list(self.shape)} and {list(other.shape)}"
        added, self.at = sorted((self.at, other.at))
        self._new_stage()["added"] = added
        return None

    # ---- products ------------------------------------------------------------------------------

    def _conv(self, names: Names, layer: nn.Conv1d | nn.Conv2d, name: str) -> str | None:
        unlike = self._unlike(layer, name, nn.Conv1d)
        if unlike is not None:
            return unlike
        if layer.in_channels != self.shape[0]:
            return f"{name} takes {layer.in_channels} channels but gets {self.shape[0]}"
        padding: Any = layer.padding
        if padding == "valid":
            padding = 0
        if padding == "same":
            padding = tuple(k // 2 for k in layer.kernel_size)
        kernel, stride = self._sides(layer.kernel_size), self._sides(layer.stride)
        return self._product(names, layer, name, kernel, stride, self._sides(padding, 0))

    def _linear(self, names: Names, layer: nn.Linear, name: str) -> str | None:
        if not self.flat:
            return f"{name} gets samples {list(self.shape)} that were not flattened"
        if layer.in_features != math.prod(self.shape):
            return f"{name} takes {layer.in_features} inputs but gets {math.prod(self.shape)}"
        return self._product(names, layer, name, self.shape[1:], (1, 1), (0, 0))

    def _product(
        self, names: Names, layer: Any, name: str, kernel: Any, stride: Any, padding: Any
    ) -> str | None:
        c = layer.weight.shape[0]
        size = [
            (n + 2 * p - k) // s + 1 if n + 2 * p >= k else 0
            for n, p, k, s in zip(self.shape[1:], padding, kernel, stride, strict=True)
        ]
        if min(c, *size) < 1:
            return f"{name} leaves nothing of samples {list(self.shape)}"
        stage = self._new_stage()
        stage.update(
            product=True, kernel=tuple(kernel), stride=tuple(stride), padding=tuple(padding),
            weight=self._parameter(names["weight"]),
            bias=-1 if layer.bias is None else self._parameter(names["bias"]),
        )  # fmt: skip
        self._shape_of_product(stage, c, *size)
        return None

    # ---- norms, pools ----------------------------------------------------------------------------

    def _batch_norm(self, names: Names, layer: Any, name: str) -> str | None:
        for_images = isinstance(layer, nn.BatchNorm2d)
        if type(layer) is not BatchNormOfAny and for_images == (self.flat or self.sequences):
            return f"{name} gets samples {self._said()}"
        if layer.num_features != self.shape[0]:
            return f"{name} takes {layer.num_features} channels but gets {self.shape[0]}"
        return self._norm(names, layer, name, "batch", 1)

    def _group_norm(self, names: Names, layer: nn.GroupNorm, name: str) -> str | None:
        if layer.num_channels != self.shape[0]:
            return f"{name} takes {layer.num_channels} channels but gets {self.shape[0]}"
        return self._norm(names, layer, name, "group", layer.num_groups)

    def _instance_norm(self, names: Names, layer: Any, name: str) -> str | None:
        unlike = self._unlike(layer, name, nn.InstanceNorm1d)
        if unlike is not None:
            return unlike
        if layer.num_features != self.shape[0]:
            return f"{name} takes {layer.num_features} channels but gets {self.shape[0]}"
        if self.shape[1:] == (1, 1):
            return f"{name} is over single pixels"
        return self._norm(names, layer, name, "group", layer.num_features)

    def _layer_norm(self, names: Names, layer: nn.LayerNorm, name: str) -> str | None:
        over, whole, samples = [*layer.normalized_shape], math.prod(self.shape), self._said()
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
        stage.update(product=True, scale=scale, weight=self._parameter(names["weight"]))
        if layer.bias is not None:
            stage["bias"] = self._parameter(names["bias"])

    def _norm(self, names: Names, layer: Any, name: str, kind: str, groups: int) -> str | None:
        if self.flat and self.shape[1:] != (1, 1):
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

    def _global_pool(self, names: Names, layer: Any, name: str) -> str | None:
        unlike = self._unlike(layer, name, nn.AdaptiveAvgPool1d)
        if unlike is not None:
            return unlike
        self._put_pool("average", self.shape[1:], self.shape[1:])
        return None

    def _pool(self, layer: Any, name: str, kind: str) -> str | None:
        window = self._sides(layer.kernel_size)
        stride = window if layer.stride is None else self._sides(layer.stride)
        if any(n < w for n, w in zip(self.shape[1:], window, strict=True)):
            return f"{name} leaves nothing of samples {list(self.shape)}"
        self._put_pool(kind, window, stride)
        return None

    def _put_pool(self, kind: str, window: Sequence[int], stride: Sequence[int]) -> None:
        stage = self._stage_before("pool")
        out = [(n - w) // s + 1 for n, w, s in zip(self.shape[1:], window, stride, strict=True)]
        stage.update(pool=kind, window=tuple(window), pool_stride=tuple(stride))
        stage.update(out_h=out[0], out_w=out[1])
        self.shape = (self.shape[0], *out)

    def _flatten(self, names: Names, layer: nn.Flatten, name: str) -> str | None:
        if (layer.start_dim, layer.end_dim) != (1, -1):
            return f"{name} does not flatten all of a sample"
        if self.at < 0:
            self.shape = (math.prod(self.shape), 1, 1)
        self.flat = True
        return None

    def _reshape(self, names: Names, layer: Reshaped, name: str) -> str | None:
        given, wanted = self._said(), [*layer.sample]
        if wanted == given:
            return None
        if len(wanted) > 3 or math.prod(wanted) != math.prod(given):
            return f"{name} makes {wanted} of samples {given}"
        if len(wanted) == 1:
            return self._flatten(names, nn.Flatten(), name)
        if self.at >= 0 or self.stages:
            return f"{name} makes {wanted} of what a layer gives"
        self._go_to(self._input_of(wanted))
        return None

    # ---- samples ---------------------------------------------------------------------------------

    def _said(self) -> list[int]:
        """The shape of a sample as PyTorch has it."""
        if self.flat:
            return [math.prod(self.shape)]
        c, h, w = self.shape
        return [c, w] if self.sequences else [c, h, w]

    def _unlike(self, layer: nn.Module, name: str, of_sequences: type) -> str | None:
        """A sentence if a layer is not for samples of as many sides as these."""
        if self.flat:
            return f"{name} gets flat samples"
        if isinstance(layer, of_sequences) != self.sequences:
            return f"{name} gets samples {self._said()}"
        return None

    def _sides(self, value: Any, of_height: int = 1) -> tuple[int, int]:
        """Height and width of what a layer says of its sides; sequences have a height of 1."""
        given = _several(value)
        if self.sequences:
            return of_height, given[0]
        return given[0], given[-1]

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
            input=self.at, added=NO_STAGE, in_c=c, in_h=h, in_w=w,
            product=False, scale="none", weight=-1, bias=-1,
            kernel=(1, 1), stride=(1, 1), padding=(0, 0),
            norm="none", groups=1, eps=0.0, gamma=-1, beta=-1, activation=None,
            pool="none", window=(1, 1), pool_stride=(1, 1),
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
    nn.Linear: StageBuilder._linear,
    nn.BatchNorm1d: StageBuilder._batch_norm,
    nn.BatchNorm2d: StageBuilder._batch_norm,
    BatchNormOfAny: StageBuilder._batch_norm,
    nn.GroupNorm: StageBuilder._group_norm,
    nn.LayerNorm: StageBuilder._layer_norm,
    nn.InstanceNorm1d: StageBuilder._instance_norm,
    nn.InstanceNorm2d: StageBuilder._instance_norm,
    nn.MaxPool1d: StageBuilder._max_pool,
    nn.MaxPool2d: StageBuilder._max_pool,
    nn.AvgPool1d: StageBuilder._average_pool,
    nn.AvgPool2d: StageBuilder._average_pool,
    nn.AdaptiveAvgPool1d: StageBuilder._global_pool,
    nn.AdaptiveAvgPool2d: StageBuilder._global_pool,
    nn.Flatten: StageBuilder._flatten,
    Reshaped: StageBuilder._reshape,
}
