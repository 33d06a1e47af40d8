"""Layers as the recognisers of native networks see them, and what sentences call them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from fastmeta.functional.forward import has_hooks
from fastmeta.inner_loop.reading.affine import Affine
from fastmeta.models import Sine

__all__ = [
    "activation_of", "called", "is_idle", "leaves_of", "likely_samples", "misshapen", "unknown",
    "unlike_parameters",
]  # fmt: skip


def leaves_of(module: nn.Module, prefix: str = "") -> list[tuple[str, Any]]:
    """The layers of nested Sequentials in the order they run, with the prefix of their names."""
    if type(module) is not nn.Sequential or has_hooks(module):
        return [(prefix, module)]
    return [
        leaf
        for name, child in module._modules.items()
        if child is not None
        for leaf in leaves_of(child, f"{prefix}{name}.")
    ]


def is_idle(layer: nn.Module) -> bool:
    """Whether a layer hands on what it gets."""
    if isinstance(layer, _DropoutNd):
        return not layer.training or layer.p == 0
    return type(layer) is nn.Identity


def called(name: str, layer: nn.Module) -> str:
    """What to call a layer in a sentence."""
    kind = type(layer).__name__
    return f"layer {name.rstrip('.')!r} ({kind})" if name else f"the module ({kind})"


def unknown(name: str) -> str:
    """What a sentence says of a layer, so called, that no native kernel stands for."""
    return f"{name} is not among the layers that the native kernels have"


def unlike_parameters(module: nn.Module, names: Sequence[str]) -> str | None:
    """A sentence if these, of the layers that run, are not parameters of the module, once each."""
    known = {name for name, _ in module.named_parameters()}
    shared = {name for name in names if names.count(name) > 1 or name not in known}
    if shared:
        return f"layers share parameters ({', '.join(sorted(shared))})"
    return None


def misshapen(
    module: nn.Module, layers: Iterable[tuple[Any, Mapping[str, str]]]
) -> str | None:
    """A sentence if a parameter has not the shape that its layer says: it may have been replaced.

    layers: with the module's names of their parameters.
    """
    own = dict(module.named_parameters())
    for layer, names in layers:
        said = _shapes(layer)
        for part, name in names.items():
            if name in own and part in said and (*own[name].shape,) != said[part]:
                shape = [*own[name].shape]
                return f"parameter {name!r} is {shape}, and its layer says {[*said[part]]}"
    return None


def _shapes(layer: Any) -> dict[str, tuple[int, ...]]:
    """Of a layer's parameters, by what it says of itself."""
    if isinstance(layer, nn.Linear):
        weight: tuple[int, ...] = (layer.out_features, layer.in_features)
        bias = weight[:1]
    elif isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        inputs = layer.in_channels // layer.groups
        weight = (layer.out_channels, inputs, *layer.kernel_size)
        bias = weight[:1]
    elif isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
        weight = (layer.in_channels, layer.out_channels // layer.groups, *layer.kernel_size)
        bias = (layer.out_channels,)
    elif isinstance(layer, _NormBase):
        weight = bias = (layer.num_features,)
    elif isinstance(layer, nn.GroupNorm):
        weight = bias = (layer.num_channels,)
    elif isinstance(layer, nn.LayerNorm):
        weight = bias = (*layer.normalized_shape,)
    else:
        return {}
    return {"weight": weight, "bias": bias}


def activation_of(layer: Any) -> tuple[str, float, float] | None:
    """Name and constants of an activation, or None."""
    kind = type(layer)
    if kind in _PLAIN:
        return _PLAIN[kind], 0.0, 0.0
    if kind is nn.SELU:
        return "elu", _SELU_ALPHA * _SELU_SCALE, _SELU_SCALE
    if kind is nn.GELU:
        return ("gelu_tanh" if layer.approximate == "tanh" else "gelu"), 0.0, 0.0
    if kind is nn.LeakyReLU and _number(layer.negative_slope) and layer.negative_slope >= 0:
        return "leaky_relu", float(layer.negative_slope), 0.0
    if kind is nn.Softplus and _number(layer.beta) and _number(layer.threshold) and layer.beta > 0:
        return "softplus", float(layer.beta), float(layer.threshold)
    if kind is nn.ELU and _number(layer.alpha) and layer.alpha >= 0:
        return "elu", float(layer.alpha), 1.0
    if kind in (nn.Hardtanh, nn.ReLU6) and _number(layer.min_val) and _number(layer.max_val):
        return "clamp", float(layer.min_val), float(layer.max_val)
    if kind is Affine:
        return "affine", layer.scale, layer.shift
    if kind is Sine and _number(layer.frequency):
        return "sine", float(layer.frequency), 0.0
    return None


_PLAIN: dict[type, str] = {
    nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.SiLU: "silu", nn.Mish: "mish",
}  # fmt: skip
# Klambauer et al. 2017, equation 14
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def _number(value: object) -> bool:
    """A tensor could change without anybody noticing, or want a gradient."""
    return type(value) in (int, float)


def likely_samples(module: nn.Module) -> Iterator[tuple[int, ...]]:
    """Shapes that the first layer takes, of sizes that images and sequences have."""
    layers = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))]
    for layer in layers[:1]:
        if isinstance(layer, nn.Linear):
            yield (layer.in_features,)
        else:
            sides = 1 if isinstance(layer, nn.Conv1d) else 2
            yield from ((layer.in_channels, *[size] * sides) for size in _SIZES)


_SIZES = 28, 84, 32, 16, 8, 64
