"""A network of sines, for coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from fastmeta.models.activations import Sine
from fastmeta.models.checks import check_sizes

__all__ = ["siren"]


def siren(sizes: Sequence[int], frequency: float = 30.0) -> nn.Sequential:
    """Linear layers with sines between them, from coordinates to values (Sitzmann et al. 2020).

    Weights start as in section 3.2 of the paper and its supplement: the first layer uniform in
    +-1/n, all later ones in +-sqrt(6/n)/frequency, with n the inputs of the layer.

    Args:
        sizes: widths from input to output, at least two, each at least 1.
        frequency: omega_0 of the paper, of every sine.

    Raises:
        ValueError: fewer than two sizes, a size below 1, or a frequency that is not positive.

    Equivalent to, but for the initial weights, ``siren([2, 256, 3])``::

        nn.Sequential(nn.Linear(2, 256), Sine(30.0), nn.Linear(256, 3))
    """
    check_sizes(sizes)
    if not (math.isfinite(frequency) and frequency > 0):
        raise ValueError(f"frequency must be positive, not {frequency!r}")
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
        linear = nn.Linear(inputs, outputs)
        bound = math.sqrt(6 / inputs) / frequency if layers else 1 / inputs
        nn.init.uniform_(linear.weight, -bound, bound)
        layers += [linear, Sine(frequency)]
    return nn.Sequential(*layers[:-1])
