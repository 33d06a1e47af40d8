"""The resident engine: the inner loop and its meta-gradient in native calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.backends import cpu, requested_backend
from fastmeta.backends.looks import described, looks_and_addresses
from fastmeta.functional.eager import runs_eagerly
from fastmeta.inner_loop.chain import Chain, chain_of
from fastmeta.inner_loop.forms import (
    BACKENDS,
    KERNELS,
    Form,
    Program,
    native_network,
    plain,
    prepare,
)  # fmt: skip
from fastmeta.inner_loop.loop import InnerLoop, Rates, refuse_batched, refuse_graph
from fastmeta.inner_loop.stages import Stages, unknown_layer

__all__ = ["adapt", "can_run", "meta_loss"]


def can_run(
    loop: InnerLoop, tasks: Any, parameters: Mapping[str, Tensor], rates: Rates
) -> str | None:
    """None if the native kernels can run this, else the reason."""
    unavailable = _unavailable(parameters)
    if unavailable is not None:
        return unavailable
    if not isinstance(loop.loss, str):
        return "the loss is a function, and the native kernels have mse, cross_entropy and bce"
    if loop.randomness is not None:
        return "the native kernels draw no random numbers"
    if not tasks:
        chain = chain_of(loop.module)
        layer = unknown_layer(loop.module) if isinstance(chain, str) else None
        unfit = layer or _unfit_parameters(parameters)
        if unfit is None and parameters:
            unfit = _unfit_network(loop, chain, next(iter(parameters.values())))
        return unfit
    network = native_network(loop, tasks.support_x.shape[2:])
    if isinstance(network, str):
        return network
    return (
        _unfit_parameters(parameters)
        or _unfit_tasks(loop, tasks)
        or _unfit_network(loop, network, tasks.support_x)
    )


def adapt(
    loop: InnerLoop,
    parameters: Mapping[str, Tensor],
    rates: Rates,
    support_x: Tensor,
    support_y: Tensor,
    support_weight: Tensor | None,
) -> dict[str, Tensor]:
    """Every parameter by name; those that adapt [T, *shape], the others as given."""
    support = (support_x, support_y, support_weight)
    form, addresses, tensors, constants = prepare(loop, parameters, rates, support, None)
    if _builds_graph(tensors):
        fast = _apply(_Adapt, form, addresses, constants, *tensors)
    else:
        fast = _run_adapt(form, addresses, tensors[-1], keep=False)[1]
    return {**parameters, **dict(zip(form.program.adapted, fast, strict=True))}


def meta_loss(
    loop: InnerLoop, parameters: Mapping[str, Tensor], rates: Rates, tasks: Any
) -> tuple[Tensor, Tensor]:
    """The query loss [T] and predictions [T, Q, O] of the adapted tasks."""
    support = (tasks.support_x, tasks.support_y, tasks.support_weight)
    query = (tasks.query_x, tasks.query_y, tasks.query_weight)
    form, addresses, tensors, constants = prepare(loop, parameters, rates, support, query)
    if _builds_graph(tensors):
        return _apply(_MetaLoss, form, addresses, constants, *tensors)
    return _run_meta_loss(form, addresses, tensors[-1], keep=False)[1:]


# ---- what can run ------------------------------------------------------------------------------


def _unavailable(parameters: Mapping[str, Tensor]) -> str | None:
    """Why there are no kernels where the parameters are."""
    requested = requested_backend()
    first = next(iter(parameters.values()), None)
    device = first.device.type if first is not None else "cpu"
    backend = BACKENDS.get(requested or device)
    if backend is None:
        return f"the parameters are on {device}; these kernels are for {' and '.join(BACKENDS)}"
    return backend.unavailable()


def _unfit_parameters(parameters: Mapping[str, Tensor]) -> str | None:
    requested = requested_backend()
    for name, parameter in parameters.items():
        if requested in BACKENDS and parameter.device.type != requested:
            return f"parameter {name!r} is on {parameter.device}, not on {requested}"
        if parameter.dtype not in KERNELS:
            return f"parameter {name!r} is {parameter.dtype}; the kernels are float32 and float64"
        if parameter.layout is not torch.strided:
            return f"parameter {name!r} is {parameter.layout}, not a dense tensor"
    if len({parameter.dtype for parameter in parameters.values()}) > 1:
        return "the parameters are of several dtypes"
    if len({parameter.device for parameter in parameters.values()}) > 1:
        return "the parameters are on several devices"
    return None


def _unfit_tasks(loop: InnerLoop, tasks: Any) -> str | None:
    x, y = tasks.support_x, tasks.support_y
    if x.dtype not in KERNELS:
        return f"support_x is {x.dtype}; the kernels are float32 and float64"
    if y.is_floating_point() == (loop.loss == "cross_entropy"):
        return f"the native {loop.loss} does not take targets of {y.dtype}"
    constants = ("support_y", "query_y", "support_weight", "query_weight")
    for name in constants:
        tensor = getattr(tasks, name)
        if tensor is not None and tensor.requires_grad:
            return f"{name} requires grad, and the native kernels take it as a constant"
    return None


def _unfit_network(loop: InnerLoop, network: Chain | Stages | str, x: Tensor) -> str | None:
    """Why the kernels for the device of `x` do not take this network, though others do.

    A network that is no chain, where it is not known of which samples, is a sentence.
    """
    if BACKENDS[x.device.type] is cpu:
        return None
    if not isinstance(network, Chain):
        return "the CUDA kernels take chains of linear layers, and this is a network of images"
    key = ("unfit", x.dtype, x.device, network)
    if key not in loop.memory:
        of = BACKENDS[x.device.type].kernels(KERNELS[x.dtype])
        rates = [(0, 1) if name in loop.adapted else None for name in network.names]
        chain = of.chain(list(network.nodes), loop.loss, len(network.names))
        call = of.call(
            chain, 1, loop.steps, loop.order, [0] * len(network.names), rates, True, (1, 1),
            loop.loss == "cross_entropy", (False, False),
        )  # fmt: skip
        loop.memory[key] = of.unfit(call, x.device) or None
    return loop.memory[key]


# ---- one call ----------------------------------------------------------------------------------


def _builds_graph(tensors: Sequence[Tensor]) -> bool:
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor.requires_grad:
                return True
    return False


def _run_meta_loss(
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


def _run_adapt(
    form: Form, addresses: list[int], like: Tensor, keep: bool
) -> tuple[Any, tuple[Tensor, ...]]:
    """(record, fast weights)"""
    program = form.program
    fast = [
        like.new_empty(form.tasks, *shape) if adapts else None
        for shape, adapts in zip(program.shapes, program.adapts, strict=True)
    ]
    record = program.kernels.forward(form.native, like, addresses, keep, 0, 0, _addresses(fast))
    return record, tuple(f for f in fast if f is not None)


# ---- autograd ----------------------------------------------------------------------------------


class _Gradients(NamedTuple):
    """Of the tensors that may require grad, None where none is needed."""

    out: list[Tensor | None]  # one a tensor
    of_rates: Sequence[Tensor | None]  # [steps or 1, *shape] a parameter, instead of the rates' own


class _MetaLoss(torch.autograd.Function):
    """(parameters, rates, support_x, query_x) -> (loss [T], predictions [T, Q, O])."""

    @staticmethod
    def forward(
        ctx: Any, form: Form, addresses: list[int], constants: list[Tensor], *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        _keep(ctx, form, tensors, constants)
        ctx.record = ctx.gradients = None
        if _steps_at_once(form, ctx.needs_input_grad[3:]):
            ctx.gradients = _new_gradients(form, tensors, ctx.needs_input_grad[3:])
            return _run_step(form, addresses, tensors[-1], ctx.gradients)
        ctx.record, loss, predictions = _run_meta_loss(form, addresses, tensors[-1], keep=True)
        return loss, predictions

    @staticmethod
    @runs_eagerly
    def backward(
        ctx: Any, grad_loss: Tensor | None, grad_predictions: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        refuse_graph("resident")
        refuse_batched(grad_loss, grad_predictions)
        kept = ctx.saved_tensors  # all are looked at for changes in place
        grad_loss, at_loss = _read(grad_loss)
        factor = _factor(ctx.form, at_loss if grad_predictions is None else 0)
        gradients, ctx.gradients = ctx.gradients, None
        if factor is None:
            gradients = _run_backward(ctx, kept, at_loss, grad_predictions, None)
        elif gradients is None:
            ones = kept[0].new_ones(ctx.form.tasks)
            gradients = _run_backward(ctx, kept, ones.data_ptr(), None, None)
        if factor is not None:
            _scale(ctx.form, gradients, factor)
        return None, None, None, *_by_tensor(ctx, gradients)


class _Adapt(torch.autograd.Function):
    """(parameters, rates, support_x) -> the fast weights of those that adapt."""

    @staticmethod
    def forward(
        ctx: Any, form: Form, addresses: list[int], constants: list[Tensor], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        _keep(ctx, form, tensors, constants)
        ctx.record, fast = _run_adapt(form, addresses, tensors[-1], keep=True)
        return fast

    @staticmethod
    @runs_eagerly
    def backward(ctx: Any, *grad_fast: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_graph("resident")
        refuse_batched(*grad_fast)
        gradients = _run_backward(ctx, ctx.saved_tensors, 0, None, grad_fast)
        return None, None, None, *_by_tensor(ctx, gradients)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """`function.apply`, but for a look at each argument for torch.func, which came before."""
    return super(torch.autograd.Function, function).apply(*arguments)  # type: ignore[misc]


def _keep(ctx: Any, form: Form, tensors: Sequence[Tensor], constants: Sequence[Tensor]) -> None:
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
    of_inputs = needs[len(program.names) + len(form.rated)] or needs[-1]
    return program.kernels.step is not None and not of_inputs and program.habit.at_once()


def _factor(form: Form, at_loss: int) -> float | None:
    """The gradient of every task's loss if they are all alike, as those of a mean are.

    None if they are not, or if they are not all that there is (no address).
    """
    step = form.program.kernels.step
    if step is None:
        return None
    factor = step.common_value(at_loss, form.tasks) if at_loss else None
    form.program.habit.met(factor is not None)
    return factor


def _new_gradients(form: Form, tensors: Sequence[Tensor], needs: Sequence[bool]) -> _Gradients:
    n, n_rates = len(form.program.names), len(form.rated)
    out = [torch.empty_like(t) if need else None for t, need in zip(tensors, needs, strict=False)]
    needs_rates = n_rates and any(needs[n : n + n_rates])
    return _Gradients(out, _rate_buffers(form, tensors[0]) if needs_rates else ())


def _run_step(
    form: Form, addresses: list[int], like: Tensor, gradients: _Gradients
) -> tuple[Tensor, Tensor]:
    """(loss, predictions), and the gradients of the sum of the losses."""
    step = form.program.kernels.step
    assert step is not None and form.predictions is not None
    loss, predictions = like.new_empty(form.tasks), like.new_empty(form.predictions)
    step.run(
        form.native, addresses, predictions.data_ptr(), loss.data_ptr(),
        _addresses(gradients.out[: len(form.program.names)]), _addresses(gradients.of_rates),
    )  # fmt: skip
    return loss, predictions


def _scale(form: Form, gradients: _Gradients, factor: float) -> None:
    step = form.program.kernels.step
    assert step is not None
    if factor != 1:
        everything = (g for some in gradients for g in some if g is not None)
        step.scale([(g.data_ptr(), g.numel()) for g in everything], factor)


def _run_backward(
    ctx: Any,
    kept: Sequence[Tensor],
    at_loss: int,
    grad_predictions: Tensor | None,
    grad_fast: Sequence[Tensor | None] | None,
) -> _Gradients:
    form = ctx.form
    program, n = form.program, len(form.program.names)
    fast = [] if grad_fast is None else _by_parameter(program, grad_fast)
    grad_predictions, at_predictions = _read(grad_predictions)
    addresses = _kept_addresses(form, kept)
    if ctx.record is None:  # the forward differentiated at once, for other gradients than these
        ctx.record = _run_meta_loss(form, addresses, kept[0], keep=True)[0]
    gradients = _new_gradients(form, kept, ctx.needs_input_grad[3:])
    written = _addresses(gradients.out)
    program.kernels.backward(
        form.native, kept[0], addresses, ctx.record,
        at_loss, at_predictions, _addresses(fast), written[:n], _addresses(gradients.of_rates),
        written[n + len(form.rated)], written[-1] if form.predictions else 0,
    )  # fmt: skip
    return gradients


def _by_tensor(ctx: Any, gradients: _Gradients) -> list[Tensor | None]:
    form, needs = ctx.form, ctx.needs_input_grad[3:]
    out = [g if need else None for g, need in zip(gradients.out, needs, strict=True)]
    for position, p in enumerate(form.rated, start=len(form.program.names)):
        if needs[position]:
            gradient = gradients.of_rates[p]
            assert gradient is not None
            out[position] = gradient.sum_to_size(
                form.rate_shapes[position - len(form.program.names)]
            )
    return out


def _by_parameter(program: Program, grad_fast: Sequence[Tensor | None]) -> list[Tensor | None]:
    given = iter(grad_fast)
    by_parameter = (next(given) if adapts else None for adapts in program.adapts)
    return [None if gradient is None else plain(gradient) for gradient in by_parameter]


def _rate_buffers(form: Form, like: Tensor) -> list[Tensor | None]:
    """A gradient [steps or 1, *shape] for every parameter that has rates."""
    steps = max(shape[0] for shape in form.rate_shapes)
    return [
        like.new_empty(steps, *shape) if p in form.rated else None
        for p, shape in enumerate(form.program.shapes)
    ]


def _read(gradient: Tensor | None) -> tuple[Tensor | None, int]:
    """A gradient of an output, contiguous, and its address; 0 where there is none."""
    if gradient is None:
        return None, 0
    gradient = plain(gradient)
    return gradient, gradient.data_ptr()


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
