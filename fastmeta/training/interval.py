"""Means over tasks with their confidence intervals."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """A mean over tasks and its confidence interval (95 % unless asked otherwise)."""

    mean: float
    low: float
    high: float

    def sqrt(self) -> Interval:
        """The same for the root of the mean (RMSE from MSE); the interval is cut at 0."""
        root = (math.sqrt(max(value, 0.0)) for value in (self.mean, self.low, self.high))
        return Interval(*root)


def interval(values: Tensor, confidence: float = 0.95) -> Interval:
    """Student's interval for the mean of `values` [T], the tasks being a sample of many.

    With one task the interval is infinitely wide.
    """
    mean = values.double().mean().item()
    count = len(values)
    if count == 1:
        return Interval(mean, -math.inf, math.inf)
    error = values.double().std().item() / math.sqrt(count)
    half = student_t(count - 1, confidence) * error
    return Interval(mean, mean - half, mean + half)


@functools.cache
def student_t(degrees: int, confidence: float = 0.95) -> float:
    """Return t such that Student's variable lies in [-t, t] with this probability.

    With t = sqrt(degrees) * tan(angle) the density becomes cos(angle)^(degrees - 1), which is
    summed here; exact to 6 digits and more.
    """
    # Nearly all mass lies within a few multiples of this width.
    widest = min(math.pi / 2, 40 / math.sqrt(degrees))
    angle = np.linspace(0.0, widest, 200_001)
    density = np.cos(angle) ** (degrees - 1)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    quantile = np.interp(confidence * mass[-1], mass, angle)
    return math.sqrt(degrees) * math.tan(quantile)
