"""A multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fastmeta.models.activations import ACTIVATIONS
from fastmeta.models.checks import check_sizes
from fastmeta.words import one_of

__all__ = ["mlp"]


def mlp(sizes: Sequence[int], activation: str = "relu") -> nn.Sequential:
    """A chain of linear layers with an activation between each two.

    Args:
        sizes: widths from input to output, at least two, each at least 1.
        activation: one of `ACTIVATIONS`.

    Raises:
        ValueError: fewer than two sizes, a size below 1, or an unknown activation.

    Equivalent to, for ``mlp([1, 40, 1])``::

        nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 1))
    """
    check_sizes(sizes)
    if activation not in ACTIVATIONS:
        raise ValueError(one_of("activation", activation, ACTIVATIONS))
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])
