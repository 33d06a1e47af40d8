"""The networks of the workloads as plain functions of their parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.bench.workloads import BLOCKS, LOSSES, SEPARABLE, Workload, standardised

# x [S, C, H, W], weight [C], bias [C]
Norm = Callable[[Tensor, Tensor, Tensor], Tensor]


def fused_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Batch norm in one operation: its second derivative is wrong where vmap is inside of grad."""
    return F.batch_norm(x, None, None, weight, bias, training=True)


def decomposed_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Batch norm with its scale and shift apart: right under vmap, and the fastest such form.

    Written out with mean and variance it is 1.5 times as slow.
    """
    normalised = F.batch_norm(x, None, None, training=True)
    return normalised * weight[:, None, None] + bias[:, None, None]


def task_loss(
    workload: Workload,
    parameters: tuple[Tensor, ...],
    x: Tensor,
    y: Tensor,
    norm: Norm = decomposed_norm,
) -> Tensor:
    """The loss of one task: x [S, I] or [S, C, H, W], parameters in the module's order."""
    own = iter(parameters)
    if workload.blocks == "unet":
        return LOSSES[workload.loss](_unet(own, x), y)
    for block in range(BLOCKS if workload.image else 0):
        x = _block(workload.blocks, own, x, norm, block == 0)
    x = x.mean((2, 3)) if workload.blocks == "residual" else x.flatten(1)
    if workload.blocks == "cosine":
        predictions = 10 * F.linear(F.normalize(x, dim=1), F.normalize(next(own), dim=1))
    elif workload.slopes:
        predictions = _with_slopes(workload, [*own], x)
    else:
        predictions = _linear_layers(workload, [*own], x)
    return LOSSES[workload.loss](predictions, y)


def _unet(own: Iterator[Tensor], x: Tensor) -> Tensor:
    def convolved(x: Tensor) -> Tensor:
        return F.conv2d(x, next(own), next(own), padding=1).relu()

    fine = convolved(convolved(x))
    coarse = convolved(convolved(F.max_pool2d(fine, 2)))
    up = F.conv_transpose2d(coarse, next(own), next(own), stride=2)
    return F.conv2d(convolved(torch.cat([fine, up], 1)), next(own), next(own))


def _residual_block(own: Iterator[Tensor], x: Tensor, norm: Norm) -> Tensor:
    given = x
    for _ in range(2):
        x = norm(F.conv2d(x, next(own), padding=1), next(own), next(own))
        x = F.leaky_relu(x, 0.1)
    x = norm(F.conv2d(x, next(own), padding=1), next(own), next(own))
    x = x + norm(F.conv2d(given, next(own)), next(own), next(own))
    return F.max_pool2d(F.leaky_relu(x, 0.1), 2)


def _block(kind: str, own: Iterator[Tensor], x: Tensor, norm: Norm, first: bool) -> Tensor:
    if kind == "residual":
        return _residual_block(own, x, norm)
    if kind in SEPARABLE and not first:
        groups = x.shape[1] // SEPARABLE[kind]
        x = F.conv2d(x, next(own), next(own), padding=1, groups=groups)
        x = F.conv2d(x, next(own), next(own))
    else:
        weight = standardised(next(own)) if kind == "standardised" else next(own)
        x = F.conv2d(x, weight, next(own), padding=1)
    x = norm(x, next(own), next(own))
    if kind == "film":
        context = next(own)
        scale, shift = F.linear(context, next(own), next(own))[:, None, None].chunk(2)
        x = x * scale + shift
    x = F.max_pool2d(x.relu(), 2)
    if kind == "excitation":
        squeezed = F.linear(x.mean((2, 3)), next(own), next(own)).relu()
        x = x * F.linear(squeezed, next(own), next(own)).sigmoid()[:, :, None, None]
    return x


def _with_slopes(workload: Workload, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    def total(x: Tensor) -> tuple[Tensor, Tensor]:
        value = _linear_layers(workload, parameters, x)
        return value.sum(), value

    slope, value = torch.func.grad(total, has_aux=True)(x)
    return torch.cat([value, slope], 1)


def _linear_layers(workload: Workload, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    activation = getattr(F, workload.activation)
    weights, biases = parameters[::2], parameters[1::2]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        if workload.hidden == "unit rows":
            weight = F.normalize(weight, dim=1)
        x = F.linear(x, weight, bias)
        if workload.hidden == "gated":
            value, gate = x.chunk(2, dim=-1)
            x = activation(value) * gate.sigmoid()
        else:
            x = activation(F.layer_norm(x, x.shape[-1:]) if workload.hidden == "layer norm" else x)
    return F.linear(x, weights[-1], biases[-1])
