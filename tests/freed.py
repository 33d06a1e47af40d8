"""Whether autograd frees a graph when nothing refers to its results any more."""

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class _Kept:
    """Lives as long as the node that holds it."""


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, kept):
        ctx.kept = kept
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def marked(
    tensors: Sequence[Tensor],
) -> tuple[list[Tensor], list[Callable[[], object | None]]]:
    """Copies that require grad, and for each what tells None when its node is gone."""
    nodes = [_Kept() for _ in tensors]
    copies = [
        _Mark.apply(x.detach().requires_grad_(), node)
        for x, node in zip(tensors, nodes, strict=True)
    ]
    return copies, [weakref.ref(node) for node in nodes]
