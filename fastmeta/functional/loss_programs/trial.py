"""Whether the native kernels make of a loss that was read what the loss makes."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from fastmeta.backends import cpu
from fastmeta.functional.loss_programs.program import LossProgram
from fastmeta.functional.loss_programs.totals import NAMES, with_totals

__all__ = ["miscomputed"]


def miscomputed(
    program: LossProgram, predictions: Tensor, targets: Tensor, *weights: Tensor
) -> bool:
    """Whether value or gradient are others for these samples, in so far as there are kernels."""
    if cpu.native is None:
        return False
    for label in program.labels:
        targets.view(len(targets), -1)[:, label.column] = max(label.least, 0)
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # they come again where the loss is run for good
        try:
            loss = program(predictions, targets, *weights)
        except (ValueError, RuntimeError):  # of numbers that it refuses, as these were drawn
            return False
    (gradient,) = torch.autograd.grad(loss, predictions, materialize_grads=True)
    if program.beside_targets:
        weight = weights[0].unsqueeze(0) if weights else None
        targets = with_totals(program, targets.unsqueeze(0), weight, predictions.dtype)[0]
    value, found = _natively(program, predictions.detach().contiguous(), targets.contiguous())
    return not (_alike(value, loss.detach()) and _alike(found, gradient))


def _alike(found: Tensor, wanted: Tensor) -> bool:
    scale = float(wanted.nan_to_num(0, 0, 0).abs().max())
    within = (1e-3 if wanted.dtype is torch.float32 else 1e-8) * max(scale, 1.0)
    return torch.allclose(found, wanted, rtol=0, atol=within, equal_nan=True)


def _natively(program: LossProgram, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient: of a network that hands on what it gets, and has a parameter that
    no layer of it reads.
    """
    kernels, width, n = cpu.kernels(NAMES[x.dtype]), program.predictions, len(x)
    own = kernels.loss(width, program.targets, program.adds, program.steps)
    same = ("activation", "affine", 1.0, 0.0, width, width, -1, -1)
    call = kernels.call(
        kernels.chain([same], own, 1), 1, 0, 1, [0], [None], False, (n, n),
        not y.is_floating_point(), (False, False),
    )  # fmt: skip
    loss, unread, one = x.new_empty(1), x.new_empty(1), x.new_ones(1)
    predictions, gradient = torch.empty_like(x), torch.empty_like(x)
    addresses = [t.data_ptr() for t in (unread, x, x, y, y)]
    record = kernels.forward(
        call, x, addresses, True, predictions.data_ptr(), loss.data_ptr(), ()
    )
    kernels.backward(
        call, x, addresses, record, one.data_ptr(), 0, [], [unread.data_ptr()], [], 0,
        gradient.data_ptr(),
    )  # fmt: skip
    return loss[0], gradient
