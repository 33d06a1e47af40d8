"""A learned number that stays above 0."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["Positive"]


class Positive(nn.Module):
    """A number above 0, kept and learned as its logarithm.

    Args:
        name: what it is called where it is wrong.
        value: where it starts.
        learn: whether it requires grad.
        encoder: what it stands beside: it is kept in float64 where that is.

    Raises:
        ValueError: a value that is not above 0 and finite, a `learn` that is not True or False.
        TypeError: no number.
    """

    def __init__(self, name: str, value: float, learn: bool, encoder: nn.Module) -> None:
        super().__init__()
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number, not {type(value).__name__}")
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, not {value}")
        if not isinstance(learn, bool):
            raise ValueError(f"learn_{name} must be True or False, not {learn!r}")
        wide = any(parameter.dtype is torch.float64 for parameter in encoder.parameters())
        log = torch.tensor(math.log(value), dtype=torch.float64 if wide else torch.float32)
        self.log = nn.Parameter(log, requires_grad=learn)

    def forward(self, like: Tensor) -> Tensor:
        """The number [], in the dtype of another tensor."""
        return self.log.to(like.dtype).exp()

    def extra_repr(self) -> str:
        return f"{self.log.exp().item():g}, learned={self.log.requires_grad}"
