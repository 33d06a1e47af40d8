"""The resident engine's calls as functions that PyTorch's autograd differentiates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta.backends.looks import described, looks_and_addresses
from fastmeta.functional.eager import runs_eagerly
from fastmeta.inner_loop.engines.forms import Form, Program, plain
from fastmeta.inner_loop.engines.resident_runs import (
    Gradients,
    addresses_of,
    by_tensor,
    new_gradients,
    run_adapt,
    run_meta_loss,
    run_step,
    scale,
)
from fastmeta.inner_loop.loop import refuse_batched, refuse_graph

__all__ = ["Adapt", "MetaLoss", "keep_tensors", "run_backward"]

_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


class MetaLoss(torch.autograd.Function):
    """(parameters, rates, support_x, query_x) -> (loss [T], predictions [T, Q, O])."""

    @staticmethod
    def forward(
        ctx: Any, form: Form, addresses: list[int], constants: list[Tensor], *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        keep_tensors(ctx, form, tensors, constants)
        ctx.record = ctx.gradients = None
        if _steps_at_once(form, ctx.needs_input_grad[3:]):
            ctx.gradients = new_gradients(form, tensors, ctx.needs_input_grad[3:])
            return run_step(form, addresses, tensors[-1], ctx.gradients)
        ctx.record, loss, predictions = run_meta_loss(form, addresses, tensors[-1], keep=True)
        return loss, predictions

    @staticmethod
    @runs_eagerly
    def backward(
        ctx: Any, grad_loss: Tensor | None, grad_predictions: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        refuse_graph("resident")
        refuse_batched("resident", grad_loss, grad_predictions)
        kept = ctx.saved_tensors  # all are looked at for changes in place
        if grad_loss is None and grad_predictions is None:
            return (None,) * len(ctx.needs_input_grad)
        factor = None
        if not _of_inputs(ctx.form, ctx.needs_input_grad[3:]):  # too large to be gone through again
            factor = _factor(ctx.form, grad_loss if grad_predictions is None else None)
        gradients, ctx.gradients = ctx.gradients, None
        if factor is None:
            gradients = run_backward(ctx, kept, grad_loss, grad_predictions, None)
        elif gradients is None:
            gradients = run_backward(ctx, kept, kept[0].new_ones(ctx.form.tasks), None, None)
        if factor is not None:
            scale(ctx.form, gradients, factor)
        return None, None, None, *by_tensor(ctx.form, gradients)


class Adapt(torch.autograd.Function):
    """(parameters, rates, support_x) -> the fast weights of those that adapt."""

    @staticmethod
    def forward(
        ctx: Any, form: Form, addresses: list[int], constants: list[Tensor], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        keep_tensors(ctx, form, tensors, constants)
        ctx.record, fast = run_adapt(form, addresses, tensors[-1], keep=True)
        return fast

    @staticmethod
    @runs_eagerly
    def backward(ctx: Any, *grad_fast: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_graph("resident")
        refuse_batched("resident", *grad_fast)
        if all([gradient is None for gradient in grad_fast]):
            return (None,) * len(ctx.needs_input_grad)
        gradients = run_backward(ctx, ctx.saved_tensors, None, None, grad_fast)
        return None, None, None, *by_tensor(ctx.form, gradients)


def keep_tensors(
    ctx: Any, form: Form, tensors: Sequence[Tensor], constants: Sequence[Tensor]
) -> None:
    """The tensors are kept for the backward: nobody may change them before."""
    ctx.form = form
    ctx.save_for_backward(*tensors, *constants)
    ctx.set_materialize_grads(False)


def _kept_addresses(form: Form, kept: Sequence[Tensor]) -> list[int]:
    looks, addresses = looks_and_addresses([*kept])
    if looks != form.looks and described(kept) != form.described:
        raise RuntimeError("a hook on saved tensors gave back tensors of other shapes")
    return addresses


def _steps_at_once(form: Form, needs: Sequence[bool]) -> bool:
    program = form.program
    at_once = program.kernels.step is not None and not _of_inputs(form, needs)
    return at_once and program.habit.expected() is not None


def _of_inputs(form: Form, needs: Sequence[bool]) -> bool:
    """Whether support_x or query_x needs a gradient."""
    return needs[len(form.program.names) + len(form.rated)] or needs[-1]


def _factor(form: Form, grad_loss: Tensor | None) -> float | None:
    """The gradient of every task's loss if they are all alike, as those of a mean are.

    None if they are not, or if they are not all that there is.
    """
    step = form.program.kernels.step
    if step is None:
        return None
    factor = None
    if grad_loss is not None and not _is_wrapped(grad_loss) and not grad_loss.is_neg():
        factor = step.common_value(grad_loss)
    form.program.habit.met(None if factor is None else True)
    return factor


def run_backward(
    ctx: Any,
    kept: Sequence[Tensor],
    grad_loss: Tensor | None,
    grad_predictions: Tensor | None,
    grad_fast: Sequence[Tensor | None] | None,
) -> Gradients:
    """What the kernels make of gradients of the outputs; `ctx` is as `keep_tensors` left it."""
    form = ctx.form
    program, n = form.program, len(form.program.names)
    fast = [] if grad_fast is None else _by_parameter(program, grad_fast)
    grad_loss, at_loss = _read(grad_loss)
    grad_predictions, at_predictions = _read(grad_predictions)
    addresses = _kept_addresses(form, kept)
    if ctx.record is None:  # the forward differentiated at once, for other gradients than these
        ctx.record = run_meta_loss(form, addresses, kept[0], keep=True)[0]
    gradients = new_gradients(form, kept, ctx.needs_input_grad[3:])
    written = addresses_of(gradients.out)
    program.kernels.backward(
        form.native, kept[0], addresses, ctx.record,
        at_loss, at_predictions, addresses_of(fast), written[:n], addresses_of(gradients.of_rates),
        written[n + len(form.rated)], written[-1] if form.predictions else 0,
    )  # fmt: skip
    return gradients


def _by_parameter(program: Program, grad_fast: Sequence[Tensor | None]) -> list[Tensor | None]:
    given = iter(grad_fast)
    by_parameter = (next(given) if adapts else None for adapts in program.adapts)
    return [None if gradient is None else plain(gradient) for gradient in by_parameter]


def _read(gradient: Tensor | None) -> tuple[Tensor | None, int]:
    """A gradient of an output, contiguous, and its address; 0 where there is none."""
    if gradient is None:
        return None, 0
    gradient = plain(gradient)
    return gradient, gradient.data_ptr()
