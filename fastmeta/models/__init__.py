"""Networks to meta-learn with: ordinary modules, nothing in them knows of meta-learning."""

from fastmeta.models.activations import ACTIVATIONS, Sine
from fastmeta.models.conv4 import conv4
from fastmeta.models.mlp import mlp
from fastmeta.models.omniglot_fc import omniglot_fc
from fastmeta.models.residual_mlp import ResidualMLP
from fastmeta.models.resnet12 import ResidualBlock, resnet12
from fastmeta.models.siren import siren

__all__ = [
    "ACTIVATIONS",
    "ResidualBlock",
    "ResidualMLP",
    "Sine",
    "conv4",
    "mlp",
    "omniglot_fc",
    "resnet12",
    "siren",
]


def __dir__() -> list[str]:
    return [*__all__]
