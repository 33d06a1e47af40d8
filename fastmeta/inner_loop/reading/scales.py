"""Arithmetic of a forward's images with numbers of each channel: FiLM, gates of zero, means.

As a norm's own scale and shift, or as a depthwise convolution of one pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.node import Node

from fastmeta.inner_loop.reading.affine import arithmetic_of

__all__ = ["Numbers", "Recipe", "Scale", "depthwise", "norm_of", "scale_of", "scaled"]


class Recipe(NamedTuple):
    """How a tensor is made of parameters.

    Attributes:
        function: of the sources and the constants.
        sources: nodes of parameters alone, names of parameters, and what others are made by.
    """

    function: Callable[..., Tensor]
    sources: tuple[Node | str | Recipe, ...]
    constants: tuple[Any, ...] = ()


class Numbers(NamedTuple):
    """weight x + bias of each channel, [channels] both; None: 1 and 0."""

    weight: Node | str | Recipe | None
    bias: Node | str | Recipe | None

    def both(self) -> tuple[Node | str | Recipe, Node | str | Recipe]:
        weight, bias = self
        if weight is None:
            assert bias is not None
            return Recipe(torch.ones_like, (bias,)), bias
        return weight, Recipe(torch.zeros_like, (weight,)) if bias is None else bias


class Scale(NamedTuple):
    """A call that scales or shifts each channel.

    Attributes:
        of: whose result.
        numbers: by which.
        shape: of the result.
    """

    of: Node
    numbers: Numbers
    shape: tuple[int, ...]


def scale_of(
    node: Node, of_samples: Callable[[Node], bool], value_of: Callable[[Node], Any]
) -> Scale | None:
    """What a call does to each channel of images or sequences, None of other calls.

    Args:
        of_samples: whether a node depends on the samples.
        value_of: what a node is for some of them.
    """
    takes_two = len(node.args) == 2 and all(isinstance(a, Node) for a in node.args)
    if not takes_two or node.kwargs or not of_samples(node):
        return None
    first, second = cast(tuple[Node, Node], node.args)
    order = "xp" if of_samples(first) else "px"
    of, by = (first, second) if order == "xp" else (second, first)
    rule = _RULES.get(f"{arithmetic_of(node)} {order}")
    if rule is None or of_samples(by) or not of_samples(of):
        return None
    x, p = value_of(of), value_of(by)
    if not isinstance(x, Tensor) or not isinstance(p, Tensor) or not _is_of_channels(p, x):
        return None
    each = Recipe(_of_channels, (by,), (x.shape[1],))
    weight, bias = (None if function is None else Recipe(function, (each,)) for function in rule)
    return Scale(of, Numbers(weight, bias), tuple(x.shape))


def _is_of_channels(p: Tensor, x: Tensor) -> bool:
    if x.dim() not in (3, 4) or p.dim() > x.dim():
        return False
    first, channels, *others = (*(1,) * (x.dim() - p.dim()), *p.shape)
    return first == 1 and channels in (1, x.shape[1]) and all(n == 1 for n in others)


def _of_channels(p: Tensor, channels: int) -> Tensor:
    return p.reshape(-1).expand(channels)


def _as_it_is(p: Tensor) -> Tensor:
    return p


def _minus_one(p: Tensor) -> Tensor:
    return -torch.ones_like(p)


# Weight and bias, by the operation and the order of samples and numbers.
_RULES: dict[str, tuple[Callable[[Tensor], Tensor] | None, Callable[[Tensor], Tensor] | None]] = {
    "add xp": (None, _as_it_is),
    "add px": (None, _as_it_is),
    "sub xp": (None, torch.neg),
    "sub px": (_minus_one, _as_it_is),
    "rsub xp": (_minus_one, _as_it_is),
    "mul xp": (_as_it_is, None),
    "mul px": (_as_it_is, None),
    "div xp": (torch.reciprocal, None),
}


def scaled(numbers: Numbers, then: Numbers) -> Numbers:
    """Both, one after the other."""
    weight, bias = numbers
    if then.weight is not None:
        weight = then.weight if weight is None else Recipe(torch.mul, (weight, then.weight))
        bias = None if bias is None else Recipe(torch.mul, (bias, then.weight))
    if then.bias is not None:
        bias = then.bias if bias is None else Recipe(torch.add, (bias, then.bias))
    return Numbers(weight, bias)


# ---- what does it --------------------------------------------------------------------------------
# The function, what it takes between the samples and the numbers, and what it takes after them.

_Call = tuple[Callable[..., Tensor], tuple[Any, ...], tuple[Any, ...]]


def depthwise(shape: Sequence[int], numbers: Numbers) -> tuple[_Call, Numbers]:
    """A convolution of each channel by itself, and its weight and bias."""
    _, channels, *sides = shape
    convolve = F.conv1d if len(sides) == 1 else F.conv2d
    weight = Recipe(torch.reshape, (numbers.both()[0],), ((channels, 1, *[1] * len(sides)),))
    return (convolve, (), (1, 0, 1, channels)), Numbers(weight, numbers.bias)


def norm_of(layer: nn.Module, name: str) -> tuple[_Call, Numbers] | None:
    """A norm of channels by itself, and its own scale and shift; None of other layers."""
    if not isinstance(layer, _NORMS):
        return None
    numbers = Numbers(
        *(f"{name}.{own}" if getattr(layer, own) is not None else None for own in Numbers._fields)
    )
    if isinstance(layer, nn.GroupNorm):
        return (F.group_norm, (layer.num_groups,), (layer.eps,)), numbers
    norm = F.batch_norm if isinstance(layer, _BATCH_NORMS) else F.instance_norm
    return (norm, (None, None), (True, 0.1, layer.eps)), numbers


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_NORMS = (*_BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.GroupNorm)
