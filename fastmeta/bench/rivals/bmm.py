"""Batched by hand: ``baddbmm`` over tasks, the inner gradient written out layer by layer.

Written out, the inner gradient is an ordinary forward computation: autograd runs once, backwards
through all of it, and never needs a double backward. The first inner step multiplies by the
shared weights, one large product for all tasks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.bench.rivals.rival import Outcome, Rival, Step, make_leaves
from fastmeta.bench.workloads import LOSSES, Problem, Workload

Parameters = list[Tensor]  # weight, bias, weight, bias, ...; each shared or with a leading T


def query_loss(
    workload: Workload, fast: Parameters, sx: Tensor, qx: Tensor, sy: Tensor, qy: Tensor
) -> Tensor:
    """The mean query loss of all tasks after the inner loop."""
    for _ in range(workload.steps):
        grads = _inner_gradient(workload, fast, sx, sy)
        fast = [p - workload.inner_lr * g for p, g in zip(fast, grads, strict=True)]
    predictions = _activations(workload, fast, qx)[-1]
    if workload.loss == "cross_entropy":
        predictions, qy = predictions.flatten(0, 1), qy.flatten()
    if workload.loss == "masked_mse":  # the mean of the tasks' means
        return torch.func.vmap(LOSSES[workload.loss])(predictions, qy).mean()
    return LOSSES[workload.loss](predictions, qy)


def _activations(workload: Workload, parameters: Parameters, x: Tensor) -> list[Tensor]:
    """[input, after layer 1, ..., predictions], each [T, S, width]."""
    activation = getattr(F, workload.activation)
    values = [x]
    last = len(parameters) // 2 - 1
    for layer in range(last + 1):
        z = _linear(values[-1], *parameters[2 * layer : 2 * layer + 2])
        values.append(z if layer == last else activation(z))
    return values


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


def _inner_gradient(workload: Workload, parameters: Parameters, x: Tensor, y: Tensor) -> Parameters:
    """The gradient [T, ...] of each task's support loss into every parameter."""
    values = _activations(workload, parameters, x)
    gradient = _loss_gradient(workload, values[-1], y)
    grads: Parameters = []
    for layer in reversed(range(len(parameters) // 2)):
        grads = [gradient.mT @ values[layer], gradient.sum(1), *grads]
        if layer > 0:
            gradient = gradient @ parameters[2 * layer]
            gradient = gradient * _activation_slope(workload, values[layer])
    return grads


def _loss_gradient(workload: Workload, predictions: Tensor, y: Tensor) -> Tensor:
    samples, outputs = predictions.shape[1:]
    if workload.loss == "huber":
        return (predictions - y).clamp(-1, 1) / (samples * outputs)
    if workload.loss == "mse":
        return (predictions - y) * (2 / (samples * outputs))
    if workload.loss == "masked_mse":
        there = y >= 0
        return (predictions - y) * there * (2 / there.sum((1, 2), keepdim=True).clamp(min=1))
    return (predictions.softmax(-1) - F.one_hot(y, outputs)) / samples


def _activation_slope(workload: Workload, value: Tensor) -> Tensor:
    if workload.activation == "tanh":
        return 1 - value * value
    if workload.activation == "elu":
        return torch.where(value > 0, 1, value + 1)
    return (value > 0).to(value.dtype)


def why_not(workload: Workload) -> str | None:
    apart = bool(workload.image) or bool(workload.hidden) or workload.slopes
    return "it is written for linear layers, one after another" if apart else None


def build(problem: Problem) -> Step:
    leaves = make_leaves(problem)

    def step() -> Outcome:
        leaves.clear()
        loss = query_loss(
            problem.workload,
            list(leaves.parameters.values()),
            leaves.support_x,
            leaves.query_x,
            problem.support_y,
            problem.query_y,
        )
        loss.backward()
        return Outcome(loss.detach(), leaves.gradients())

    return step


RIVAL = Rival("bmm", "batched by hand (baddbmm)", build, why_not)
