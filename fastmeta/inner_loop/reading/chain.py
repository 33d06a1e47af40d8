"""Which modules are chains that the native kernels know, and what they look like to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fastmeta.inner_loop.reading.affine import Activation, composed
from fastmeta.inner_loop.reading.calls import calls_of
from fastmeta.inner_loop.reading.joins import Join
from fastmeta.inner_loop.reading.layers import (
    activation_of,
    is_idle,
    misshapen,
    unknown,
    unlike_parameters,
)
from fastmeta.inner_loop.reading.shape_layers import Reshaped

__all__ = ["Chain", "chain_of"]

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
    fewest: ClassVar[int] = 1  # samples that a task must have
    buffers: ClassVar[tuple[str, ...]] = ()  # of the names


def chain_of(module: nn.Module) -> Chain | str:
    """The chain that a module is, or a sentence saying why it is none."""
    nodes: list[Node] = []
    names: list[str] = []
    flattens = False
    calls = calls_of(module)
    if isinstance(calls, str):
        return calls
    width = next((c.layer.in_features for c in calls if type(c.layer) is nn.Linear), None)
    if width is None:
        return "the module has no linear layer"
    for index, call in enumerate(calls):
        layer = call.layer
        kind = type(layer)
        if call.inputs != (index - 1,) or isinstance(layer, Join):
            return "the module is no chain of layers"
        if is_idle(layer):
            continue
        if _flattens(layer, width):
            flattens = flattens or not names
            continue
        if kind is nn.Linear:
            if layer.in_features != width:
                return f"{call.name} takes {layer.in_features} inputs but gets {width}"
            width = layer.out_features
            bias = len(names) + 1 if layer.bias is not None else -1
            nodes.append(("linear", "", 0.0, 0.0, layer.in_features, width, len(names), bias))
            names += [call.parameters[own] for own in ("weight", "bias")[: 1 + (bias >= 0)]]
            continue
        activation = activation_of(layer)
        if activation is None:
            return unknown(call.name)
        if nodes and (both := composed(_activation(nodes[-1]), activation)) is not None:
            nodes.pop()
            activation = both
        nodes.append(("activation", *activation, width, width, -1, -1))
    if any(node[5] == 0 for node in nodes):
        return "a layer has no outputs"
    if len(nodes) > _MAX_NODES:
        return f"the chain has {len(nodes)} layers, and the native kernels take {_MAX_NODES}"
    chain = Chain(tuple(nodes), tuple(names), flattens, width)
    layers = [(call.layer, call.parameters) for call in calls]
    return unlike_parameters(module, names) or misshapen(module, layers) or chain


def _activation(node: Node) -> Activation | None:
    kind, name, a, b, *_ = node
    return (name, a, b) if kind == "activation" else None


def _flattens(layer: Any, width: int) -> bool:
    """Whether each sample comes out as a row of so many numbers."""
    if type(layer) is Reshaped:
        return layer.sample == (width,)
    return type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)
