"""The network without convolutions of MAML's Omniglot experiments."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from fastmeta.models.checks import check_positive

__all__ = ["omniglot_fc"]

_HIDDEN = (256, 128, 64, 64)


def omniglot_fc(ways: int | None, inputs: int = 28 * 28) -> nn.Sequential:
    """Four hidden layers of 256, 128, 64 and 64 with batch norm and ReLU, and a linear head.

    "MAML, no conv" (Finn, Abbeel, Levine 2017, section 5.2). Weights start as in the paper's code:
    normal with deviation 0.01, cut at two deviations, and biases at 0.

    Args:
        ways: classes of a task; None leaves out the head, for an encoder.
        inputs: pixels of an image.

    Raises:
        ValueError: an argument below 1.

    Equivalent to, but for the initial weights::

        nn.Sequential(nn.Flatten(),
                      nn.Linear(784, 256), nn.BatchNorm1d(256, track_running_stats=False),
                      nn.ReLU(), ..., nn.Linear(64, ways))
    """
    check_positive(inputs=inputs)
    layers: list[nn.Module] = [nn.Flatten()]
    for width, following in pairwise((inputs, *_HIDDEN)):
        norm = nn.BatchNorm1d(following, track_running_stats=False)
        layers += [_linear(width, following), norm, nn.ReLU()]
    if ways is not None:
        check_positive(ways=ways)
        layers.append(_linear(_HIDDEN[-1], ways))
    return nn.Sequential(*layers)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
    nn.init.zeros_(layer.bias)
    return layer
