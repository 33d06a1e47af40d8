"""Weights of samples, and the padding that a weight of 0 marks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastmeta.functional.capture import assert_later, is_capturing
from fastmeta.words import kind_of

__all__ = ["filled"]


def filled(kind: str, x: Tensor, y: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """The samples with their padding replaced; raises for weights as `_has_padding` does."""
    if weight is None or not _has_padding(kind, weight, x):
        return x, y
    real = weight.detach() > 0
    # A copy of a real sample is safe under any network; a row of zeros is not (x / |x|).
    first_real = real.int().argmax(1)
    return _fill(x, real, first_real), _fill(y, real, first_real)


def _fill(values: Tensor, real: Tensor, first_real: Tensor) -> Tensor:
    tasks = torch.arange(len(values), device=values.device)
    filler = values[tasks, first_real].unsqueeze(1)
    return torch.where(real[(...,) + (None,) * (values.dim() - 2)], values, filler)


def _has_padding(kind: str, weight: Tensor, x: Tensor) -> bool:
    """Whether a weight is 0; raises for weights that are not as `TaskBatch` says."""
    name = f"{kind}_weight"
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        hint = f": give {name}.to({kind}_x.dtype)" if isinstance(weight, Tensor) else ""
        raise TypeError(f"{name} must be a floating tensor, not {_describe(weight)}{hint}")
    if weight.shape != x.shape[:2]:
        raise ValueError(f"{name} must be {list(x.shape[:2])}, not {list(weight.shape)}")
    if weight.device != x.device or (x.is_floating_point() and weight.dtype is not x.dtype):
        raise TypeError(f"{name} is {_describe(weight)}, {kind}_x {_describe(x)}")
    values = weight.detach()
    if is_capturing(values):
        usable = (values >= 0) & (values < math.inf) & (values.amax(1, keepdim=True) > 0)
        assert_later(usable, f"{name} is negative, not finite, or 0 for all samples of a task")
        return True
    low, high = torch.stack(values.aminmax()).tolist()
    if not 0 <= low <= high < math.inf:
        raise ValueError(f"{name} must be finite and not negative")
    empty = values.amax(1) == 0 if low == 0 else None
    if empty is not None and empty.any():
        raise ValueError(f"{name} is 0 for every sample of tasks {empty.nonzero()[:, 0].tolist()}")
    return low == 0


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} on {value.device}"
    return kind_of(value)
