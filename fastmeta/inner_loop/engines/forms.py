"""What a resident call needs beyond values, found once for tensors that look alike."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.backends import cpu, cuda
from fastmeta.backends.kernels import Kernels
from fastmeta.backends.looks import described, looks_and_addresses
from fastmeta.functional.habit import Habit
from fastmeta.functional.loss_programs import LossProgram, takes_labels, with_totals
from fastmeta.inner_loop.engines.networks import (
    Buffers,
    as_native,
    has_buffers,
    inputs_of,
    native_network,
    output_of,
    shapes_of,
    targets_of,
    unlike_others,
)
from fastmeta.inner_loop.loop import InnerLoop, Rates, UnknownTensors

__all__ = ["BACKENDS", "KERNELS", "Form", "Program", "Samples", "plain", "prepare"]

Samples = tuple[Tensor, Tensor, Tensor | None]  # x, y, weight

KERNELS = {torch.float32: "float32", torch.float64: "float64"}
BACKENDS = {"cpu": cpu, "cuda": cuda}  # by type of device


class Program(NamedTuple):
    """What depends on the inner loop, the dtype, the device and the shape of a sample."""

    kernels: Kernels
    chain: Any  # native
    steps: int
    order: int
    names: tuple[str, ...]
    adapted: tuple[str, ...]  # in the order of `names`
    buffers: Buffers | None  # of `names`, those that are no parameters
    shapes: tuple[tuple[int, ...], ...]
    adapts: tuple[bool, ...]
    rated: tuple[int, ...]  # the indices of those that adapt
    inputs: int
    fewest: int
    output: tuple[int, ...]  # the shape of a sample's predictions
    targets: int  # of a sample
    takes_labels: bool
    beside: LossProgram | None  # a loss that reads more than targets
    dtype: torch.dtype
    device: torch.device
    forms: dict[Any, Form]  # by `_key`
    rates: dict[float, Tensor]  # on a CPU, the latest rate that was a number
    habit: Habit  # of backwards whose gradients of the losses are all alike


class Form(NamedTuple):
    """What depends on shapes as well: found once, for all calls on tensors that look alike.

    A call's tensors are one flat list. First those that may require grad: a parameter a name, a
    rate an adapted name (none where one number is the rate), support_x and, with a query, query_x.
    Then the constants: support_y and its weight, query_y and its weight, as far as there are any,
    and the one rate where it is a number.
    """

    program: Program
    looks: Hashable  # of the tensors
    described: Hashable  # the same, whatever their types
    native: Any
    rated: Sequence[int]  # the indices of the parameters that have a tensor of rates
    rate_shapes: tuple[tuple[int, ...], ...]  # of those tensors
    tasks: int
    predictions: tuple[int, ...] | None  # their shape


_most_forms = 256  # of one program; ragged batches have ever new ones
_LATEST = "resident: the latest program"  # in the memory of an inner loop


def _program(loop: InnerLoop, x: Tensor) -> Program:
    key = ("resident", x.dtype, x.device, x.shape[2:])
    program = loop.memory.get(key)
    if program is None:
        program = loop.memory[key] = _new_program(loop, x.dtype, x.device, x.shape[2:])
    return program


def _new_program(
    loop: InnerLoop, dtype: torch.dtype, device: torch.device, sample: torch.Size
) -> Program:
    if dtype not in KERNELS:
        raise TypeError(f"the native kernels are float32 and float64, and support_x is {dtype}")
    network = native_network(loop, sample)
    if isinstance(network, str):
        raise ValueError(network)
    if device.type not in BACKENDS:
        raise TypeError(f"the native kernels are for {' and '.join(BACKENDS)}, not {device}")
    kernels = BACKENDS[device.type].kernels(KERNELS[dtype])
    adapts = tuple(name in loop.adapted for name in network.names)
    beside = loop.loss if isinstance(loop.loss, LossProgram) else None
    if beside is not None and not beside.beside_targets:
        beside = None
    return Program(
        kernels=kernels,
        chain=as_native(network, loop, kernels),
        steps=loop.steps,
        order=loop.order,
        names=network.names,
        adapted=tuple(name for name in network.names if name in loop.adapted),
        buffers=Buffers(loop.module, network) if has_buffers(network) else None,
        shapes=shapes_of(network, loop),
        adapts=adapts,
        rated=tuple(p for p, adapts_too in enumerate(adapts) if adapts_too),
        inputs=inputs_of(network, sample),
        fewest=network.fewest,
        output=output_of(network),
        targets=targets_of(loop.loss, output_of(network)),
        takes_labels=takes_labels(loop.loss) and beside is None,
        beside=beside,
        dtype=dtype,
        device=device,
        forms={},
        rates={},
        habit=Habit(at_first=True),
    )


def _new_form(
    program: Program,
    looks: Hashable,
    tensors: Sequence[Tensor],
    support: Samples,
    query: Samples | None,
    one_rate: bool,
) -> Form:
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
    predictions = None if query is None else (*query[0].shape[:2], *program.output)
    rate_shapes = tuple(tuple(rate.shape) for rate in tensors[n : n + len(rated)])
    return Form(
        program, looks, described(tensors), native, rated, rate_shapes, x.shape[0], predictions
    )


def _task_stride(parameter: Tensor, shape: tuple[int, ...]) -> int:
    """From one task's to the next one's, 0 where they share it; the tensor is contiguous."""
    return math.prod(shape) if parameter.dim() > len(shape) else 0


def _check_inputs(
    program: Program, parameters_and_rates: Sequence[Tensor], inputs: Sequence[Tensor]
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


def _check_samples(program: Program, kind: str, samples: Samples, tasks: int) -> None:
    dtype, (x, y, weight) = program.dtype, samples
    rows = x.shape[:2]
    if x.dim() != 3 or x.shape[2] != program.inputs or x.shape[0] != tasks or 0 in rows:
        raise ValueError(f"{kind}_x is {list(x.shape)}, for {program.inputs} inputs")
    if x.shape[1] < program.fewest:
        raise ValueError(
            f"{kind}_x {list(x.shape)} has one sample a task: the module needs two or more"
        )
    wanted = torch.int64 if program.takes_labels else dtype
    fits = y.dtype is wanted and y.shape[:2] == rows and y[0, 0].numel() == program.targets
    if not fits or y.device != program.device:
        raise TypeError(
            f"{kind}_y is {y.dtype} {list(y.shape)}, for {kind}_x of {dtype} {list(x.shape)} "
            f"and outputs {list(program.output)} of a sample"
        )
    if weight is not None and (
        weight.dtype is not dtype or weight.shape != rows or weight.device != program.device
    ):
        raise TypeError(
            f"{kind}_weight is {weight.dtype} {list(weight.shape)}, for {kind}_x of {dtype} "
            f"{list(x.shape)}"
        )


# ---- one call ----------------------------------------------------------------------------------
# Rates are asked whether they are a number: to ask for a Mapping takes ten times as long.


def prepare(
    loop: InnerLoop,
    parameters: Mapping[str, Tensor],
    rates: Rates,
    support: Samples,
    query: Samples | None,
) -> tuple[Form, list[int], list[Tensor], list[Tensor]]:
    """The form, all addresses, the tensors that may require grad, and the constants."""
    program = loop.memory.get(_LATEST) or _program(loop, support[0])
    if program.beside is not None:
        support, query = _beside(program.beside, support), query and _beside(program.beside, query)
    if program.buffers is not None:
        parameters = {**parameters, **program.buffers.now()}
    tensors, constants, looks, addresses = _gather(program, parameters, rates, support, query)
    form = program.forms.get(_key(looks, rates, support, query))
    if form is None:
        return _prepare_new(loop, parameters, rates, support, query)
    return form, addresses, tensors, constants


def _beside(loss: LossProgram, samples: Samples) -> Samples:
    x, y, weight = samples
    return x, with_totals(loss, plain(y), weight, x.dtype), None


def _prepare_new(
    loop: InnerLoop,
    parameters: Mapping[str, Tensor],
    rates: Rates,
    support: Samples,
    query: Samples | None,
) -> tuple[Form, list[int], list[Tensor], list[Tensor]]:
    """`_prepare` for tensors as they come: of another program, not contiguous, or never seen."""
    program = loop.memory[_LATEST] = _program(loop, support[0])
    if program.buffers is not None:
        parameters = {**parameters, **program.buffers.now()}
    parameters = {name: plain(parameters[name]) for name in program.names}
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
        _check_counts(loop, support, query)
        one_rate = not isinstance(rates, Mapping)
        everything = tensors + constants
        form = _new_form(program, looks, everything, dense_support, dense_query, one_rate)
        if len(program.forms) >= _most_forms:
            program.forms.clear()
        program.forms[key] = form
    return form, addresses, tensors, constants


def _check_counts(loop: InnerLoop, support: Samples, query: Samples | None) -> None:
    sample = support[0].shape[2:]
    counts = [x[0].shape[1] for x in (support, query) if x is not None]
    network = native_network(loop, sample)
    if not isinstance(network, str) and (unlike := unlike_others(loop, network, sample, counts)):
        raise UnknownTensors(unlike)


def _gather(
    program: Program,
    parameters: Mapping[str, Tensor],
    rates: Rates,
    support: Samples,
    query: Samples | None,
) -> tuple[list[Tensor], list[Tensor], Hashable, list[int]]:
    """The tensors that may require grad, the constants, what all look like and where they are."""
    tensors = _variables(program, parameters, rates, support, query)
    constants = _constants(program, rates, support, query)
    return tensors, constants, *looks_and_addresses(tensors + constants)


def _variables(
    program: Program,
    parameters: Mapping[str, Tensor],
    rates: Rates,
    support: Samples,
    query: Samples | None,
) -> list[Tensor]:
    """The tensors that may require grad, in the order that `Form` tells."""
    tensors = [parameters[name] for name in program.names]
    if not isinstance(rates, (float, int)):
        tensors += [rates[name] for name in program.adapted]
    tensors.append(support[0])
    if query is not None:
        tensors.append(query[0])
    return tensors


def _constants(
    program: Program, rates: Rates, support: Samples, query: Samples | None
) -> list[Tensor]:
    targets = support[1:] if query is None else support[1:] + query[1:]
    constants = [tensor for tensor in targets if tensor is not None]
    if isinstance(rates, (float, int)):
        rate = program.rates.get(rates)
        constants.append(_one_rate(program, rates) if rate is None else rate)
    return constants


def _key(looks: Hashable, rates: Rates, support: Samples, query: Samples | None) -> Hashable:
    """Of a form: what the tensors look like, and which there are."""
    weighted = support[2] is not None, query is not None and query[2] is not None
    return looks, weighted, query is None, isinstance(rates, (float, int))


def _dense(samples: Samples) -> Samples:
    x, y, weight = samples
    if x.dim() != 3:
        x = x.flatten(2) if x.dim() > 3 else x.unsqueeze(2)
    return plain(x), plain(y), None if weight is None else plain(weight)


def plain(tensor: Tensor) -> Tensor:
    """What native code can read: no wrapper that torch.func left, no turned sign, contiguous."""
    return torch._C._functorch.unwrap_if_dead(tensor).resolve_neg().contiguous()


def _spread(rate: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A rate [k, *s] as [k, *shape], or [k, 1...] where it is one number a step."""
    steps, own = rate.shape[0], rate.shape[1:]
    rate = plain(rate)
    if len(own) < len(shape):  # else it stays the leaf that it may be
        rate = rate.reshape(steps, *[1] * (len(shape) - len(own)), *own)
    if rate.numel() == steps or rate.shape[1:] == shape:
        return rate
    return rate.expand(steps, *shape).contiguous()


def _one_rate(program: Program, value: float) -> Tensor:
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
