"""Classification tasks, and what one task at a time in plain PyTorch makes of them."""

from collections.abc import Callable, Sequence

import torch
from oracle import DOUBLE, outer_loss, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

import fastmeta as fm

# support_x, support_y, query_x -> predictions [Q, N]
OneTask = Callable[[Tensor, Tensor, Tensor], Tensor]


def episodes(t=3, s=7, q=4, n_way=3, shape=(2,), **weights) -> fm.TaskBatch:
    """Labels in random order, and at least one support sample of each class of each task."""

    def labels() -> Tensor:
        any_class = torch.randint(n_way, (s - n_way,))
        return torch.cat([torch.arange(n_way), any_class])[torch.randperm(s)]

    return fm.TaskBatch(
        torch.randn(t, s, *shape, dtype=DOUBLE),
        torch.stack([labels() for _ in range(t)]),
        torch.randn(t, q, *shape, dtype=DOUBLE),
        torch.randint(n_way, (t, q)),
        **weights,
    )


def repeated(tasks: fm.TaskBatch, copies: Tensor) -> fm.TaskBatch:
    """Tasks with each support sample there as often as `copies` [S] says."""
    return fm.TaskBatch(
        tasks.support_x.repeat_interleave(copies, 1),
        tasks.support_y.repeat_interleave(copies, 1),
        tasks.query_x,
        tasks.query_y,
    )


def assert_like_the_loop(
    net: nn.Module, tasks: fm.TaskBatch, one_task: OneTask, tolerance: float = 1e-12
) -> None:
    """Predictions, loss, gradients and second derivatives equal those of a loop over tasks."""
    tasks.support_x.requires_grad_(), tasks.query_x.requires_grad_()
    inputs = [p for p in net.parameters() if p.requires_grad] + [tasks.support_x, tasks.query_x]
    loop = _Loop(one_task)
    out, right = net(tasks), loop(tasks)
    assert relative_error([out.predictions], [right.predictions]) < tolerance
    assert relative_error([out.loss], [right.loss]) < tolerance
    ours, rights = (_derivatives(of, tasks, inputs) for of in (net, loop))
    for order in (0, 1):
        assert relative_error(ours[order], rights[order]) < tolerance


class _Loop(nn.Module):
    def __init__(self, one_task: OneTask) -> None:
        super().__init__()
        self.one_task = one_task

    def forward(self, tasks: fm.TaskBatch) -> fm.MetaOutput:
        predictions = [
            self.one_task(x, y, query)
            for x, y, query in zip(tasks.support_x, tasks.support_y, tasks.query_x, strict=True)
        ]
        losses = [F.cross_entropy(p, y) for p, y in zip(predictions, tasks.query_y, strict=True)]
        return fm.MetaOutput(torch.stack(losses), torch.stack(predictions), tasks.query_y)


def _derivatives(
    net: nn.Module, tasks: fm.TaskBatch, inputs: Sequence[Tensor]
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    first = torch.autograd.grad(
        outer_loss(net, tasks), inputs, create_graph=True, allow_unused=True, materialize_grads=True
    )
    slope = sum(
        (g * torch.linspace(-1, 2, g.numel(), dtype=g.dtype, device=g.device).view_as(g)).sum()
        for g in first
    )
    second = torch.autograd.grad(slope, inputs, allow_unused=True, materialize_grads=True)
    return first, second
