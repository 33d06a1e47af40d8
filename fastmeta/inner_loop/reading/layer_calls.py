"""Functions and methods that a traced forward calls, as the layers that do the same."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.node import Node

from fastmeta.inner_loop.reading.layers import leaves_of
from fastmeta.inner_loop.reading.parameter_calls import OF_PARAMETERS, Operands
from fastmeta.inner_loop.reading.shape_layers import (
    flattened,
    largest,
    mean,
    of_shape,
    padded,
    part_of_chunks,
    part_of_split,
    picked,
    resized,
    squeezed,
    unflattened,
    unsqueezed,
)
from fastmeta.inner_loop.reading.trace import Unknown, own_name
from fastmeta.models import Sine

__all__ = ["has_parts", "layer_of_part", "layers_of_call", "name_of", "whole_of"]


def name_of(node: Node) -> str:
    if node.op == "call_module":
        return own_name(node.target)
    return getattr(node.target, "__name__", str(node.target))


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
    return nn.Dropout(p, inplace).train(training)


def _max_pool(kind: type[nn.MaxPool1d] | type[nn.MaxPool2d]) -> Callable[..., nn.Module]:
    def make(
        kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> nn.Module:  # fmt: skip
        return kind(kernel_size, stride or None, padding, dilation, return_indices, ceil_mode)

    return make


_DROPOUTS = (
    F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
)  # fmt: skip
_METHODS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "sin": Sine,
    "relu_": functools.partial(nn.ReLU, inplace=True),
    "clone": nn.Identity,
    "contiguous": nn.Identity,
    "flatten": flattened,
    "mean": mean,
    "reshape": of_shape,
    "squeeze": squeezed,
    "unflatten": unflattened,
    "unsqueeze": unsqueezed,
    "view": of_shape,
}
_FUNCTIONS: dict[Any, Callable[..., nn.Module]] = {
    **{getattr(torch, name): make for name, make in _METHODS.items() if hasattr(torch, name)},
    operator.getitem: picked,
    F.pad: padded,
    F.interpolate: resized,
    F.relu: nn.ReLU,
    F.leaky_relu: nn.LeakyReLU,
    F.tanh: nn.Tanh,
    F.sigmoid: nn.Sigmoid,
    F.gelu: nn.GELU,
    F.glu: nn.GLU,
    F.softplus: nn.Softplus,
    F.silu: nn.SiLU,
    F.elu: nn.ELU,
    F.selu: nn.SELU,
    F.mish: nn.Mish,
    F.relu6: nn.ReLU6,
    F.hardtanh: nn.Hardtanh,
    F.hardswish: nn.Hardswish,
    **dict.fromkeys(_DROPOUTS, _dropout),
    F.max_pool1d: _max_pool(nn.MaxPool1d),
    torch.max_pool1d: _max_pool(nn.MaxPool1d),
    F.max_pool2d: _max_pool(nn.MaxPool2d),
    torch.max_pool2d: _max_pool(nn.MaxPool2d),
    F.avg_pool1d: nn.AvgPool1d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.adaptive_max_pool1d: nn.AdaptiveMaxPool1d,
    F.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
}


# Calls with several results, and the layer that gives one of them.
_WHOLE: dict[Any, Callable[..., nn.Module]] = {
    **dict.fromkeys(("max", torch.max), largest),
    **dict.fromkeys(("chunk", torch.chunk), part_of_chunks),
    **dict.fromkeys(("split", torch.split), part_of_split),
}


def has_parts(node: Node) -> bool:
    """Whether it is `x.max(dim)`, of which the values alone are read, or cuts into pieces, which
    are read one by one.
    """
    if node.op not in ("call_method", "call_function") or node.target not in _WHOLE:
        return False
    if _WHOLE[node.target] is largest and len(node.args) + len(node.kwargs) < 2:
        return False
    return bool(node.users) and all(whole_of(user) is node for user in node.users)


def whole_of(node: Node) -> Node | None:
    """The call with several results of which a node is one that has a layer."""
    if node.op != "call_function" or len(node.args) != 2 or node.kwargs:
        return None
    whole, which = node.args
    if not isinstance(whole, Node) or whole.target not in _WHOLE:
        return None
    if _WHOLE[whole.target] is largest:
        first = (operator.getitem, 0), (getattr, "values")
        return whole if type(which) in (int, str) and (node.target, which) in first else None
    return whole if node.target is operator.getitem and type(which) is int else None


def layer_of_part(node: Node, args: Any, kwargs: Any) -> nn.Module:
    """The layer that gives one of the results of `whole_of(node)`; args: that call's others."""
    whole = whole_of(node)
    assert whole is not None
    make = _WHOLE[whole.target]
    return _made(whole, make, args if make is largest else (node.args[1], *args), kwargs)


def layers_of_call(
    node: Node, root: nn.Module, args: Any, kwargs: Any
) -> list[tuple[nn.Module, Mapping[str, str]]]:
    """The layers that do the same as a function or method with a tensor as its first argument.

    args, kwargs: the others, with sizes as numbers.
    """
    given: dict[str, str] = {}
    table: Any = _METHODS if node.op == "call_method" else _FUNCTIONS
    make = table.get(node.target) if node.op in ("call_method", "call_function") else None
    if node.op == "call_function" and node.target in OF_PARAMETERS:
        make = functools.partial(OF_PARAMETERS[node.target], Operands(root, given))
    if make is None:
        raise Unknown(f"it calls {name_of(node)}, which is none of the native kernels' layers")
    return [(own, given) for _, own in leaves_of(_made(node, make, args, kwargs))]


def _made(node: Node, make: Callable[..., nn.Module], args: Any, kwargs: Any) -> nn.Module:
    try:
        return make(*args, **kwargs)
    except (TypeError, ValueError, AssertionError) as error:
        raise Unknown(
            f"its call of {name_of(node)} is none of the native kernels' layers: {error}"
        ) from error
