"""PyTorch's functions that look at values while they run, spelled so that nobody has to."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastmeta.functional.row_programs.step import Unreadable

__all__ = ["Spelled", "asked_by_distributions"]


class Spelled(TorchFunctionMode):
    """Has functions run as operations that do not depend on values.

    Attributes:
        assumed: truths of which PyTorch raises an error, should one be false.
    """

    def __init__(self) -> None:
        super().__init__()
        self.assumed: list[Tensor] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is Tensor.__bool__ and asked_by_distributions():
            self.assumed.append(args[0])
            return True
        compares = function in (Tensor.lt, Tensor.__lt__) and args[1:] == (_FROM_ONE,)
        if compares and asked_by_distributions():
            return args[0] < _FARTHER  # sums of many numbers round in another order
        other = _SPELLED.get(function)
        if other is not None:
            return other(self.assumed.append, *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


_FROM_ONE, _FARTHER = 1e-6, 1e-4  # probabilities may add up to, and may here


def asked_by_distributions() -> bool:
    """Whether torch.distributions is what asks, to validate its arguments."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__")):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__")).startswith("torch.distributions.")


def _is_ours(module: Any) -> bool:
    return str(module).startswith("fastmeta.functional.row_programs.")


Assume = Callable[[Tensor], None]


def _one_hot(assume: Assume, labels: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes < 0:
        raise Unreadable("it makes as many classes as labels come to")
    zeros = labels.new_zeros(*labels.shape, num_classes)
    return zeros.scatter_(-1, labels.unsqueeze(-1), 1)


def _at_least(x: Tensor, least: float) -> Tensor:
    """As `with torch.no_grad(): x.clamp_(min=least)` has it: with the slope 1 everywhere."""
    return torch.where(x < least, least + (x - x.detach()), x)


def _cosine_similarity(
    assume: Assume, x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8
) -> Tensor:
    x1, x2 = torch.broadcast_tensors(x1, x2)  # lengths are those of what is broadcast
    x1, x2 = (
        x / _at_least(torch.linalg.vector_norm(x, 2, dim, keepdim=True), eps) for x in (x1, x2)
    )
    return (x1 * x2).sum(dim)


def _gaussian_nll_loss(
    assume: Assume, input: Tensor, target: Tensor, var: Tensor | float, full: bool = False,
    eps: float = 1e-6, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    if not isinstance(var, Tensor):
        raise Unreadable("its variance is a number: a tensor is read")
    assume((var >= 0).all())
    if var.size() != input.size():
        if var.size() == input.size()[:-1]:
            var = var.unsqueeze(-1)
        elif var.size() != (*input.size()[:-1], 1):
            raise ValueError("var is of incorrect size")
    var = _at_least(var, eps)
    losses = 0.5 * (torch.log(var) + (input - target) ** 2 / var)
    return _reduced(losses + 0.5 * math.log(2 * math.pi) if full else losses, reduction)


def _binary_cross_entropy(
    assume: Assume, input: Tensor, target: Tensor, weight: Tensor | None = None,
    size_average: Any = None, reduce: Any = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """Of probabilities. PyTorch takes logarithms from -100 on, and divides by 1e-12 or more in the
    derivative: as a parabola has it.
    """
    if size_average is not None or reduce is not None:
        raise Unreadable("it says size_average or reduce, which are no longer in use")
    if target.size() != input.size():
        raise ValueError("target and input differ in size")
    for probabilities in (input, target):
        assume(((probabilities >= 0) & (probabilities <= 1)).all())
    inside = input * (1 - input) >= _FLATTEST
    safe = torch.where(inside, input, 0.5)
    near = target * torch.log(safe) + (1 - target) * torch.log1p(-safe)
    at = input.detach()
    ones, zeros = torch.log(at).clamp(min=-100), torch.log1p(-at).clamp(min=-100)
    slope = (input - target) ** 2 * (-0.5 / _FLATTEST)
    far = target * ones + (1 - target) * zeros + (slope - slope.detach())
    losses = -torch.where(inside, near, far)
    return _reduced(losses if weight is None else losses * weight, reduction)


_FLATTEST = 9.999999960041972e-13  # 1e-12 in float32


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{reduction} is no valid reduction")
    return losses if reduction == "none" else getattr(losses, reduction)()


_SPELLED: dict[Any, Callable[..., Tensor]] = {
    F.one_hot: _one_hot, F.cosine_similarity: _cosine_similarity,
    F.gaussian_nll_loss: _gaussian_nll_loss, F.binary_cross_entropy: _binary_cross_entropy,
}  # fmt: skip
