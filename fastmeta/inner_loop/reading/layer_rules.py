"""What the layers of a module's forward are on many tasks' tensors at once.

Every tensor has the tasks first, T of them or 1 where all share it; the module's own dimensions
come after. A dimension counted from the front moves by one, one counted from the back stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta import functional as fmF
from fastmeta.functional.forward import ELEMENTWISE

__all__ = ["LAYERS", "several", "shifted", "unfit"]

# (layer, its parameters by their own names, x) -> y
Layer = Callable[[Any, Mapping[str, Tensor], Tensor], Tensor]


def _conv2d(layer: nn.Conv2d, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    padding, dilation = _padding(layer), layer.dilation
    return fmF.conv2d(
        x, own["weight"], own.get("bias"), layer.stride, padding, dilation, layer.groups
    )


def _conv1d(layer: nn.Conv1d, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    stride, padding, dilation = (1, *layer.stride), (0, *_padding(layer)), (1, *layer.dilation)
    weight, x = own["weight"].unsqueeze(-2), x.unsqueeze(-2)
    return fmF.conv2d(
        x, weight, own.get("bias"), stride, padding, dilation, layer.groups
    ).squeeze(-2)


def _padding(layer: nn.Conv1d | nn.Conv2d) -> Sequence[int]:
    if isinstance(layer.padding, str):
        sides = zip(layer.kernel_size, layer.dilation, strict=True)
        return [d * (k - 1) // 2 if layer.padding == "same" else 0 for k, d in sides]
    return layer.padding


def _conv_transpose2d(layer: Any, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return fmF.conv_transpose2d(
        x, own["weight"], own.get("bias"), layer.stride, layer.padding, layer.output_padding,
        layer.dilation,
    )  # fmt: skip


def _conv_transpose1d(layer: Any, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    window = [(least, *sides) for least, sides in (
        (1, layer.stride), (0, layer.padding), (0, layer.output_padding), (1, layer.dilation),
    )]  # fmt: skip
    weight, x = own["weight"].unsqueeze(-2), x.unsqueeze(-2)
    return fmF.conv_transpose2d(x, weight, own.get("bias"), *window).squeeze(-2)


def _upsample(layer: nn.Upsample, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return layer.forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def _linear(layer: nn.Linear, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return fmF.linear(x, own["weight"], own.get("bias"))


def _batch_norm(layer: Any, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return fmF.batch_norm(x, own.get("weight"), own.get("bias"), layer.eps)


def _instance_norm(layer: Any, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return fmF.instance_norm(x, own.get("weight"), own.get("bias"), layer.eps)


def _layer_norm(layer: nn.LayerNorm, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    shape = layer.normalized_shape
    return fmF.layer_norm(x, shape, own.get("weight"), own.get("bias"), layer.eps)


def _group_norm(layer: nn.GroupNorm, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return fmF.group_norm(x, layer.num_groups, own.get("weight"), own.get("bias"), layer.eps)


def _max_pool2d(layer: nn.MaxPool2d, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return fmF.max_pool2d(x, layer.kernel_size, layer.stride, layer.padding)


def _max_pool1d(layer: nn.MaxPool1d, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return fmF.max_pool2d(x.unsqueeze(-2), *_of_one_row(layer)).squeeze(-2)


def _avg_pool1d(layer: nn.AvgPool1d, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return fmF.avg_pool2d(x.unsqueeze(-2), *_of_one_row(layer)).squeeze(-2)


def _of_one_row(layer: Any) -> list[tuple[int, int]]:
    """Kernel, stride and padding of a pool of sequences over images one pixel high."""
    kernel, stride, padding = layer.kernel_size, layer.stride, layer.padding
    given = ((1, kernel), (1, kernel if stride is None else stride), (0, padding))
    return [(height, several(width)[0]) for height, width in given]


def _adaptive_avg_pool1d(layer: Any, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    (size,) = several(layer.output_size)
    return fmF.adaptive_avg_pool2d(x.unsqueeze(-2), (1, size)).squeeze(-2)


def _avg_pool2d(layer: nn.AvgPool2d, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return fmF.avg_pool2d(x, layer.kernel_size, layer.stride, layer.padding)


def _adaptive_avg_pool2d(layer: Any, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return fmF.adaptive_avg_pool2d(x, layer.output_size)


def _flatten(layer: nn.Flatten, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x.flatten(shifted(layer.start_dim), shifted(layer.end_dim))


def _prelu(layer: nn.PReLU, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """One slope for all, or one a channel: [n] of all tasks or [T, n]."""
    weight = own["weight"]
    channels = [1] * max(0, x.dim() - 3)
    slope = weight.reshape(-1, 1, layer.num_parameters, *channels)
    return torch.where(x > 0, x, slope * x)


def _alone(layer: nn.Module, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """A layer that treats each element by itself."""
    return layer.forward(x)


def _nothing(layer: nn.Module, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x


_PADS = nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d
_OTHER_ELEMENTWISE = (
    nn.ReLU6, nn.Hardtanh, nn.SELU, nn.Mish, nn.CELU, nn.Hardswish, nn.LogSigmoid,
    nn.Softsign, nn.Tanhshrink,
)  # fmt: skip
LAYERS: dict[type, Layer] = {
    nn.Conv1d: _conv1d,
    nn.Conv2d: _conv2d,
    nn.ConvTranspose1d: _conv_transpose1d,
    nn.ConvTranspose2d: _conv_transpose2d,
    nn.Upsample: _upsample,
    nn.UpsamplingNearest2d: _upsample,
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.MaxPool1d: _max_pool1d,
    nn.MaxPool2d: _max_pool2d,
    nn.AvgPool1d: _avg_pool1d,
    nn.AvgPool2d: _avg_pool2d,
    nn.AdaptiveAvgPool1d: _adaptive_avg_pool1d,
    nn.AdaptiveAvgPool2d: _adaptive_avg_pool2d,
    nn.PReLU: _prelu,
    nn.Flatten: _flatten,
    nn.Dropout: _nothing,
    nn.Dropout2d: _nothing,
    **dict.fromkeys((*ELEMENTWISE, *_OTHER_ELEMENTWISE, *_PADS), _alone),
}


def unfit(layer: Any) -> str | None:
    """Why a layer of a known type is not one that its rule can run, or None."""
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        if layer.padding_mode != "zeros":
            return "is padded with something else than zeros"
        around = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        if layer.padding == "same" and any(n % 2 for n in around):
            return "has even kernels with padding on one side"
    elif isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
        more = zip(layer.output_padding, layer.stride, strict=True)
        if layer.groups != 1 or any(m >= s for m, s in more):
            return "is grouped, or pads its output by more than its stride"
    elif isinstance(layer, (nn.MaxPool1d, nn.MaxPool2d)):
        if layer.ceil_mode or layer.return_indices or {*several(layer.dilation)} != {1}:
            return "is dilated, rounds up or returns indices"
    elif isinstance(layer, (nn.AvgPool1d, nn.AvgPool2d)):
        divisor = getattr(layer, "divisor_override", None)
        if layer.ceil_mode or not layer.count_include_pad or divisor is not None:
            return "rounds up or divides by something else than the size of its kernel"
    elif isinstance(layer, (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)):
        if layer.output_size is None or None in several(layer.output_size):
            return "keeps a size of its input"
    elif isinstance(layer, (nn.Dropout, nn.Dropout2d)) and layer.training and layer.p > 0:
        return "draws random numbers"
    return None


def shifted(dim: Any) -> Any:
    if isinstance(dim, (tuple, list)):
        return tuple(map(shifted, dim))
    return dim + 1 if dim >= 0 else dim


def several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
