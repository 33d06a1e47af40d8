"""Regression by a chain at one inner rate, by which the forms of a step are compared."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fastmeta as fm


def network(widths: list[int], bias: bool, dtype: torch.dtype) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(inputs, outputs, bias=bias), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).to(dtype)


def tasks_of(
    model: nn.Sequential, tasks: int, shots: int, queries: int, dtype: torch.dtype
) -> fm.TaskBatch:
    inputs, outputs = model[0].in_features, model[-1].out_features
    return fm.TaskBatch(
        torch.randn(tasks, shots, inputs, dtype=dtype),
        torch.randn(tasks, shots, outputs, dtype=dtype),
        torch.randn(tasks, queries, inputs, dtype=dtype),
        torch.randn(tasks, queries, outputs, dtype=dtype),
    )


def outcome(
    meta: fm.MAML, tasks: fm.TaskBatch, backend: str, coefficients: Tensor, with_inputs: bool
) -> list[Tensor]:
    """Loss, predictions, and all gradients."""
    meta.zero_grad()
    x = [t.clone().requires_grad_(with_inputs) for t in (tasks.support_x, tasks.query_x)]
    batch = fm.TaskBatch(
        x[0], tasks.support_y, x[1], tasks.query_y, tasks.support_weight, tasks.query_weight
    )
    with fm.use_backend(backend):
        out = meta(batch)
        (out.loss * coefficients).sum().backward()
    wanted = [*meta.parameters(), *(x if with_inputs else ())]
    gradients = [torch.zeros_like(t) if t.grad is None else t.grad.clone() for t in wanted]
    return [out.loss.detach(), out.predictions.detach(), *gradients]
