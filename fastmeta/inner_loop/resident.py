"""The resident engine: the inner loop in one native call, its meta-gradient in another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fastmeta.backends import cpu
from fastmeta.inner_loop.chain import Chain, chain_of
from fastmeta.inner_loop.loop import InnerLoop, Rates, refuse_graph
from fastmeta.inner_loop.stages import Stages, stages_of, unknown_layer

__all__ = ["adapt", "can_run", "meta_loss"]

_Samples = tuple[Tensor, Tensor, Tensor | None]  # x, y, weight
_Constants = tuple[Tensor, Tensor | None]  # y, weight

_KERNELS = {torch.float32: "float32", torch.float64: "float64"}


def can_run(
    loop: InnerLoop, tasks: Any, parameters: Mapping[str, Tensor], rates: Rates
) -> str | None:
    """None if the native kernels can run this, else the reason."""
    unavailable = cpu.unavailable()
    if unavailable is not None:
        return unavailable
    if not isinstance(loop.loss, str):
        return "the loss is a function, and the native kernels have mse, cross_entropy and bce"
    if loop.randomness is not None:
        return "the native kernels draw no random numbers"
    if not tasks:
        chain = chain_of(loop.module)
        layer = unknown_layer(loop.module) if isinstance(chain, str) else None
        return layer or _unfit_parameters(parameters)
    network = _network(loop, tasks.support_x.shape[2:])
    if isinstance(network, str):
        return network
    return _unfit_parameters(parameters) or _unfit_tasks(loop, tasks)


def adapt(
    loop: InnerLoop,
    parameters: Mapping[str, Tensor],
    rates: Rates,
    support_x: Tensor,
    support_y: Tensor,
    support_weight: Tensor | None,
) -> dict[str, Tensor]:
    """Every parameter by name; those that adapt [T, *shape], the others as given."""
    call, tensors = _prepare(loop, parameters, rates, (support_x, support_y, support_weight), None)
    program = call.program
    names = [name for name, adapts in zip(program.names, program.adapts, strict=True) if adapts]
    run = _Adapt.apply if _builds_graph(tensors) else _adapt
    return {**parameters, **dict(zip(names, run(call, *tensors), strict=True))}


def meta_loss(
    loop: InnerLoop, parameters: Mapping[str, Tensor], rates: Rates, tasks: Any
) -> tuple[Tensor, Tensor]:
    """The query loss [T] and predictions [T, Q, O] of the adapted tasks."""
    support = (tasks.support_x, tasks.support_y, tasks.support_weight)
    query = (tasks.query_x, tasks.query_y, tasks.query_weight)
    call, tensors = _prepare(loop, parameters, rates, support, query)
    run = _MetaLoss.apply if _builds_graph(tensors) else _meta_loss
    return run(call, *tensors)


# ---- what can run ------------------------------------------------------------------------------


def _unfit_parameters(parameters: Mapping[str, Tensor]) -> str | None:
    for name, parameter in parameters.items():
        if parameter.device.type != "cpu":
            return f"parameter {name!r} is on {parameter.device}, and these kernels are for the CPU"
        if parameter.dtype not in _KERNELS:
            return f"parameter {name!r} is {parameter.dtype}; the kernels are float32 and float64"
        if parameter.layout is not torch.strided:
            return f"parameter {name!r} is {parameter.layout}, not a dense tensor"
    if len({parameter.dtype for parameter in parameters.values()}) > 1:
        return "the parameters are of several dtypes"
    return None


def _network(loop: InnerLoop, sample: torch.Size) -> Chain | Stages | str:
    """A module's layers as the native kernels know them, or the reason why they do not."""
    chain = chain_of(loop.module)
    if isinstance(chain, Chain) and (chain.flattens or len(sample) == 1):
        return chain
    return stages_of(loop.module, sample)


def _unfit_tasks(loop: InnerLoop, tasks: Any) -> str | None:
    x, y = tasks.support_x, tasks.support_y
    if x.dtype not in _KERNELS:
        return f"support_x is {x.dtype}; the kernels are float32 and float64"
    if y.is_floating_point() == (loop.loss == "cross_entropy"):
        return f"the native {loop.loss} does not take targets of {y.dtype}"
    constants = ("support_y", "query_y", "support_weight", "query_weight")
    for name in constants:
        tensor = getattr(tasks, name)
        if tensor is not None and tensor.requires_grad:
            return f"{name} requires grad, and the native kernels take it as a constant"
    return None


# ---- one call ----------------------------------------------------------------------------------


class _Program(NamedTuple):
    """What depends on the inner loop alone."""

    chain: Any
    forward: Any
    backward: Any
    steps: int
    order: int
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    ranks: tuple[int, ...]
    adapts: tuple[bool, ...]
    inputs: int
    fewest: int
    outputs: int
    takes_labels: bool
    dtype: torch.dtype


class _Call(NamedTuple):
    """One call, beside the tensors that may require grad.

    Those are one flat list: a parameter a name, then a rate an adapted name (none for a rate that
    is a number), then support_x and, with a query, query_x.
    """

    program: _Program
    rate: Tensor | None  # the one rate of all that adapt, where it is a number
    rated: Sequence[int]  # else the indices of the parameters that have a tensor of rates
    support: _Constants
    query: _Constants | None
    addresses: list[int]  # of the tensors
    arguments: tuple[Any, ...]  # what the native forward and backward share


_programs: WeakKeyDictionary[InnerLoop, dict[Any, _Program]] = WeakKeyDictionary()


def _program(loop: InnerLoop, dtype: torch.dtype, sample: torch.Size) -> _Program:
    known = _programs.get(loop)
    if known is None:
        known = _programs[loop] = {}
    program = known.get((dtype, sample))
    if program is None:
        program = known[dtype, sample] = _new_program(loop, dtype, sample)
    return program


def _new_program(loop: InnerLoop, dtype: torch.dtype, sample: torch.Size) -> _Program:
    if dtype not in _KERNELS:
        raise TypeError(f"the native kernels are float32 and float64, and support_x is {dtype}")
    network = _network(loop, sample)
    if isinstance(network, str):
        raise ValueError(network)
    native = cpu.native
    assert native is not None
    layers, inputs, fewest = _as_native(network, sample)
    shapes = tuple(tuple(loop.shapes[name]) for name in network.names)
    return _Program(
        chain=native.Chain(layers, loop.loss, len(network.names)),
        forward=getattr(native, f"forward_{_KERNELS[dtype]}"),
        backward=getattr(native, f"backward_{_KERNELS[dtype]}"),
        steps=loop.steps,
        order=loop.order,
        names=network.names,
        shapes=shapes,
        ranks=tuple(map(len, shapes)),
        adapts=tuple(name in loop.adapted for name in network.names),
        inputs=inputs,
        fewest=fewest,
        outputs=network.outputs,
        takes_labels=loop.loss == "cross_entropy",
        dtype=dtype,
    )


def _as_native(network: Chain | Stages, sample: torch.Size) -> tuple[list[Any], int, int]:
    """Layers, inputs a sample, and the fewest samples a task."""
    if isinstance(network, Chain):
        return list(network.nodes), network.nodes[0][4], 1
    return list(network.stages), math.prod(sample), network.fewest


def _prepare(
    loop: InnerLoop,
    parameters: Mapping[str, Tensor],
    rates: Rates,
    support: _Samples,
    query: _Samples | None,
) -> tuple[_Call, list[Tensor]]:
    program = _program(loop, support[0].dtype, support[0].shape[2:])
    names = program.names
    tensors = [parameters[name].contiguous() for name in names]
    rated: Sequence[int] = ()
    rate = None
    if isinstance(rates, Mapping):
        rated = [p for p, adapts in enumerate(program.adapts) if adapts]
        tensors += [_spread(rates[names[p]], program.shapes[p]) for p in rated]
    else:
        rate = _constant(rates, support[0].dtype)
    tensors.append(_rows(support[0]))
    if query is not None:
        tensors.append(_rows(query[0]))
    call = _Call(
        program, rate, rated, _constants(support), None if query is None else _constants(query),
        [], (),
    )  # fmt: skip
    _check(call, tensors)
    return _at(call, tensors), tensors


def _check(call: _Call, tensors: Sequence[Tensor]) -> None:
    """What the native code relies on to stay inside its tensors, looked at before every call."""
    program, dtype = call.program, call.program.dtype
    samples = [("support", tensors[len(program.names) + len(call.rated)], call.support)]
    if call.query is not None:
        samples.append(("query", tensors[-1], call.query))
    for tensor in tensors:
        if tensor.dtype is not dtype or not tensor.is_cpu:
            raise TypeError(
                f"parameters, inner rates and inputs must all be {dtype} on the CPU, "
                f"and one is {tensor.dtype} on {tensor.device}"
            )
    for kind, x, (y, weight) in samples:
        rows = x.shape[:2]
        if x.shape[2] != program.inputs or x.shape[0] != samples[0][1].shape[0]:
            raise ValueError(f"{kind}_x is {list(x.shape)}, for {program.inputs} inputs")
        if x.shape[1] < program.fewest:
            raise ValueError(
                f"{kind}_x {list(x.shape)} has one sample a task: batch norm needs two or more"
            )
        if y.dtype is torch.int64:
            fits = y.shape == rows and program.takes_labels
        else:
            fits = y.dtype is dtype and y.shape == (*rows, program.outputs)
        if not fits or not y.is_cpu or (y.dtype is not torch.int64 and program.takes_labels):
            raise TypeError(
                f"{kind}_y is {y.dtype} {list(y.shape)}, for {kind}_x of {dtype} {list(x.shape)} "
                f"and {program.outputs} outputs"
            )
        if weight is not None and (
            weight.dtype is not dtype or weight.shape != rows or not weight.is_cpu
        ):
            raise TypeError(
                f"{kind}_weight is {weight.dtype} {list(weight.shape)}, for {kind}_x of {dtype} "
                f"{list(x.shape)}"
            )


def _at(call: _Call, tensors: Sequence[Tensor]) -> _Call:
    """The call on these tensors, which the caller keeps alive while the native code runs."""
    program, n = call.program, len(call.program.names)
    addresses = [tensor.data_ptr() for tensor in tensors]
    parameters = [
        (address, tensor.stride(0) if tensor.dim() > rank else 0)
        for address, tensor, rank in zip(addresses, tensors, program.ranks, strict=False)
    ]
    support_x = tensors[n + len(call.rated)]
    arguments = (
        program.chain, support_x.shape[0], program.steps, program.order,
        torch.get_num_threads(), parameters, _rate_arguments(call, tensors),
        _samples(support_x, call.support),
        None if call.query is None else _samples(tensors[-1], call.query),
    )  # fmt: skip
    return call._replace(addresses=addresses, arguments=arguments)


def _builds_graph(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any([tensor.requires_grad for tensor in tensors])


def _rows(x: Tensor) -> Tensor:
    return (x if x.dim() == 3 else x.flatten(2)).contiguous()


def _constants(samples: _Samples) -> _Constants:
    _, y, weight = samples
    return y.contiguous(), None if weight is None else weight.contiguous()


def _spread(rate: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A rate [k, *s] as [k, *shape], or [k, 1...] where it is one number a step."""
    steps, own = rate.shape[0], rate.shape[1:]
    rate = rate.reshape(steps, *[1] * (len(shape) - len(own)), *own)
    return rate.contiguous() if rate.numel() == steps else rate.expand(steps, *shape).contiguous()


# ---- autograd ----------------------------------------------------------------------------------


class _MetaLoss(torch.autograd.Function):
    """(parameters, rates, support_x, query_x) -> (loss [T], predictions [T, Q, O])."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        ctx.call = call
        ctx.record, loss, predictions = _run_meta_loss(call, tensors[-1], keep=True)
        ctx.save_for_backward(*tensors, *_all_constants(call))
        ctx.set_materialize_grads(False)
        return loss, predictions

    @staticmethod
    def backward(
        ctx: Any, grad_loss: Tensor | None, grad_predictions: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        refuse_graph("resident")
        return None, *_gradients(ctx, grad_loss, grad_predictions, None)


class _Adapt(torch.autograd.Function):
    """(parameters, rates, support_x) -> the fast weights of those that adapt."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.record, fast = _run_adapt(call, tensors[-1], keep=True)
        ctx.save_for_backward(*tensors, *_all_constants(call))
        ctx.set_materialize_grads(False)
        return fast

    @staticmethod
    def backward(ctx: Any, *grad_fast: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_graph("resident")
        return None, *_gradients(ctx, None, None, grad_fast)


def _all_constants(call: _Call) -> list[Tensor | None]:
    """Targets and weights, which the backward reads again: nobody may change them before."""
    return [*call.support, *(call.query or ())]


def _meta_loss(call: _Call, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    return _run_meta_loss(call, tensors[-1], keep=False)[1:]


def _adapt(call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
    return _run_adapt(call, tensors[-1], keep=False)[1]


def _run_meta_loss(call: _Call, query_x: Tensor, keep: bool) -> tuple[Any, Tensor, Tensor]:
    """(record, loss, predictions)"""
    tasks, queries, _ = query_x.shape
    loss = query_x.new_empty(tasks)
    predictions = query_x.new_empty(tasks, queries, call.program.outputs)
    record = call.program.forward(
        *call.arguments, keep, predictions.data_ptr(), loss.data_ptr(), None
    )
    return record, loss, predictions


def _run_adapt(call: _Call, support_x: Tensor, keep: bool) -> tuple[Any, tuple[Tensor, ...]]:
    """(record, fast weights)"""
    program, tasks = call.program, support_x.shape[0]
    fast = [
        support_x.new_empty(tasks, *shape) if adapts else None
        for shape, adapts in zip(program.shapes, program.adapts, strict=True)
    ]
    record = program.forward(*call.arguments, keep, None, None, _addresses(fast))
    return record, tuple(f for f in fast if f is not None)


def _gradients(
    ctx: Any,
    grad_loss: Tensor | None,
    grad_predictions: Tensor | None,
    grad_fast: Sequence[Tensor | None] | None,
) -> list[Tensor | None]:
    """One gradient a tensor, None where none is needed."""
    call, needs = ctx.call, ctx.needs_input_grad[1:]
    tensors = ctx.saved_tensors[: len(needs)]  # all are looked at for changes in place
    if call.addresses != [tensor.data_ptr() for tensor in tensors]:
        call = _at(call, tensors)  # a hook on saved tensors gave them back elsewhere
    n, n_rates = len(call.program.names), len(call.rated)
    fast = None if grad_fast is None else _by_parameter(call, grad_fast)
    grad_loss = None if grad_loss is None else grad_loss.contiguous()
    grad_predictions = None if grad_predictions is None else grad_predictions.contiguous()
    out = [torch.empty_like(t) if need else None for t, need in zip(tensors, needs, strict=True)]
    of_rates = _rate_buffers(call, tensors) if any(needs[n : n + n_rates]) else None
    of_inputs = out[n + n_rates :]
    call.program.backward(
        *call.arguments, ctx.record, _address(grad_loss), _address(grad_predictions),
        fast and _addresses(fast), _addresses(out[:n]), of_rates and _addresses(of_rates),
        _address(of_inputs[0]), _address(of_inputs[-1]) if call.query else None,
    )  # fmt: skip
    for position, p in enumerate(call.rated, start=n):
        if of_rates is not None and needs[position]:
            out[position] = of_rates[p].sum_to_size(tensors[position].shape)
    return out


def _by_parameter(call: _Call, grad_fast: Sequence[Tensor | None]) -> list[Tensor | None]:
    given = iter(grad_fast)
    by_parameter = (next(given) if adapts else None for adapts in call.program.adapts)
    return [None if gradient is None else gradient.contiguous() for gradient in by_parameter]


def _rate_buffers(call: _Call, tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """A gradient [steps or 1, *shape] for every parameter that has rates."""
    n = len(call.program.names)
    steps = max(rate.shape[0] for rate in tensors[n : n + len(call.rated)])
    return [
        tensors[p].new_empty(steps, *shape) if p in call.rated else None
        for p, shape in enumerate(call.program.shapes)
    ]


# ---- addresses ---------------------------------------------------------------------------------


def _rate_arguments(
    call: _Call, tensors: Sequence[Tensor]
) -> Sequence[tuple[int, int, int] | None]:
    """(address, from one step to the next, rates a step), None for what does not adapt."""
    program = call.program
    if call.rate is not None:
        one = (call.rate.data_ptr(), 0, 1)
        return [one if adapts else None for adapts in program.adapts]
    arguments: list[tuple[int, int, int] | None] = [None] * len(program.names)
    for p, rate in zip(call.rated, tensors[len(program.names) :], strict=False):
        per_step = rate[0].numel()
        arguments[p] = (rate.data_ptr(), per_step if rate.shape[0] > 1 else 0, per_step)
    return arguments


def _samples(x: Tensor, constants: _Constants) -> tuple[Any, ...]:
    """(n, x, y, labels, weight)"""
    y, weight = constants
    target, label = (y.data_ptr(), None) if y.is_floating_point() else (None, y.data_ptr())
    return x.shape[1], x.data_ptr(), target, label, _address(weight)


@lru_cache(maxsize=64)
def _constant(value: float, dtype: torch.dtype) -> Tensor:
    return torch.full((1,), value, dtype=dtype)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _addresses(tensors: Sequence[Tensor | None]) -> list[int | None]:
    return [_address(tensor) for tensor in tensors]
