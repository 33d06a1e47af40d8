"""The resident engine: the inner loop and its meta-gradient in native calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock

import torch
from torch import Tensor, nn

from fastmeta.backends import cpu, requested_backend
from fastmeta.backends.first_gradients import fresh_gradients, give_gradients
from fastmeta.functional.eager import apply_to_plain
from fastmeta.functional.loss_programs import (
    CrossEntropyAtPlaces,
    LossProgram,
    ReadLoss,
    takes_labels,
)
from fastmeta.inner_loop.arithmetic.headed import Headed
from fastmeta.inner_loop.arithmetic.written import Written
from fastmeta.inner_loop.engines.forms import BACKENDS, KERNELS, Form, prepare
from fastmeta.inner_loop.engines.networks import (
    Network,
    as_native,
    native_network,
    no_network,
    unlike_others,
)
from fastmeta.inner_loop.engines.resident_autograd import Adapt, MetaLoss
from fastmeta.inner_loop.engines.resident_runs import (
    beside_rates,
    by_tensor,
    new_gradients,
    run_adapt,
    run_meta_loss,
    run_step,
)
from fastmeta.inner_loop.loop import InnerLoop, Rates
from fastmeta.inner_loop.reading.chain import Chain, chain_of
from fastmeta.inner_loop.reading.stages import Stages
from fastmeta.tasks import TaskBatch

__all__ = ["accumulate_gradients", "adapt", "can_run", "meta_loss"]

# As in autograd, threads may add to the same gradients.
_accumulating = Lock()


def can_run(
    loop: InnerLoop, tasks: TaskBatch | None, parameters: Mapping[str, Tensor], rates: Rates
) -> str | None:
    """None if the native kernels can run this, else the reason."""
    unavailable = _unavailable(parameters)
    if unavailable is not None:
        return unavailable
    if any(torch.is_autocast_enabled(p.device.type) for p in parameters.values()):
        return "autocast is on, and the native kernels compute in the dtype of the inputs"
    if not isinstance(loop.loss, (str, ReadLoss)):
        why = f": {loop.unread}" if loop.unread else ""
        return f"the native kernels cannot read the loss{why}. {_READ_LOSSES}"
    if loop.randomness is not None:
        return "the native kernels draw no random numbers"
    if tasks is None:
        return _unfit_for_any(loop, parameters)
    if tasks.support_x.dtype not in KERNELS:
        return _unfit_inputs(loop.module, tasks.support_x)
    network = native_network(loop, tasks.support_x.shape[2:])
    if isinstance(network, str):
        return network
    return (
        _unfit_parameters(parameters)
        or _unfit_tasks(loop, tasks)
        or _unfit_samples(loop, network, tasks)
        or _unfit_network(loop, network, tasks.support_x)
    )


_READ_LOSSES = (
    "They take means and sums over samples of arithmetic on a sample's predictions, targets and "
    "weight, and on totals of targets and weights, and PyTorch's losses that are such"
)


def adapt(
    loop: InnerLoop, parameters: Mapping[str, Tensor], rates: Rates, tasks: TaskBatch
) -> dict[str, Tensor]:
    """Every parameter by name; those that adapt [T, *shape], the others as given."""
    support = (tasks.support_x, tasks.support_y, tasks.support_weight)
    form, addresses, tensors, constants = prepare(loop, parameters, rates, support, None)
    if _builds_graph(tensors):
        fast = apply_to_plain(Adapt, form, addresses, constants, *tensors)
    else:
        fast = run_adapt(form, addresses, tensors[-1], keep=False)[1]
    adapted = dict(zip(form.program.adapted, fast, strict=True))
    unused = {name: parameters[name] for name in loop.adapted if name not in adapted}
    return {**parameters, **_of_tasks(loop, unused, form.tasks), **adapted}


def _of_tasks(
    loop: InnerLoop, unused: Mapping[str, Tensor], tasks: int
) -> dict[str, Tensor]:
    """Parameters that the forward does not use, which stay where they are."""
    return {name: p.expand(tasks, *loop.shapes[name]).clone() for name, p in unused.items()}


def meta_loss(
    loop: InnerLoop, parameters: Mapping[str, Tensor], rates: Rates, tasks: TaskBatch
) -> tuple[Tensor, Tensor]:
    """The query loss [T] and predictions [T, Q, O] of the adapted tasks."""
    support = (tasks.support_x, tasks.support_y, tasks.support_weight)
    query = (tasks.query_x, tasks.query_y, tasks.query_weight)
    form, addresses, tensors, constants = prepare(loop, parameters, rates, support, query)
    if _builds_graph(tensors):
        return apply_to_plain(MetaLoss, form, addresses, constants, *tensors)
    return run_meta_loss(form, addresses, tensors[-1], keep=False)[1:]


def accumulate_gradients(
    loop: InnerLoop, parameters: Mapping[str, Tensor], rates: Rates, tasks: TaskBatch
) -> tuple[Tensor, Tensor] | None:
    """`meta_loss`, detached, with the gradients of the mean loss added to `.grad`.

    They have the bits that ``loss.mean().backward()`` gives them. None, and nothing is added, where
    only autograd does what that does.
    """
    support = (tasks.support_x, tasks.support_y, tasks.support_weight)
    query = (tasks.query_x, tasks.query_y, tasks.query_weight)
    form, addresses, tensors, _ = prepare(loop, parameters, rates, support, query)
    out = _first_gradients(form, tensors)
    if out is None:
        return None
    gradients = beside_rates(form, out)
    loss, predictions = run_step(form, addresses, tensors[-1], gradients, 1 / form.tasks)
    _accumulate(tensors, by_tensor(form, gradients))
    return loss, predictions


def _first_gradients(form: Form, tensors: list[Tensor]) -> list[Tensor | None] | None:
    """What to write gradients to, None for tensors that need none; None where autograd is needed.

    It is where an error is to be raised, or more to be done than adding a gradient to each.
    """
    if form.program.kernels.step is None or torch.is_anomaly_enabled():
        return None
    out = fresh_gradients(tensors)
    if out is None:
        learned = [tensor for tensor in tensors if tensor.requires_grad]
        if len({*map(id, learned)}) < len(learned) or any(map(_is_more_than_a_leaf, learned)):
            return None
        out = new_gradients(form, tensors, [tensor.requires_grad for tensor in tensors]).out
    of_inputs = out[-1] is not None or out[-2] is not None
    return None if of_inputs or all([gradient is None for gradient in out]) else out


def _is_more_than_a_leaf(tensor: Tensor) -> bool:
    if not tensor.is_leaf or tensor._backward_hooks or tensor._post_accumulate_grad_hooks:
        return True
    grad, dtype = tensor.grad, tensor.dtype
    if grad is not None and (grad.layout is not torch.strided or grad.dtype is not dtype):
        return True
    return getattr(tensor, "grad_dtype", dtype) is not dtype  # older PyTorch has none


def _accumulate(tensors: list[Tensor], gradients: list[Tensor | None]) -> None:
    with _accumulating:
        for leaf, gradient in give_gradients(tensors, gradients):
            if leaf.grad is None:
                leaf.grad = gradient
            else:
                with torch.no_grad():
                    leaf.grad.add_(gradient)


def _builds_graph(tensors: Sequence[Tensor]) -> bool:
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor.requires_grad:
                return True
    return False


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


def _unfit_for_any(loop: InnerLoop, parameters: Mapping[str, Tensor]) -> str | None:
    """Why the kernels can run this for no tasks at all, or None."""
    chain = chain_of(loop.module)
    unfit = no_network(loop.module, chain) or _unfit_parameters(parameters)
    if unfit is None and parameters:
        unfit = _unfit_network(loop, chain, next(iter(parameters.values())))
    return unfit


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


def _unfit_inputs(module: nn.Module, x: Tensor) -> str:
    if x.is_floating_point() or x.is_complex():
        return f"support_x is {x.dtype}; the kernels are float32 and float64"
    if any(isinstance(part, nn.Embedding) for part in module.modules()):
        return (
            f"support_x is {x.dtype}: words are read where one nn.Embedding is all that reads "
            "them, once (positions may be a buffer, not torch.arange), and they are few enough"
        )
    return (
        f"support_x is {x.dtype}, and inputs of whole numbers or truths are not read: the native "
        "kernels take real inputs, float32 and float64"
    )


def _unfit_tasks(loop: InnerLoop, tasks: TaskBatch) -> str | None:
    y = tasks.support_y
    if y.is_floating_point() == takes_labels(loop.loss):
        return f"the native {loop.loss} does not take targets of {y.dtype}"
    constants = ("support_y", "query_y", "support_weight", "query_weight")
    for name in constants:
        tensor = getattr(tasks, name)
        if tensor is not None and tensor.requires_grad:
            return f"{name} requires grad, and the native kernels take it as a constant"
    return None


def _unfit_samples(loop: InnerLoop, network: Network, tasks: TaskBatch) -> str | None:
    counts = tasks.support_x.shape[1], tasks.query_x.shape[1]
    squeezes = isinstance(network, Written) or (
        isinstance(network, (Stages, Headed)) and network.squeezes
    )
    if squeezes and min(counts) < network.fewest:
        return "its forward squeezes a dimension that lone samples would lose"
    return unlike_others(loop, network, tasks.support_x.shape[2:], counts)


def _unfit_network(loop: InnerLoop, network: Network | str, x: Tensor) -> str | None:
    """Why the kernels for the device of `x` do not take this network, though others do.

    A network that is no chain, where it is not known of which samples, is a sentence.
    """
    if BACKENDS[x.device.type] is cpu:
        return None
    if not isinstance(network, Chain):
        return "the CUDA kernels take chains of linear layers, and this is none"
    if isinstance(loop.loss, CrossEntropyAtPlaces):
        return "the CUDA kernels take no weights of classes, nor labels that are ignored"
    if isinstance(loop.loss, LossProgram) and loop.loss.beside_targets:
        return "the CUDA kernels take no loss of weights of samples, nor of totals of targets"
    key = ("unfit", x.dtype, x.device, network)
    if key not in loop.memory:
        of = BACKENDS[x.device.type].kernels(KERNELS[x.dtype])
        rates = [(0, 1) if name in loop.adapted else None for name in network.names]
        call = of.call(
            as_native(network, loop, of), 1, loop.steps, loop.order, [0] * len(network.names),
            rates, True, (1, 1), takes_labels(loop.loss), (False, False),
        )  # fmt: skip
        loop.memory[key] = of.unfit(call, x.device) or None
    return loop.memory[key]
