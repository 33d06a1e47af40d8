"""The field's standard convolutional network."""

from __future__ import annotations

from torch import nn

from fastmeta.counts import whole_number
from fastmeta.models.checks import check_positive

__all__ = ["conv4"]


def conv4(
    ways: int | None,
    channels: int = 1,
    filters: int = 64,
    image_size: int = 28,
    pool: str = "max",
    *,
    layers: int = 4,
    padding: int = 1,
) -> nn.Sequential:
    """Blocks of 3x3 convolution, batch norm and ReLU, and a linear head.

    The network of Vinyals et al. 2016 and Snell et al. 2017 (64 filters, max-pool) and of Finn,
    Abbeel, Levine 2017 (section 5.2 and its code: Omniglot with stride 2 and the mean over pixels,
    miniImageNet with 32 filters and max-pool). As in that code convolutions start from Glorot's
    uniform weights and the head too, except after ``pool="stride"``, where it is standard normal;
    biases start at 0. Norms keep no running statistics: all these papers use those of the batch.
    The widely copied three-layer form without padding is ``conv4(ways, layers=3, padding=0)``.

    Args:
        ways: classes of a task; None leaves out the head, for an encoder.
        channels: of an image.
        filters: of every convolution.
        image_size: height and width of an image.
        pool: "max", a 2x2 max-pool in each block, then all that is left as features; or "stride",
            a stride of 2 in each convolution, then the mean over what is left of the image.
        layers: number of blocks.
        padding: of every convolution.

    Raises:
        ValueError: an argument that is not as above, or blocks that leave nothing of the image.

    Equivalent to, but for the initial weights, ``conv4(5)``::

        nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 64, 3, padding=1),
                          nn.BatchNorm2d(64, track_running_stats=False), nn.ReLU(),
                          nn.MaxPool2d(2)),
            ...,  # three more
            nn.Flatten(), nn.Linear(64, 5))
    """
    check_positive(channels=channels, filters=filters, image_size=image_size, layers=layers)
    if pool not in ("max", "stride"):
        raise ValueError(f'pool must be "max" or "stride", not {pool!r}')
    whole_number("padding", padding, least=0)
    inputs = [channels] + [filters] * (layers - 1)
    blocks: list[nn.Module] = [_block(i, filters, pool, padding) for i in inputs]
    side = _side_after(image_size, pool, layers, padding)
    if pool == "stride":
        blocks.append(nn.AdaptiveAvgPool2d(1))
        side = 1
    blocks.append(nn.Flatten())
    if ways is not None:
        check_positive(ways=ways)
        blocks.append(_head(filters * side * side, ways, pool))
    return nn.Sequential(*blocks)


def _block(inputs: int, filters: int, pool: str, padding: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, filters, 3, stride=_stride(pool), padding=padding)
    nn.init.xavier_uniform_(convolution.weight)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    layers = [convolution, nn.BatchNorm2d(filters, track_running_stats=False), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool == "max" else []))


def _head(features: int, ways: int, pool: str) -> nn.Linear:
    head = nn.Linear(features, ways)
    if pool == "stride":
        nn.init.normal_(head.weight)
    else:
        nn.init.xavier_uniform_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _side_after(image_size: int, pool: str, layers: int, padding: int) -> int:
    side = image_size
    for _ in range(layers):
        side = (side + 2 * padding - 3) // _stride(pool) + 1
        if pool == "max":
            side //= 2
        if side < 1:
            raise ValueError(
                f"{layers} layers with padding {padding} leave nothing of an image of "
                f"{image_size}x{image_size}"
            )
    return side


def _stride(pool: str) -> int:
    return 2 if pool == "stride" else 1
