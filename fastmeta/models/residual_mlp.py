"""A perceptron beside the identity: an encoder of features that are good already."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastmeta.models.activations import ACTIVATIONS
from fastmeta.models.checks import check_positive
from fastmeta.words import one_of

__all__ = ["ResidualMLP"]


class ResidualMLP(nn.Module):
    """Learns what to add to its input, so that training starts near the input itself.

    Args:
        features: D, the width of input and output.
        hidden: widths of the hidden layers; none: a linear map is added.
        activation: one of `ACTIVATIONS`.
        dropout: share of each hidden layer that is dropped in training, from 0 to below 1.

    Raises:
        ValueError: an argument that is not as above.

    Equivalent to, for ``ResidualMLP(64, [512], dropout=0.5)``::

        x + nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 64))(x)
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int],
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(features=features, **{f"hidden[{i}]": n for i, n in enumerate(hidden)})
        if activation not in ACTIVATIONS:
            raise ValueError(one_of("activation", activation, ACTIVATIONS))
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1, not {dropout}")
        layers: list[nn.Module] = []
        width = features
        for following in hidden:
            layers += [nn.Linear(width, following), ACTIVATIONS[activation]()]
            layers += [nn.Dropout(dropout)] if dropout else []
            width = following
        self.layers = nn.Sequential(*layers, nn.Linear(width, features))

    def forward(self, x: Tensor) -> Tensor:
        """[n, D] of [n, D]."""
        return torch.add(x, self.layers(x))
