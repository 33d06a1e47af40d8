"""Networks to meta-learn with: ordinary modules, nothing in them knows of meta-learning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "Sine", "mlp"]


class Sine(nn.Module):
    """sin(frequency * x), the activation of SIREN (Sitzmann et al. 2020, section 3).

    Args:
        frequency: omega_0 of the paper.

    Equivalent to::

        torch.sin(frequency * x)
    """

    def __init__(self, frequency: float = 1.0) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.frequency * x)

    def extra_repr(self) -> str:
        return f"frequency={self.frequency:g}"


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "sine": Sine,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
}


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
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes must be two or more widths of at least 1, not {list(sizes)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])
