"""Functions called with parameters of the module, as the layers that do the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.node import Node
from torch.nn.modules.batchnorm import _BatchNorm

from fastmeta.inner_loop.reading.trace import own_name

__all__ = ["OF_PARAMETERS", "BatchNormOfAny", "InstanceNormOfAny", "Operands"]


class BatchNormOfAny(_BatchNorm):
    """Of samples with any number of dimensions, as the function is."""

    def _check_input_dim(self, input: Tensor) -> None:
        return None


class InstanceNormOfAny(nn.Module):
    """Of samples with any number of sides; without a weight of any number of channels."""

    def __init__(self, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = weight, bias, eps
        self.num_features = None if weight is None else len(weight)


class Operands:
    """Notes which parameters of a module a call is given, by a layer's names for them."""

    def __init__(self, root: nn.Module, names: dict[str, str]) -> None:
        self._parameters = {own_name(name): p for name, p in root.named_parameters()}
        self._names = names

    def take(self, own: str, operand: Any) -> Tensor | None:
        """The parameter without its values; ValueError for what is none."""
        if operand is None:
            return None
        name = own_name(operand.target) if isinstance(operand, Node) else ""
        if name not in self._parameters or operand.op != "get_attr":
            raise ValueError(f"its {own} is no parameter of the module")
        self._names[own] = name
        return self._parameters[name].detach().to("meta")

    def weight(self, operand: Any) -> Tensor:
        weight = self.take("weight", operand)
        if weight is None:
            raise ValueError("it has no weight")
        return weight


def _linear(of: Operands, weight: Any, bias: Any = None) -> nn.Module:
    outputs, inputs = of.weight(weight).shape
    return nn.Linear(inputs, outputs, of.take("bias", bias) is not None, device="meta")


def _convolution(kind: Any) -> Callable[..., nn.Module]:
    def make(
        of: Operands, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> nn.Module:  # fmt: skip
        outputs, inputs, *kernel = of.weight(weight).shape
        biased = of.take("bias", bias) is not None
        return kind(
            inputs * groups, outputs, kernel, stride, padding, dilation, groups, biased,
            device="meta",
        )  # fmt: skip

    return make


def _transposed(kind: Any) -> Callable[..., nn.Module]:
    def make(
        of: Operands, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
        output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
    ) -> nn.Module:  # fmt: skip
        inputs, outputs, *kernel = of.weight(weight).shape
        biased = of.take("bias", bias) is not None
        return kind(
            inputs, outputs * groups, kernel, stride, padding, output_padding, groups, biased,
            dilation, device="meta",
        )  # fmt: skip

    return make


def _batch_norm(
    of: Operands, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> nn.Module:  # fmt: skip
    if training is not True:
        raise ValueError("it norms by running statistics")
    scale, shift = of.take("weight", weight), of.take("bias", bias)
    if (scale is None) != (shift is None):
        raise ValueError("it has a weight or a bias alone")
    channels, affine = 0 if scale is None else len(scale), scale is not None
    return BatchNormOfAny(channels, eps, affine=affine, track_running_stats=False, device="meta")


def _instance_norm(
    of: Operands, running_mean: Any = None, running_var: Any = None, weight: Any = None,
    bias: Any = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> nn.Module:  # fmt: skip
    if use_input_stats is not True:
        raise ValueError("it norms by running statistics")
    scale, shift = of.take("weight", weight), of.take("bias", bias)
    if (scale is None) != (shift is None):
        raise ValueError("it has a weight or a bias alone")
    return InstanceNormOfAny(scale, shift, eps)


def _layer_norm(
    of: Operands, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None,
    eps: float = 1e-5,
) -> nn.Module:  # fmt: skip
    scale, shift = of.take("weight", weight), of.take("bias", bias)
    if scale is None and shift is not None:
        raise ValueError("it has a bias alone")
    affine = scale is not None
    return nn.LayerNorm([*normalized_shape], eps, affine, shift is not None, device="meta")


def _group_norm(
    of: Operands, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> nn.Module:
    scale, shift = of.take("weight", weight), of.take("bias", bias)
    if scale is None or shift is None:
        raise ValueError("it has no weight and bias")
    return nn.GroupNorm(num_groups, len(scale), eps, device="meta")


OF_PARAMETERS: dict[Any, Callable[..., nn.Module]] = {
    F.linear: _linear,
    F.conv1d: _convolution(nn.Conv1d),
    F.conv2d: _convolution(nn.Conv2d),
    torch.conv1d: _convolution(nn.Conv1d),
    torch.conv2d: _convolution(nn.Conv2d),
    F.conv_transpose1d: _transposed(nn.ConvTranspose1d),
    F.conv_transpose2d: _transposed(nn.ConvTranspose2d),
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
}
