"""The stepwise engine: weights that PyTorch makes of parameters, and one native call a step.

With w = f(theta) made in any way, of all tasks under vmap, and J its Jacobian, a step goes along
J^T dL/dw, and the recursion of the meta-gradient wants J^T d2L/dw2 J v and what autograd knows of
f. Of L the native kernels know both derivatives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.backends import requested_backend
from fastmeta.functional.eager import apply_to_plain, runs_eagerly
from fastmeta.functional.loss_programs import NO_LOSS
from fastmeta.inner_loop import recursion
from fastmeta.inner_loop.engines import resident
from fastmeta.inner_loop.engines.features import Features, convolutional
from fastmeta.inner_loop.engines.forms import Form, prepare
from fastmeta.inner_loop.engines.networks import native_network
from fastmeta.inner_loop.engines.resident_autograd import keep_tensors, run_backward
from fastmeta.inner_loop.engines.resident_runs import by_tensor, run_adapt
from fastmeta.inner_loop.loop import (
    InnerLoop,
    Rates,
    UnknownTensors,
    refuse_batched,
    refuse_graph,
)
from fastmeta.inner_loop.reading.layers import likely_samples
from fastmeta.inner_loop.reading.made import DOES_NOT_RUN, Made, made_of
from fastmeta.inner_loop.steps import Forward, Inputs
from fastmeta.tasks import TaskBatch

__all__ = ["adapt", "can_run", "meta_loss"]

# A native step of this rate goes so far that its weights are the gradient, to the last bits. Of a
# power of two no rounding knows.
_FAR = float(2**40)


def can_run(
    loop: InnerLoop, tasks: TaskBatch | None, parameters: Mapping[str, Tensor], rates: Rates
) -> str | None:
    """None, or why its weights are not made of parameters, or the kernels do not take the rest."""
    if requested_backend() is not None or any(p.device.type != "cpu" for p in parameters.values()):
        return "it runs on CPUs, where no backend is asked for"
    if not loop.steps:
        return "without steps nothing is gained"
    if tasks is None:
        return _unfit_for_any(loop, parameters)
    if not tasks.support_x.is_floating_point():
        return f"support_x is {tasks.support_x.dtype}, and the native kernels take real inputs"
    sample = tasks.support_x.shape[2:]
    halves = _halves(loop, sample)
    if isinstance(halves, str):
        return halves
    return _unfit(halves, loop, tasks, parameters) or _slow(halves, sample)


def _unfit_for_any(loop: InnerLoop, parameters: Mapping[str, Tensor]) -> str | None:
    """Why samples of the first likely shape that the module takes do not run here, or None."""
    said = "no samples were found that it takes"
    for sample in map(torch.Size, likely_samples(loop.module)):
        halves = _halves(loop, sample)
        if not isinstance(halves, str):
            return _unfit(halves, loop, None, parameters) or _slow(halves, sample)
        said = halves
        if not said.startswith(DOES_NOT_RUN):
            break
    return said


def _unfit(
    halves: _Halves, loop: InnerLoop, tasks: TaskBatch | None, parameters: Mapping[str, Tensor]
) -> str | None:
    own = {name: parameters[name].detach() for name in loop.shapes}
    with torch.no_grad():
        weights = halves.made.weights({**halves.made.buffers, **own})
    return resident.can_run(halves.step, tasks, weights, _FAR)


def _slow(halves: _Halves, sample: torch.Size) -> str | None:
    """Why a network of what is made is not faster than under vmap, or no network."""
    network = convolutional(halves.step, sample)
    return network if isinstance(network, str) else None


class _Halves(NamedTuple):
    """A module in two.

    Attributes:
        made: the two.
        step: one step of what uses the weights that are made.
        whole: the same without steps, and with a loss that nobody asks for.
    """

    made: Made
    step: InnerLoop
    whole: InnerLoop

    def features(self, sample: torch.Size) -> Features:
        network: Any = native_network(self.step, sample)
        return Features(self.whole, network, None, engine="stepwise")


def _halves(loop: InnerLoop, sample: torch.Size) -> _Halves | str:
    key = ("halves", sample)
    found = loop.memory.get(key)
    if found is None:
        found = loop.memory[key] = _found(loop, sample)
    return found


def _found(loop: InnerLoop, sample: torch.Size) -> _Halves | str:
    made = made_of(loop.module, loop.adapted, sample)
    if isinstance(made, str):
        return made
    if not made.varies:
        return "its forward reads nothing that adapts"
    step = InnerLoop(
        made.rest, loop.loss, 1, loop.order, made.varies, loop.randomness, unread=loop.unread
    )
    return _Halves(made, step, InnerLoop(made.rest, NO_LOSS, 0, 1, ()))


def _known(loop: InnerLoop, x: Tensor) -> _Halves:
    halves = _halves(loop, x.shape[2:])
    if isinstance(halves, str):
        raise RuntimeError(f"the module has changed since the engine was chosen: {halves}")
    return halves


def _forward(loop: InnerLoop, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    halves = _known(loop, x)
    return halves.features(x.shape[2:])(halves.made.weights(parameters), x)


def _gradients(
    loop: InnerLoop, theta: Mapping[str, Tensor], inputs: Inputs, create_graph: bool
) -> tuple[Tensor, ...]:
    halves = _known(loop, inputs.support[0])
    weights = halves.made.weights({**inputs.constant, **theta})
    form, addresses, tensors, constants = prepare(
        halves.step, weights, _FAR, inputs.support, None
    )
    if create_graph:
        of_weights = apply_to_plain(_Gradient, form, addresses, constants, *tensors)
    else:
        of_weights = _run(form, addresses, tensors, keep=False)[1]
    made = zip((weights[name] for name in form.program.adapted), of_weights, strict=True)
    led = [(weight, gradient) for weight, gradient in made if weight.requires_grad]  # not detached
    if not led:
        return tuple(map(torch.zeros_like, theta.values()))
    outputs, gradients = zip(*led, strict=True)
    return torch.autograd.grad(
        outputs, list(theta.values()), gradients, create_graph=create_graph, materialize_grads=True
    )


def _run(
    form: Form, addresses: list[int], tensors: Any, keep: bool
) -> tuple[Any, tuple[Tensor, ...]]:
    """A record, and the gradient of each task's loss in the weights that vary."""
    record, fast = run_adapt(form, addresses, tensors[-1], keep)
    varying = [t for t, adapts in zip(tensors, form.program.adapts, strict=False) if adapts]
    with torch.no_grad():
        torch._foreach_sub_(fast, varying)
        torch._foreach_div_(fast, -_FAR)
    return record, fast


class _Gradient(torch.autograd.Function):
    """(weights, support_x) -> the gradient of each task's loss in the weights that vary."""

    @staticmethod
    def forward(
        ctx: Any, form: Form, addresses: list[int], constants: list[Tensor], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.record, gradients = _run(form, addresses, tensors, keep=True)
        # Beside the tensors, for whoever counts what a graph keeps.
        record = torch.frombuffer(ctx.record, dtype=torch.uint8)
        keep_tensors(ctx, form, tensors, [*constants, record])
        return gradients

    @staticmethod
    @runs_eagerly
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_graph("stepwise")
        refuse_batched("stepwise", *directions)
        if all([direction is None for direction in directions]):
            return (None,) * len(ctx.needs_input_grad)
        form, (*kept, _) = ctx.form, ctx.saved_tensors
        out = by_tensor(form, run_backward(ctx, kept, None, None, directions))
        varying = [own for own, adapts in zip(out, form.program.adapts, strict=False) if adapts]
        asked = [
            (own, direction) for own, direction in zip(varying, directions, strict=True)
            if own is not None and direction is not None
        ]  # fmt: skip
        torch._foreach_sub_(*map(list, zip(*asked, strict=True)))  # now all are - far H v
        torch._foreach_div_([own for own in out if own is not None], -_FAR)
        return None, None, None, *out


_STEPWISE = Forward("stepwise", _forward, gradients=_gradients)


def adapt(
    loop: InnerLoop, parameters: Mapping[str, Tensor], rates: Rates, tasks: TaskBatch
) -> dict[str, Tensor]:
    """Every parameter by name; those that adapt [T, *shape], the others as given."""
    tensors = _with_buffers(loop, parameters, tasks)
    fast = recursion.adapt(_STEPWISE, loop, tensors, rates, tasks)
    return {name: fast[name] for name in parameters}


def meta_loss(
    loop: InnerLoop, parameters: Mapping[str, Tensor], rates: Rates, tasks: TaskBatch
) -> tuple[Tensor, Tensor]:
    """The query loss [T] and predictions [T, Q, O] of the adapted tasks."""
    tensors = _with_buffers(loop, parameters, tasks)
    return recursion.meta_loss(_STEPWISE, loop, tensors, rates, tasks)


def _with_buffers(
    loop: InnerLoop, parameters: Mapping[str, Tensor], tasks: TaskBatch
) -> dict[str, Tensor]:
    """As constants of the inner loop: a backward is of those that its forward had."""
    buffers = _known(loop, tasks.support_x).made.buffers_now(loop.module)
    if buffers is None:
        raise UnknownTensors("a buffer of the module is of another kind than before")
    return {**parameters, **buffers}
