"""What stages are made of while a forward is read: results, and taps over pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ["NO_BORDER", "Names", "Taps", "Value"]

Names = Mapping[str, str]  # the module's, of a layer's parameters by its own
NO_BORDER = (0, 0, 0, 0)


class Value(NamedTuple):
    """What a call gives.

    Attributes:
        at: the stage that gives it, -1 for the module's input.
        shape: C, H, W.
        rank: dimensions that the module sees: C, H, W; or C and all pixels; or all in one.
        open: no call but the next one reads it, so that one may become a part of the stage.
        around: zeros before and behind height and width, which only a convolution takes.
    """

    at: int
    shape: tuple[int, ...]
    rank: int
    open: bool
    around: tuple[int, ...] = NO_BORDER

    @property
    def seen(self) -> list[int]:
        """The shape of a sample as PyTorch has it."""
        c, h, w = self.shape
        above, below, left, right = self.around
        shape = c, h + above + below, w + left + right
        return [*shape[: self.rank - 1], math.prod(shape[self.rank - 1 :])]


class Taps(NamedTuple):
    """Of a kernel over an image, height and width of each."""

    kernel: Sequence[int]
    stride: Sequence[int] = (1, 1)
    dilation: Sequence[int] = (1, 1)
    before: Sequence[int] = (0, 0)
    behind: Sequence[int] = (0, 0)

    def over(self, pixels: Sequence[int]) -> list[int]:
        """Pixels that it makes; 0 where it does not fit."""
        sides = zip(pixels, *self, strict=True)
        free = [(n + b + e - d * (k - 1) - 1, s) for n, k, s, d, b, e in sides]
        return [n // s + 1 if n >= 0 else 0 for n, s in free]
