"""The resident engine's native calls, into tensors that are made for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.backends import cpu
from fastmeta.inner_loop.forms import Form
from fastmeta.inner_loop.updates import sum_over_weights

__all__ = [
    "Gradients", "addresses_of", "by_tensor", "new_gradients", "run_adapt", "run_meta_loss",
    "run_step", "scale",
]  # fmt: skip


class Gradients(NamedTuple):
    """Of the tensors that may require grad, None where none is needed."""

    out: list[Tensor | None]  # one a tensor
    of_rates: Sequence[Tensor | None]  # [steps or 1, *shape] a parameter, instead of the rates' own


def run_meta_loss(
    form: Form, addresses: list[int], like: Tensor, keep: bool
) -> tuple[Any, Tensor, Tensor]:
    """(record, loss, predictions)"""
    assert form.predictions is not None
    loss = like.new_empty(form.tasks)
    predictions = like.new_empty(form.predictions)
    record = form.program.kernels.forward(
        form.native, like, addresses, keep,
        predictions.data_ptr(), loss.data_ptr(), (),
    )  # fmt: skip
    return record, loss, predictions


def run_adapt(
    form: Form, addresses: list[int], like: Tensor, keep: bool
) -> tuple[Any, tuple[Tensor, ...]]:
    """(record, fast weights)"""
    program = form.program
    fast = [
        _empty((form.tasks, *shape), like) if adapts else None
        for shape, adapts in zip(program.shapes, program.adapts, strict=True)
    ]
    record = program.kernels.forward(form.native, like, addresses, keep, 0, 0, addresses_of(fast))
    return record, tuple(f for f in fast if f is not None)


def new_gradients(form: Form, tensors: Sequence[Tensor], needs: Sequence[bool]) -> Gradients:
    n, n_rates = len(form.program.names), len(form.rated)
    learned = zip(tensors[: n + n_rates], needs, strict=False)
    out = [torch.empty_like(tensor) if need else None for tensor, need in learned]
    inputs = zip(tensors[n + n_rates :], needs[n + n_rates :], strict=False)
    out += [_empty(tensor.shape, tensor) if need else None for tensor, need in inputs]
    needs_rates = n_rates and any(needs[n : n + n_rates])
    return Gradients(out, _rate_buffers(form, tensors[0]) if needs_rates else ())


def run_step(
    form: Form, addresses: list[int], like: Tensor, gradients: Gradients, factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(loss, predictions), and the gradients of the sum of the losses times the factor."""
    step = form.program.kernels.step
    assert step is not None and form.predictions is not None
    loss, predictions = like.new_empty(form.tasks), like.new_empty(form.predictions)
    step.run(
        form.native, addresses, predictions.data_ptr(), loss.data_ptr(),
        addresses_of(gradients.out[: len(form.program.names)]), addresses_of(gradients.of_rates),
        factor,
    )  # fmt: skip
    return loss, predictions


def scale(form: Form, gradients: Gradients, factor: float) -> None:
    """Multiply them, in place, by the factor rounded to their dtype."""
    step = form.program.kernels.step
    assert step is not None
    if factor != 1:
        everything = (g for some in gradients for g in some if g is not None)
        step.scale([(g.data_ptr(), g.numel()) for g in everything], factor)


def by_tensor(form: Form, gradients: Gradients, needs: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of the tensors that need one, those of rates in the shapes of the rates."""
    out = gradients.out
    for position, p in enumerate(form.rated, start=len(form.program.names)):
        if needs[position]:
            gradient = gradients.of_rates[p]
            assert gradient is not None
            shape = form.rate_shapes[position - len(form.program.names)]
            out[position] = sum_over_weights(gradient, shape)
    return out


def addresses_of(tensors: Sequence[Tensor | None]) -> list[int]:
    """Where the numbers are, 0 where there is no tensor."""
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """Of a size that grows with the tasks: on a CPU in pages that are kept."""
    return cpu.empty(shape, like) if like.device.type == "cpu" else like.new_empty(shape)


def _rate_buffers(form: Form, like: Tensor) -> list[Tensor | None]:
    """A gradient [steps or 1, *shape] for every parameter that has rates."""
    steps = max(shape[0] for shape in form.rate_shapes)
    return [
        like.new_empty(steps, *shape) if p in form.rated else None
        for p, shape in enumerate(form.program.shapes)
    ]
