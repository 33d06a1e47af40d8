"""The resident engine's native calls, into tensors that are made for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fastmeta.inner_loop.engines.forms import Form
from fastmeta.inner_loop.updates import sum_over_weights

__all__ = [
    "Gradients", "addresses_of", "beside_rates", "by_tensor", "new_gradients", "run_adapt",
    "run_meta_loss", "run_step", "scale",
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
    kernels = form.program.kernels
    loss, predictions = kernels.empty((form.tasks,), like), kernels.empty(form.predictions, like)
    record = kernels.forward(
        form.native, like, addresses, keep,
        predictions.data_ptr(), loss.data_ptr(), (),
    )  # fmt: skip
    return record, loss, predictions


def run_adapt(
    form: Form, addresses: list[int], like: Tensor, keep: bool
) -> tuple[Any, tuple[Tensor, ...]]:
    """(record, fast weights)"""
    program, empty = form.program, form.program.kernels.empty
    fast = [
        empty((form.tasks, *shape), like) if adapts else None
        for shape, adapts in zip(program.shapes, program.adapts, strict=True)
    ]
    record = program.kernels.forward(form.native, like, addresses, keep, 0, 0, addresses_of(fast))
    return record, tuple(f for f in fast if f is not None)


def new_gradients(form: Form, tensors: Sequence[Tensor], needs: Sequence[bool]) -> Gradients:
    empty = form.program.kernels.empty
    wanted = zip(tensors, needs, strict=False)
    return beside_rates(form, [empty(t.shape, t) if need else None for t, need in wanted])


def beside_rates(form: Form, out: list[Tensor | None]) -> Gradients:
    """With those of the rates in shapes of their own, where rates need gradients."""
    n = len(form.program.names)
    of_rates = [gradient for gradient in out[n : n + len(form.rated)] if gradient is not None]
    return Gradients(out, _rate_buffers(form, of_rates[0]) if of_rates else ())


def run_step(
    form: Form, addresses: list[int], like: Tensor, gradients: Gradients, factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(loss, predictions), and the gradients of the sum of the losses times the factor."""
    step = form.program.kernels.step
    assert step is not None and form.predictions is not None
    empty = form.program.kernels.empty
    loss, predictions = empty((form.tasks,), like), empty(form.predictions, like)
    of_parameters = gradients.out[: len(form.program.names)]
    step.run(
        form.native, addresses, predictions, loss, of_parameters, gradients.of_rates, factor
    )
    return loss, predictions


def scale(form: Form, gradients: Gradients, factor: float) -> None:
    """Multiply them, in place, by the factor rounded to their dtype."""
    step = form.program.kernels.step
    assert step is not None
    if factor != 1:
        step.scale([*gradients.out, *gradients.of_rates], factor)


def by_tensor(form: Form, gradients: Gradients) -> list[Tensor | None]:
    """The gradients of the tensors that need one, those of rates in the shapes of the rates."""
    out = gradients.out
    for position, p in enumerate(form.rated, start=len(form.program.names)):
        if out[position] is not None:
            gradient = gradients.of_rates[p]
            assert gradient is not None
            shape = form.rate_shapes[position - len(form.program.names)]
            out[position] = sum_over_weights(gradient, shape)
    return out


def addresses_of(tensors: Sequence[Tensor | None]) -> list[int]:
    """Where the numbers are, 0 where there is no tensor."""
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _rate_buffers(form: Form, like: Tensor) -> list[Tensor | None]:
    """A gradient [steps or 1, *shape] for every parameter that has rates."""
    steps, empty = max(shape[0] for shape in form.rate_shapes), form.program.kernels.empty
    return [
        empty((steps, *shape), like) if p in form.rated else None
        for p, shape in enumerate(form.program.shapes)
    ]
