"""The resident engine: the inner loop in one native call, its meta-gradient in another."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.backends import cpu, cuda, requested_backend
from fastmeta.backends.kernels import Kernels
from fastmeta.backends.looks import described, looks_and_addresses
from fastmeta.inner_loop.chain import Chain, chain_of
from fastmeta.inner_loop.loop import InnerLoop, Rates, refuse_batched, refuse_graph
from fastmeta.inner_loop.stages import Stages, stages_of, unknown_layer

__all__ = ["adapt", "can_run", "meta_loss"]

_Samples = tuple[Tensor, Tensor, Tensor | None]  # x, y, weight
_Constants = tuple[Tensor, Tensor | None]  # y, weight

_KERNELS = {torch.float32: "float32", torch.float64: "float64"}
_BACKENDS = {"cpu": cpu, "cuda": cuda}  # by type of device


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
        if unfit is None and isinstance(chain, Chain):
            unfit = _unfit_network(loop, chain, next(iter(parameters.values())))
        return unfit
    network = _network(loop, tasks.support_x.shape[2:])
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
    form, addresses, tensors, constants = _prepare(loop, parameters, rates, support, None)
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
    form, addresses, tensors, constants = _prepare(loop, parameters, rates, support, query)
    if _builds_graph(tensors):
        return _apply(_MetaLoss, form, addresses, constants, *tensors)
    return _run_meta_loss(form, addresses, tensors[-1], keep=False)[1:]


# ---- what can run ------------------------------------------------------------------------------


def _unavailable(parameters: Mapping[str, Tensor]) -> str | None:
    """Why there are no kernels where the parameters are."""
    requested = requested_backend()
    first = next(iter(parameters.values()), None)
    device = first.device.type if first is not None else "cpu"
    backend = _BACKENDS.get(requested or device)
    if backend is None:
        return f"the parameters are on {device}; these kernels are for {' and '.join(_BACKENDS)}"
    return backend.unavailable()


def _unfit_parameters(parameters: Mapping[str, Tensor]) -> str | None:
    requested = requested_backend()
    for name, parameter in parameters.items():
        if requested in _BACKENDS and parameter.device.type != requested:
            return f"parameter {name!r} is on {parameter.device}, not on {requested}"
        if parameter.dtype not in _KERNELS:
            return f"parameter {name!r} is {parameter.dtype}; the kernels are float32 and float64"
        if parameter.layout is not torch.strided:
            return f"parameter {name!r} is {parameter.layout}, not a dense tensor"
    if len({parameter.dtype for parameter in parameters.values()}) > 1:
        return "the parameters are of several dtypes"
    if len({parameter.device for parameter in parameters.values()}) > 1:
        return "the parameters are on several devices"
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


def _unfit_network(loop: InnerLoop, network: Chain | Stages, x: Tensor) -> str | None:
    """Why the kernels for the device of `x` do not take this network, though others do."""
    if _BACKENDS[x.device.type] is cpu:
        return None
    if isinstance(network, Stages):
        return "the CUDA kernels take chains of linear layers, and this is a network of images"
    key = ("unfit", x.dtype, x.device, network)
    if key not in loop.memory:
        of = _BACKENDS[x.device.type].kernels(_KERNELS[x.dtype])
        rates = [(0, 1) if name in loop.adapted else None for name in network.names]
        chain = of.chain(list(network.nodes), loop.loss, len(network.names))
        call = of.call(
            chain, 1, loop.steps, loop.order, [0] * len(network.names), rates, True, (1, 1),
            loop.loss == "cross_entropy", (False, False),
        )  # fmt: skip
        loop.memory[key] = of.unfit(call, x.device) or None
    return loop.memory[key]


# ---- what does not depend on values --------------------------------------------------------------


class _Program(NamedTuple):
    """What depends on the inner loop, the dtype, the device and the shape of a sample."""

    kernels: Kernels
    chain: Any  # native
    steps: int
    order: int
    names: tuple[str, ...]
    adapted: tuple[str, ...]  # in the order of `names`
    shapes: tuple[tuple[int, ...], ...]
    adapts: tuple[bool, ...]
    rated: tuple[int, ...]  # the indices of those that adapt
    inputs: int
    fewest: int
    outputs: int
    takes_labels: bool
    dtype: torch.dtype
    device: torch.device
    forms: dict[Any, _Form]  # by `_key`
    rates: dict[float, Tensor]  # on a CPU, the latest rate that was a number


class _Form(NamedTuple):
    """What depends on shapes as well: found once, for all calls on tensors that look alike.

    A call's tensors are one flat list. First those that may require grad: a parameter a name, a
    rate an adapted name (none where one number is the rate), support_x and, with a query, query_x.
    Then the constants: support_y and its weight, query_y and its weight, as far as there are any,
    and the one rate where it is a number.
    """

    program: _Program
    looks: Hashable  # of the tensors
    described: Hashable  # the same, whatever their types
    native: Any
    rated: Sequence[int]  # the indices of the parameters that have a tensor of rates
    rate_shapes: tuple[tuple[int, ...], ...]  # of those tensors
    tasks: int
    predictions: tuple[int, int, int] | None  # their shape


_most_forms = 256  # of one program; ragged batches have ever new ones
_LATEST = "resident: the latest program"  # in the memory of an inner loop


def _program(loop: InnerLoop, x: Tensor) -> _Program:
    key = ("resident", x.dtype, x.device, x.shape[2:])
    program = loop.memory.get(key)
    if program is None:
        program = loop.memory[key] = _new_program(loop, x.dtype, x.device, x.shape[2:])
    return program


def _new_program(
    loop: InnerLoop, dtype: torch.dtype, device: torch.device, sample: torch.Size
) -> _Program:
    if dtype not in _KERNELS:
        raise TypeError(f"the native kernels are float32 and float64, and support_x is {dtype}")
    network = _network(loop, sample)
    if isinstance(network, str):
        raise ValueError(network)
    if device.type not in _BACKENDS:
        raise TypeError(f"the native kernels are for {' and '.join(_BACKENDS)}, not {device}")
    kernels = _BACKENDS[device.type].kernels(_KERNELS[dtype])
    layers, inputs, fewest = _as_native(network, sample)
    adapts = tuple(name in loop.adapted for name in network.names)
    return _Program(
        kernels=kernels,
        chain=kernels.chain(layers, loop.loss, len(network.names)),
        steps=loop.steps,
        order=loop.order,
        names=network.names,
        adapted=tuple(name for name in network.names if name in loop.adapted),
        shapes=tuple(tuple(loop.shapes[name]) for name in network.names),
        adapts=adapts,
        rated=tuple(p for p, adapts_too in enumerate(adapts) if adapts_too),
        inputs=inputs,
        fewest=fewest,
        outputs=network.outputs,
        takes_labels=loop.loss == "cross_entropy",
        dtype=dtype,
        device=device,
        forms={},
        rates={},
    )


def _as_native(network: Chain | Stages, sample: torch.Size) -> tuple[list[Any], int, int]:
    """Layers, inputs a sample, and the fewest samples a task."""
    if isinstance(network, Chain):
        return list(network.nodes), network.nodes[0][4], 1
    return list(network.stages), math.prod(sample), network.fewest


def _new_form(
    program: _Program,
    looks: Hashable,
    tensors: Sequence[Tensor],
    support: _Samples,
    query: _Samples | None,
    one_rate: bool,
) -> _Form:
    """The form of these tensors, or what the native code relies on and does not find in them."""
    n = len(program.names)
    rated: Sequence[int] = () if one_rate else program.rated
    x, _, weight = support
    _check_inputs(program, tensors[: n + len(rated)], [x] if query is None else [x, query[0]])
    _check_samples(program, "support", support, x.shape[0])
    if query is not None:
        _check_samples(program, "query", query, x.shape[0])
    rates: list[tuple[int, int] | None] = [(0, 1) if adapts else None for adapts in program.adapts]
    for p, rate in zip(rated, tensors[n:], strict=False):
        if rate.shape[0] != 1 and rate.shape[0] < program.steps:
            raise ValueError(f"rates for {rate.shape[0]} steps, and there are {program.steps}")
        a_step = rate[0].numel()
        rates[p] = (a_step if rate.shape[0] > 1 else 0, a_step)
    native = program.kernels.call(
        program.chain, x.shape[0], program.steps, program.order,
        [_task_stride(p, s) for p, s in zip(tensors, program.shapes, strict=False)],
        rates, one_rate, (x.shape[1], 0 if query is None else query[0].shape[1]),
        program.takes_labels, (weight is not None, query is not None and query[2] is not None),
    )  # fmt: skip
    predictions = None if query is None else (*query[0].shape[:2], program.outputs)
    rate_shapes = tuple(tuple(rate.shape) for rate in tensors[n : n + len(rated)])
    return _Form(
        program, looks, described(tensors), native, rated, rate_shapes, x.shape[0], predictions
    )


def _task_stride(parameter: Tensor, shape: tuple[int, ...]) -> int:
    """From one task's to the next one's, 0 where they share it; the tensor is contiguous."""
    return math.prod(shape) if parameter.dim() > len(shape) else 0


def _check_inputs(
    program: _Program, parameters_and_rates: Sequence[Tensor], inputs: Sequence[Tensor]
) -> None:
    dtype = program.dtype
    for tensor in (*parameters_and_rates, *inputs):
        if tensor.dtype is not dtype or tensor.device != program.device:
            raise TypeError(
                f"parameters, inner rates and inputs must all be {dtype} on {program.device}, "
                f"and one is {tensor.dtype} on {tensor.device}"
            )
    tasks = inputs[0].shape[0]
    for name, parameter, shape in zip(
        program.names, parameters_and_rates, program.shapes, strict=False
    ):
        if tuple(parameter.shape) not in (shape, (tasks, *shape)):
            raise ValueError(
                f"parameter {name!r} must be {list(shape)} or {[tasks, *shape]}, "
                f"not {list(parameter.shape)}"
            )


def _check_samples(program: _Program, kind: str, samples: _Samples, tasks: int) -> None:
    dtype, (x, y, weight) = program.dtype, samples
    rows = x.shape[:2]
    if x.dim() != 3 or x.shape[2] != program.inputs or x.shape[0] != tasks or 0 in rows:
        raise ValueError(f"{kind}_x is {list(x.shape)}, for {program.inputs} inputs")
    if x.shape[1] < program.fewest:
        raise ValueError(
            f"{kind}_x {list(x.shape)} has one sample a task: batch norm needs two or more"
        )
    if y.dtype is torch.int64:
        fits = y.shape == rows and program.takes_labels
    else:
        fits = y.dtype is dtype and y.shape == (*rows, program.outputs)
    elsewhere = y.device != program.device
    if not fits or elsewhere or (y.dtype is not torch.int64 and program.takes_labels):
        raise TypeError(
            f"{kind}_y is {y.dtype} {list(y.shape)}, for {kind}_x of {dtype} {list(x.shape)} "
            f"and {program.outputs} outputs"
        )
    if weight is not None and (
        weight.dtype is not dtype or weight.shape != rows or weight.device != program.device
    ):
        raise TypeError(
            f"{kind}_weight is {weight.dtype} {list(weight.shape)}, for {kind}_x of {dtype} "
            f"{list(x.shape)}"
        )


# ---- one call ----------------------------------------------------------------------------------


def _prepare(
    loop: InnerLoop,
    parameters: Mapping[str, Tensor],
    rates: Rates,
    support: _Samples,
    query: _Samples | None,
) -> tuple[_Form, list[int], list[Tensor], list[Tensor]]:
    """The form, all addresses, the tensors that may require grad, and the constants."""
    program = loop.memory.get(_LATEST) or _program(loop, support[0])
    tensors, constants, looks, addresses = _gather(program, parameters, rates, support, query)
    form = program.forms.get(_key(looks, rates, support, query))
    if form is None:
        return _prepare_new(loop, parameters, rates, support, query)
    return form, addresses, tensors, constants


def _prepare_new(
    loop: InnerLoop,
    parameters: Mapping[str, Tensor],
    rates: Rates,
    support: _Samples,
    query: _Samples | None,
) -> tuple[_Form, list[int], list[Tensor], list[Tensor]]:
    """`_prepare` for tensors as they come: of another program, not contiguous, or never seen."""
    program = loop.memory[_LATEST] = _program(loop, support[0])
    parameters = {name: _plain(parameters[name]) for name in program.names}
    if isinstance(rates, Mapping):
        named = zip(program.names, program.shapes, strict=True)
        rates = {name: _spread(rates[name], shape) for name, shape in named if name in rates}
    dense_support, dense_query = _dense(support), None if query is None else _dense(query)
    tensors, constants, looks, addresses = _gather(
        program, parameters, rates, dense_support, dense_query
    )
    key = _key(looks, rates, support, query)
    if support[0].dim() != 3:  # rows that look like these must not pass for images
        key = key, support[0].shape[2:]
    form = program.forms.get(key)
    if form is None:
        one_rate = not isinstance(rates, Mapping)
        everything = tensors + constants
        form = _new_form(program, looks, everything, dense_support, dense_query, one_rate)
        if len(program.forms) >= _most_forms:
            program.forms.clear()
        program.forms[key] = form
    return form, addresses, tensors, constants


def _gather(
    program: _Program,
    parameters: Mapping[str, Tensor],
    rates: Rates,
    support: _Samples,
    query: _Samples | None,
) -> tuple[list[Tensor], list[Tensor], Hashable, list[int]]:
    """The tensors that may require grad, the constants, what all look like and where they are."""
    tensors = _variables(program, parameters, rates, support, query)
    constants = _constants(program, rates, support, query)
    return tensors, constants, *looks_and_addresses(tensors + constants)


def _variables(
    program: _Program,
    parameters: Mapping[str, Tensor],
    rates: Rates,
    support: _Samples,
    query: _Samples | None,
) -> list[Tensor]:
    """The tensors that may require grad, in the order that `_Form` tells."""
    tensors = [parameters[name] for name in program.names]
    if isinstance(rates, Mapping):
        tensors += [rates[name] for name in program.adapted]
    tensors.append(support[0])
    if query is not None:
        tensors.append(query[0])
    return tensors


def _constants(
    program: _Program, rates: Rates, support: _Samples, query: _Samples | None
) -> list[Tensor]:
    targets = support[1:] if query is None else support[1:] + query[1:]
    constants = [tensor for tensor in targets if tensor is not None]
    if not isinstance(rates, Mapping):
        rate = program.rates.get(rates)
        constants.append(_one_rate(program, rates) if rate is None else rate)
    return constants


def _key(looks: Hashable, rates: Rates, support: _Samples, query: _Samples | None) -> Hashable:
    """Of a form: what the tensors look like, and which there are."""
    weighted = support[2] is not None, query is not None and query[2] is not None
    return looks, weighted, query is None, isinstance(rates, Mapping)


def _dense(samples: _Samples) -> _Samples:
    x, y, weight = samples
    if x.dim() != 3:
        x = x.flatten(2)
    return _plain(x), _plain(y), None if weight is None else _plain(weight)


def _plain(tensor: Tensor) -> Tensor:
    """What native code can read: no wrapper that torch.func left, no turned sign, contiguous."""
    return torch._C._functorch.unwrap_if_dead(tensor).resolve_neg().contiguous()


def _spread(rate: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A rate [k, *s] as [k, *shape], or [k, 1...] where it is one number a step."""
    steps, own = rate.shape[0], rate.shape[1:]
    rate = _plain(rate).reshape(steps, *[1] * (len(shape) - len(own)), *own)
    return rate.contiguous() if rate.numel() == steps else rate.expand(steps, *shape).contiguous()


def _one_rate(program: _Program, value: float) -> Tensor:
    """[1]: a rate that is a number."""
    dtype, device = program.dtype, program.device
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.full((1,), value, dtype=dtype, device=device)  # it belongs to the graph
    rate = _kept_constant(value, dtype, device)
    if device.type == "cpu":
        program.rates.clear()
        program.rates[value] = rate
    return rate


@lru_cache(maxsize=64)
def _kept_constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    number = torch.full((1,), value, dtype=dtype, device="cpu")
    return number.to(device)  # waits: any stream may read it


def _builds_graph(tensors: Sequence[Tensor]) -> bool:
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor.requires_grad:
                return True
    return False


def _run_meta_loss(
    form: _Form, addresses: list[int], like: Tensor, keep: bool
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
    form: _Form, addresses: list[int], like: Tensor, keep: bool
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


class _MetaLoss(torch.autograd.Function):
    """(parameters, rates, support_x, query_x) -> (loss [T], predictions [T, Q, O])."""

    @staticmethod
    def forward(
        ctx: Any, form: _Form, addresses: list[int], constants: list[Tensor], *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        _keep(ctx, form, tensors, constants)
        ctx.record, loss, predictions = _run_meta_loss(form, addresses, tensors[-1], keep=True)
        return loss, predictions

    @staticmethod
    def backward(
        ctx: Any, grad_loss: Tensor | None, grad_predictions: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        refuse_graph("resident")
        refuse_batched(grad_loss, grad_predictions)
        return None, None, None, *_gradients(ctx, grad_loss, grad_predictions, None)


class _Adapt(torch.autograd.Function):
    """(parameters, rates, support_x) -> the fast weights of those that adapt."""

    @staticmethod
    def forward(
        ctx: Any, form: _Form, addresses: list[int], constants: list[Tensor], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        _keep(ctx, form, tensors, constants)
        ctx.record, fast = _run_adapt(form, addresses, tensors[-1], keep=True)
        return fast

    @staticmethod
    def backward(ctx: Any, *grad_fast: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_graph("resident")
        refuse_batched(*grad_fast)
        return None, None, None, *_gradients(ctx, None, None, grad_fast)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """`function.apply`, but for a look at each argument for torch.func, which came before."""
    return super(torch.autograd.Function, function).apply(*arguments)  # type: ignore[misc]


def _keep(ctx: Any, form: _Form, tensors: Sequence[Tensor], constants: Sequence[Tensor]) -> None:
    """The tensors are kept for the backward: nobody may change them before."""
    ctx.form = form
    ctx.save_for_backward(*tensors, *constants)
    ctx.set_materialize_grads(False)


def _kept_addresses(form: _Form, kept: Sequence[Tensor]) -> list[int]:
    looks, addresses = looks_and_addresses([*kept])
    if looks != form.looks and described(kept) != form.described:
        raise RuntimeError("a hook on saved tensors gave back tensors of other shapes")
    return addresses


def _gradients(
    ctx: Any,
    grad_loss: Tensor | None,
    grad_predictions: Tensor | None,
    grad_fast: Sequence[Tensor | None] | None,
) -> list[Tensor | None]:
    """One gradient a tensor, None where none is needed."""
    form, needs = ctx.form, ctx.needs_input_grad[3:]
    kept = ctx.saved_tensors  # all are looked at for changes in place
    program, n, n_rates = form.program, len(form.program.names), len(form.rated)
    fast = [] if grad_fast is None else _by_parameter(program, grad_fast)
    grad_loss, at_loss = _read(grad_loss)
    grad_predictions, at_predictions = _read(grad_predictions)
    out = [torch.empty_like(t) if need else None for t, need in zip(kept, needs, strict=False)]
    of_rates = _rate_buffers(form, kept[0]) if n_rates and any(needs[n : n + n_rates]) else ()
    written = _addresses(out)
    program.kernels.backward(
        form.native, kept[0], _kept_addresses(form, kept), ctx.record,
        at_loss, at_predictions, _addresses(fast), written[:n], _addresses(of_rates),
        written[n + n_rates], written[-1] if form.predictions else 0,
    )  # fmt: skip
    for position, p in enumerate(form.rated, start=n):
        if needs[position]:
            gradient = of_rates[p]
            assert gradient is not None
            out[position] = gradient.sum_to_size(form.rate_shapes[position - n])
    return out


def _by_parameter(program: _Program, grad_fast: Sequence[Tensor | None]) -> list[Tensor | None]:
    given = iter(grad_fast)
    by_parameter = (next(given) if adapts else None for adapts in program.adapts)
    return [None if gradient is None else _plain(gradient) for gradient in by_parameter]


def _rate_buffers(form: _Form, like: Tensor) -> list[Tensor | None]:
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
    gradient = _plain(gradient)
    return gradient, gradient.data_ptr()


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
