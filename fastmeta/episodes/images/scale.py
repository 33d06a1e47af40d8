"""From bytes to floating pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fastmeta.backends import pixels


@dataclass(frozen=True)
class PixelScale:
    """Scales images to [0, 1], then to ``(value - mean) / std``.

    Attributes:
        mean: one number, or one a channel, of values in [0, 1].
        std: likewise, above 0.
        invert: whether [0, 1] becomes [1, 0] first.
        dtype: a floating dtype.

    Raises:
        ValueError: a number that is not finite, or a std that is not above 0.
        TypeError: `dtype` is not floating.

    Equivalent to::

        value = images.to(dtype) / 255
        if invert:
            value = 1 - value
        return (value - mean[:, None, None]) / std[:, None, None]
    """

    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    invert: bool = False
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if not self.dtype.is_floating_point:
            raise TypeError(f"dtype must be floating, not {self.dtype}")
        for name in ("mean", "std"):
            value = getattr(self, name)
            numbers = (value,) if isinstance(value, (int, float)) else tuple(value)
            object.__setattr__(self, name, tuple(map(float, numbers)))
            if not numbers or not all(map(math.isfinite, numbers)):
                raise ValueError(f"{name} must be finite numbers, not {value}")
        if min(self._std) <= 0:
            raise ValueError(f"std must be above 0, not {self.std}")

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [..., C, H, W] as floating pixels of the same shape, in a tensor of their own.

        Raises:
            ValueError: `mean` or `std` has neither one number nor C.
        """
        self.check_channels(images.shape[-3])
        factor, shift = _affine(self, images.device)
        scaled = images.to(self.dtype).mul_(factor)
        return scaled if shift is None else scaled.add_(shift)

    def take(self, images: Tensor, rows: Tensor) -> Tensor:
        """The chosen images of uint8 [n, C, H, W], scaled; rows [m] int64 are in [0, n).

        Equivalent to::

            self(images.index_select(0, rows))
        """
        if not pixels.can_run(images, self.dtype):
            return self(images.index_select(0, rows))
        return pixels.take(images, rows, *_of_channels(self, images.shape[1]))

    def check_channels(self, channels: int) -> None:
        """ValueError unless `mean` and `std` have one number, or one a channel."""
        for name, numbers in (("mean", self._mean), ("std", self._std)):
            if len(numbers) not in (1, channels):
                raise ValueError(
                    f"{name} has {len(numbers)} numbers, but the images have {channels} channels"
                )

    @property
    def _mean(self) -> tuple[float, ...]:
        assert isinstance(self.mean, tuple)
        return self.mean

    @property
    def _std(self) -> tuple[float, ...]:
        assert isinstance(self.std, tuple)
        return self.std


@lru_cache(maxsize=64)
def _of_channels(scale: PixelScale, channels: int) -> tuple[Tensor, Tensor]:
    """Return factor and shift, [C] each, on the CPU."""
    scale.check_channels(channels)
    factor, shift = _affine(scale, torch.device("cpu"))
    shift = torch.zeros_like(factor) if shift is None else shift
    factor, shift = (t.flatten().expand(channels).contiguous() for t in (factor, shift))
    return factor, shift


@lru_cache(maxsize=64)
def _affine(scale: PixelScale, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the factor of a byte and what is added then: [C, 1, 1], or None for zero."""
    mean, std = (torch.tensor(n, dtype=torch.float64) for n in (scale.mean, scale.std))
    factor = (-1 if scale.invert else 1) / (255 * std)
    shift = (float(scale.invert) - mean) / std
    factor, shift = (t.view(-1, 1, 1).to(device, scale.dtype) for t in (factor, shift))
    return factor, shift if shift.any() else None
