"""Arithmetic of a forward's images with numbers of each channel, as depthwise convolutions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.node import Node

from fastmeta.inner_loop.reading.affine import arithmetic_of

__all__ = ["Scale", "bias_of", "scale_of", "weight_of"]


class Scale(NamedTuple):
    """weight x + bias, with numbers of each channel.

    Attributes:
        of: whose result it is of.
        by: what the numbers are made of.
        rule: how.
        channels: how many.
        convolve: the function that does it, of a weight [channels, 1, *kernel].
        kernel: ones.
    """

    of: Node
    by: Node
    rule: str
    channels: int
    convolve: Callable[..., Tensor]
    kernel: tuple[int, ...]

    @property
    def shifts(self) -> bool:
        """Whether there is a bias."""
        return _RULES[self.rule][1] is not None

    @property
    def adds(self) -> bool:
        """Whether a bias is all that there is."""
        return self.shifts and _RULES[self.rule][0] is torch.ones_like


def scale_of(
    node: Node, of_samples: Callable[[Node], bool], value_of: Callable[[Node], Any]
) -> Scale | None:
    """What a call does to each channel of images or sequences, None of other calls.

    Args:
        of_samples: whether a node depends on the samples.
        value_of: what a node is for some of them.
    """
    if len(node.args) != 2 or node.kwargs or not all(isinstance(a, Node) for a in node.args):
        return None
    first, second = cast(tuple[Node, Node], node.args)
    order = "xp" if of_samples(first) else "px"
    of, by = (first, second) if order == "xp" else (second, first)
    rule, (x, p) = f"{arithmetic_of(node)} {order}", (value_of(of), value_of(by))
    if rule not in _RULES or of_samples(by) or not of_samples(of):
        return None
    if not isinstance(x, Tensor) or not isinstance(p, Tensor) or p.dim() > x.dim():
        return None
    return _scale(of, by, rule, x.shape, p.shape)


def _scale(
    of: Node, by: Node, rule: str, x: Sequence[int], p: Sequence[int]
) -> Scale | None:
    sides = len(x) - 2
    if sides not in (1, 2):
        return None
    spread = (1,) * (len(x) - len(p)) + tuple(p)
    if spread[0] != 1 or spread[1] not in (1, x[1]) or any(n != 1 for n in spread[2:]):
        return None
    convolve = F.conv1d if sides == 1 else F.conv2d
    return Scale(of, by, rule, x[1], convolve, (1,) * sides)


def weight_of(p: Tensor, rule: str, channels: int, kernel: Sequence[int]) -> Tensor:
    """[channels, 1, *kernel] of numbers p."""
    weight = _RULES[rule][0](p.reshape(-1).expand(channels))
    return weight.reshape(channels, 1, *kernel)


def bias_of(p: Tensor, rule: str, channels: int) -> Tensor:
    """[channels]"""
    bias = _RULES[rule][1]
    assert bias is not None
    return bias(p.reshape(-1).expand(channels))


def _as_it_is(p: Tensor) -> Tensor:
    return p


# Weight and bias, by the operation and the order of samples and numbers.
_RULES: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor] | None]] = {
    "add xp": (torch.ones_like, _as_it_is),
    "add px": (torch.ones_like, _as_it_is),
    "sub xp": (torch.ones_like, torch.neg),
    "sub px": (lambda p: -torch.ones_like(p), _as_it_is),
    "rsub xp": (lambda p: -torch.ones_like(p), _as_it_is),
    "mul xp": (_as_it_is, None),
    "mul px": (_as_it_is, None),
    "div xp": (torch.reciprocal, None),
}
