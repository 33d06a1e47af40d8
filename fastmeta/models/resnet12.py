"""The residual network of few-shot learning."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from fastmeta.models.checks import check_positive

__all__ = ["ResidualBlock", "resnet12"]


class ResidualBlock(nn.Module):
    """Three 3x3 convolutions beside a 1x1 one, their sum through a leaky ReLU, and a max-pool.

    Args:
        inputs, outputs: channels.

    Equivalent to::

        F.max_pool2d(F.leaky_relu(convolutions(x) + shortcut(x), 0.1), 2)
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *_convolution(inputs, outputs, 3), nn.LeakyReLU(0.1),
            *_convolution(outputs, outputs, 3), nn.LeakyReLU(0.1),
            *_convolution(outputs, outputs, 3),
        )  # fmt: skip
        self.shortcut = nn.Sequential(*_convolution(inputs, outputs, 1))
        self.activation = nn.LeakyReLU(0.1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.activation(self.convolutions(x) + self.shortcut(x)))


def resnet12(
    ways: int | None, channels: int = 3, widths: Sequence[int] = (64, 160, 320, 640)
) -> nn.Sequential:
    """Four residual blocks, the mean over pixels, and a linear head.

    ResNet-12 as in Lee et al. 2019 (MetaOptNet, section 4.1; without DropBlock), after Oreshkin et
    al. 2018 (TADAM), whose widths are (64, 128, 256, 512). Convolutions have no bias and start from
    Kaiming's normal weights for the outputs (fan_out, leaky ReLU), as in MetaOptNet's code. Norms
    keep no running statistics.

    Args:
        ways: classes of a task; None leaves out the head, for an encoder.
        channels: of an image, which must be at least 2^blocks pixels wide and high.
        widths: channels after each block.

    Raises:
        ValueError: an argument below 1, or no widths.

    Equivalent to, but for the initial weights::

        nn.Sequential(ResidualBlock(3, 64), ResidualBlock(64, 160), ResidualBlock(160, 320),
                      ResidualBlock(320, 640), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                      nn.Linear(640, ways))
    """
    check_positive(channels=channels, **{f"widths[{i}]": width for i, width in enumerate(widths)})
    if not widths:
        raise ValueError("widths must name at least one block")
    layers: list[nn.Module] = [ResidualBlock(*pair) for pair in pairwise((channels, *widths))]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if ways is not None:
        check_positive(ways=ways)
        layers.append(nn.Linear(widths[-1], ways))
    return nn.Sequential(*layers)


def _convolution(inputs: int, outputs: int, kernel: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="leaky_relu")
    return convolution, nn.BatchNorm2d(outputs, track_running_stats=False)
