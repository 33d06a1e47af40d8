"""Which modules are chains that the native kernels know, and what they look like to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fastmeta.functional.forward import has_hooks
from fastmeta.models import Sine

__all__ = ["Chain", "activation_of", "called", "chain_of", "is_idle", "leaves_of", "unknown"]

# The native side's (kind, activation, a, b, in, out, weight, bias).
Node = tuple[str, str, float, float, int, int, int, int]

_MAX_NODES = 256


@dataclass(frozen=True)
class Chain:
    """A module as the native kernels see it.

    Attributes:
        nodes: linear layers and activations in the order they run.
        names: the module's parameters, in the order that the nodes' indices mean.
        outputs: the width of the last layer.
        flattens: a Flatten comes before the first linear layer, so samples may have any shape.
    """

    nodes: tuple[Node, ...]
    names: tuple[str, ...]
    flattens: bool
    outputs: int


def chain_of(module: nn.Module) -> Chain | str:
    """The chain that a module is, or a sentence saying why it is none."""
    nodes: list[Node] = []
    names: list[str] = []
    flattens = False
    width = _first_width(module)
    if width is None:
        return "the module has no linear layer"
    for name, layer in leaves_of(module):
        if has_hooks(layer):
            return f"{called(name, layer)} has hooks, which the native kernels would not call"
        kind = type(layer)
        if is_idle(layer):
            continue
        if kind is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
            flattens = flattens or not names
            continue
        if kind is nn.Linear:
            if layer.in_features != width:
                return f"{called(name, layer)} takes {layer.in_features} inputs but gets {width}"
            width = layer.out_features
            bias = len(names) + 1 if layer.bias is not None else -1
            nodes.append(
                ("linear", "", 0.0, 0.0, layer.in_features, width, len(names), bias)
            )
            names += [f"{name}weight"] + ([f"{name}bias"] if bias >= 0 else [])
            continue
        activation = activation_of(layer)
        if activation is None:
            return unknown(name, layer)
        nodes.append(("activation", *activation, width, width, -1, -1))
    if any(node[5] == 0 for node in nodes):
        return "a layer has no outputs"
    if len(nodes) > _MAX_NODES:
        return f"the chain has {len(nodes)} layers, and the native kernels take {_MAX_NODES}"
    missing = set(names) ^ {name for name, _ in module.named_parameters()}
    if missing:
        return f"layers share parameters ({', '.join(sorted(missing))})"
    return Chain(tuple(nodes), tuple(names), flattens, width)


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


def _first_width(module: nn.Module) -> int | None:
    linears = (leaf.in_features for _, leaf in leaves_of(module) if type(leaf) is nn.Linear)
    return next(linears, None)


def is_idle(layer: nn.Module) -> bool:
    """Whether a layer hands on what it gets."""
    if isinstance(layer, (nn.Dropout, nn.Dropout1d, nn.Dropout2d)):
        return not layer.training or layer.p == 0
    return type(layer) is nn.Identity


def called(name: str, layer: nn.Module) -> str:
    """What to call a layer in a sentence."""
    kind = type(layer).__name__
    return f"layer {name.rstrip('.')!r} ({kind})" if name else f"the module ({kind})"


def unknown(name: str, layer: nn.Module) -> str:
    """What a sentence says of a layer that no native kernel stands for."""
    if type(layer).__module__.startswith("torch."):
        return f"{called(name, layer)} is not among the layers that the native kernels have"
    return (
        f"{called(name, layer)} has a forward() written by hand, and the native kernels read "
        "nn.Sequential alone: write it as one of known layers, or let another engine run it, as "
        'engine="auto" does'
    )


def activation_of(layer: Any) -> tuple[str, float, float] | None:
    """Name and constants of an activation, or None."""
    kind = type(layer)
    if kind in _PLAIN:
        return _PLAIN[kind], 0.0, 0.0
    if kind is nn.GELU:
        return ("gelu_tanh" if layer.approximate == "tanh" else "gelu"), 0.0, 0.0
    if kind is nn.LeakyReLU and _number(layer.negative_slope) and layer.negative_slope >= 0:
        return "leaky_relu", float(layer.negative_slope), 0.0
    if kind is nn.Softplus and _number(layer.beta) and _number(layer.threshold) and layer.beta > 0:
        return "softplus", float(layer.beta), float(layer.threshold)
    if kind is Sine and _number(layer.frequency):
        return "sine", float(layer.frequency), 0.0
    return None


_PLAIN: dict[type, str] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}


def _number(value: object) -> bool:
    """A tensor could change without anybody noticing, or want a gradient."""
    return type(value) in (int, float)
