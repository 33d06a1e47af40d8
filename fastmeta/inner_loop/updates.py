"""The inner update of all parameters, and the direction of its derivative.

On a GPU each is a launch or two for all tensors together, where they lie alike in memory. A step on
the CPU is one tensor after another, into memory that is there already.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta.inner_loop.loop import Rates, rate_at

__all__ = ["room_for_path", "scaled", "stepped", "subtract", "sum_over_weights"]

_WHOLE = 1 << 14  # numbers: PyTorch cuts a sum of twice as many by the number of threads


def room_for_path(theta: Mapping[str, Tensor], steps: int) -> list[dict[str, Tensor]]:
    """Where theta_1 to theta_K go: a place for each but the last; on a GPU none.

    One block for all steps: small tensors that stay, each made between the large ones of a step
    that go, would leave the allocator of a CPU with holes and the process growing.
    """
    if any(p.device.type != "cpu" for p in theta.values()):
        return [{} for _ in range(steps)]
    blocks = {name: p.new_empty(steps - 1, *p.shape) for name, p in theta.items()}
    return [{name: block[k] for name, block in blocks.items()} for k in range(steps - 1)] + [{}]


def stepped(
    theta: Mapping[str, Tensor],
    gradient: Mapping[str, Tensor],
    rates: Rates,
    step: int,
    room: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """theta - rate * gradient"""
    if any(p.device.type != "cpu" for p in theta.values()):
        return _all_together(theta, gradient, rates, step)
    return {
        name: torch.sub(p, rate_at(rates, name, step) * gradient[name], out=room.get(name))
        for name, p in theta.items()
    }


def _all_together(
    theta: Mapping[str, Tensor], gradient: Mapping[str, Tensor], rates: Rates, step: int
) -> dict[str, Tensor]:
    """As the gradient lies in memory: from then on the kernels find weights in their layout."""
    moves = scaled(gradient, rates, step)
    values = list(moves.values())
    torch._foreach_neg_(values)
    torch._foreach_add_(values, [theta[name] for name in moves])
    return moves


def scaled(tensors: Mapping[str, Tensor], rates: Rates, step: int) -> dict[str, Tensor]:
    """rate * tensor, by name"""
    values = list(tensors.values())
    if isinstance(rates, Mapping):
        factors: list[Any] = [rate_at(rates, name, step) for name in tensors]
        products = torch._foreach_mul(values, factors)
    else:
        products = torch._foreach_mul(values, rates)
    return dict(zip(tensors, products, strict=True))


def subtract(tensors: Mapping[str, Tensor], others: list[Tensor]) -> dict[str, Tensor]:
    """tensor - other, by name"""
    return dict(zip(tensors, torch._foreach_sub(list(tensors.values()), others), strict=True))


def sum_over_weights(gradient: Tensor, shape: Sequence[int]) -> Tensor:
    """A gradient [k, *shape of a weight] as that of its rates, which several numbers may share.

    The sum over all of a large weight is taken piece by piece: its bits are then the same for any
    number of threads.
    """
    one_a_step = math.prod(shape) == len(gradient) < gradient.numel()
    if not one_a_step or gradient.numel() <= _WHOLE:
        return gradient.sum_to_size(shape)
    sums = [[piece.sum() for piece in row.split(_WHOLE)] for row in gradient.flatten(1)]
    return torch.stack([torch.stack(pieces).sum() for pieces in sums]).reshape(shape)
