"""The inner loop and its exact meta-gradient, one step's autograd at a time.

What the engines that run PyTorch operations have in common: they differ in how a module's forward
is computed for all tasks at once. Between the steps nothing is kept but theta_k, or the graphs of
the last steps while they are small (`kept`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastmeta.functional.eager import runs_eagerly
from fastmeta.functional.losses import task_loss
from fastmeta.inner_loop.buffers import BuffersAsTheyAre
from fastmeta.inner_loop.kept import descend_keeping, is_underived, steps_to_keep
from fastmeta.inner_loop.loop import InnerLoop, Rates, UnknownTensors, refuse_batched, refuse_graph
from fastmeta.inner_loop.memory import telling_how_to_shrink
from fastmeta.inner_loop.probe import leaves_of_graph, uses_others
from fastmeta.inner_loop.replay import Replay
from fastmeta.inner_loop.steps import Forward, Inputs, Layout, support_gradients
from fastmeta.inner_loop.updates import (
    room_for_path,
    scaled,
    stepped,
    subtract,
    sum_over_weights,
)
from fastmeta.tasks import TaskBatch

__all__ = ["adapt", "meta_loss", "unknown_tensors"]


def unknown_tensors(
    loop: InnerLoop, tasks: TaskBatch | None, parameters: Mapping[str, Tensor]
) -> str | None:
    """Why the meta-gradient would not be whole, or None."""
    through_steps = loop.steps > 0 and loop.order == 2
    if tasks is not None and through_steps and uses_others(loop, parameters, tasks):
        return _UNKNOWN
    return None


_WAY_OUT = 'with fastmeta.use_backend("reference")'
_UNKNOWN = (
    "the module or the loss uses tensors that require grad and are not the module's parameters, "
    "so the engine does not know of them"
)


def adapt(
    forward: Forward,
    loop: InnerLoop,
    parameters: Mapping[str, Tensor],
    rates: Rates,
    tasks: TaskBatch,
) -> dict[str, Tensor]:
    """Every parameter by name; those that adapt [T, *shape], the others as given."""
    fast = _adapted(forward, loop, parameters, rates, tasks)
    if loop.steps > 0:
        return fast
    # What is handed out is no view of the model's own.
    return {name: p.clone() if name in loop.adapted else p for name, p in fast.items()}


def _adapted(
    forward: Forward,
    loop: InnerLoop,
    parameters: Mapping[str, Tensor],
    rates: Rates,
    tasks: TaskBatch,
) -> dict[str, Tensor]:
    """`adapt`, but that without steps the parameters themselves are expanded."""
    constant = {name: p for name, p in parameters.items() if name not in loop.adapted}
    theta = {name: parameters[name].expand(len(tasks), *loop.shapes[name]) for name in loop.adapted}
    if loop.steps > 0:
        support = (tasks.support_x, tasks.support_y, tasks.support_weight)
        inputs = Inputs(theta, constant, rates, support)
        keep = steps_to_keep(forward, loop, inputs)
        at_once = forward.at_once(loop, tasks.support_x)
        parts = [inputs] if at_once >= len(tasks) else inputs.split(loop, at_once)
        theta = _joined([_descend(forward, loop, part, keep) for part in parts])
    return {**parameters, **theta}


def _descend(forward: Forward, loop: InnerLoop, inputs: Inputs, keep: int) -> dict[str, Tensor]:
    """theta_K; only the last `keep` steps are not computed again in the backward."""
    again = loop.steps - keep
    if again:
        layout, tensors = inputs.flatten()
        theta = _Descent.apply(forward, loop, again, layout, *tensors)
        inputs = inputs._replace(theta=dict(zip(loop.adapted, theta, strict=True)))
    return descend_keeping(forward, loop, inputs, again) if keep else inputs.theta


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def meta_loss(
    forward: Forward,
    loop: InnerLoop,
    parameters: Mapping[str, Tensor],
    rates: Rates,
    tasks: TaskBatch,
) -> tuple[Tensor, Tensor]:
    """The query loss [T] and predictions [T, Q, O] of the adapted tasks."""
    fast = _adapted(forward, loop, parameters, rates, tasks)
    predictions = forward.run(loop, fast, tasks.query_x)
    return task_loss(loop.loss, predictions, tasks.query_y, tasks.query_weight), predictions


class _Descent(torch.autograd.Function):
    """theta_{k+1} = theta_k - alpha_k g_k, and in the backward, from lambda_K:

    lambda_k = lambda_{k+1} - H_k (alpha_k lambda_{k+1})
    d/d alpha_k = - lambda_{k+1} g_k
    d/dz = - sum_k (d g_k / dz) (alpha_k lambda_{k+1})     for every other input z
    """

    @staticmethod
    def forward(
        ctx: Any,
        forward: Forward,
        loop: InnerLoop,
        steps: int,  # the first ones of the loop
        layout: Layout,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        inputs = layout.unflatten(tensors)
        theta, wants_gradient = inputs.theta, layout.grad_mode and loop.order == 2
        room = room_for_path(theta, steps)
        path: list[Tensor] = []
        ctx.replays = []
        for step in range(steps):
            replay = Replay(loop, inputs.support[0].device)
            ctx.replays.append(replay)
            with replay.precision():
                _, gradient = _support_gradient(
                    forward, loop, theta, inputs.detached(), create_graph=False,
                    whole=wants_gradient and step == 0,
                )  # fmt: skip
            path += theta.values() if step else ()
            theta = stepped(theta, gradient, inputs.rates, step, room[step])
        ctx.forward, ctx.loop, ctx.layout, ctx.n_inputs = forward, loop, layout, len(tensors)
        ctx.buffers = BuffersAsTheyAre(loop.module)
        ctx.save_for_backward(*tensors, *path)
        ctx.set_materialize_grads(False)
        return tuple(theta.values())

    @staticmethod
    @runs_eagerly
    def backward(ctx: Any, *outer_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_graph(ctx.forward.engine)
        refuse_batched(ctx.forward.engine, *outer_gradient)
        loop = ctx.loop
        if ctx.forward.gradients is None:  # else they are among the tensors
            ctx.buffers.check()
        kept = ctx.saved_tensors  # asked for once: hooks may compute them again, or refuse to
        tensors, path = kept[: ctx.n_inputs], kept[ctx.n_inputs :]
        inputs = ctx.layout.unflatten(tensors)
        needs = ctx.layout.unflatten(ctx.needs_input_grad[4:])
        adjoint = _Adjoint(ctx.forward, loop, inputs, needs, outer_gradient)
        with telling_how_to_shrink(loop, inputs.support[0]):
            for step in reversed(range(len(ctx.replays))):
                at = (step - 1) * len(loop.adapted)
                points = path[at : at + len(loop.adapted)] if step else inputs.theta.values()
                with ctx.replays[step].again():
                    adjoint.step_back(step, dict(zip(loop.adapted, points, strict=True)))
        return None, None, None, None, *adjoint.gradients()


class _Adjoint:
    """lambda_{k+1} and the gradients gathered so far, on the way from step K back to 0."""

    def __init__(
        self,
        forward: Forward,
        loop: InnerLoop,
        inputs: Inputs,
        needs: Any,  # as `inputs`, with whether each needs a gradient
        outer_gradient: Sequence[Tensor | None],
    ) -> None:
        self.forward, self.loop, self.inputs, self.needs = forward, loop, inputs, needs
        self.lambdas = {
            name: torch.zeros_like(p) if gradient is None else gradient
            for (name, p), gradient in zip(inputs.theta.items(), outer_gradient, strict=True)
        }
        self.of_rates: dict[str, Tensor] = {}
        if isinstance(inputs.rates, Mapping):
            wanted = [name for name in loop.adapted if needs.rates[name]]
            self.of_rates = {name: torch.zeros_like(inputs.rates[name]) for name in wanted}
        constants = _wanted(inputs.constant, needs.constant)
        support = _wanted(dict(enumerate(inputs.support)), dict(enumerate(needs.support)))
        self.others: dict[Any, Tensor] = {**constants, **support} if loop.order == 2 else {}
        self.of_others = {key: torch.zeros_like(z) for key, z in self.others.items()}

    def step_back(self, step: int, theta: dict[str, Tensor]) -> None:
        """From lambda_{k+1} to lambda_k, with k = `step`."""
        if self.loop.order == 1 and not self.of_rates:
            return
        others = {key: z.detach().requires_grad_() for key, z in self.others.items()}
        inputs = self._with(others)
        leaves, gradient = _support_gradient(
            self.forward, self.loop, theta, inputs, create_graph=self.loop.order == 2
        )
        self._add_to_rates(step, gradient)
        if self.loop.order == 2:
            direction = scaled(self.lambdas, self.inputs.rates, step)
            self._add_curvature(gradient, direction, leaves, others)

    def gradients(self) -> list[Tensor | None]:
        """In the order of the flat inputs; None for what needs none."""
        names, constant = self.loop.adapted, self.inputs.constant
        by_name = isinstance(self.inputs.rates, Mapping)
        return [
            *(self.lambdas[name] for name in names),
            *(self.of_others.get(name) for name in constant),
            *(self.of_rates.get(name) for name in names if by_name),
            *(self.of_others.get(position) for position in range(3)),
        ]

    def _with(self, others: dict[Any, Tensor]) -> Inputs:
        constant = {name: others.get(name, p) for name, p in self.inputs.constant.items()}
        x, y, weight = self.inputs.support
        support = (others.get(0, x), others.get(1, y), others.get(2, weight))
        return self.inputs._replace(constant=constant, support=support)

    def _add_to_rates(self, step: int, gradient: dict[str, Tensor]) -> None:
        for name, total in self.of_rates.items():
            row = total[step if len(total) > 1 else 0]
            of_tasks = self.lambdas[name] * gradient[name].detach()
            row -= sum_over_weights(of_tasks.sum(0, keepdim=True), (1, *row.shape))[0]

    def _add_curvature(
        self,
        gradient: dict[str, Tensor],
        direction: dict[str, Tensor],
        leaves: dict[str, Tensor],
        others: dict[Any, Tensor],
    ) -> None:
        curved = [name for name in self.loop.adapted if gradient[name].requires_grad]
        if not curved:  # a loss linear in theta has no curvature
            return
        with _telling_of_first_order():
            products = torch.autograd.grad(
                [gradient[name] for name in curved],
                [*leaves.values(), *others.values()],
                grad_outputs=[direction[name] for name in curved],
                materialize_grads=True,
            )
        self.lambdas = subtract(self.lambdas, list(products[: len(leaves)]))
        for key, product in zip(others, products[len(leaves) :], strict=True):
            self.of_others[key] -= product


def _support_gradient(
    forward: Forward,
    loop: InnerLoop,
    theta: Mapping[str, Tensor],
    inputs: Inputs,
    create_graph: bool,
    whole: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """theta as leaves, and the gradient [T, *shape] of each task's support loss there.

    Raises:
        UnknownTensors: `whole`, and the loss depends on variables other than theta.
    """
    with torch.enable_grad():
        leaves = {name: p.detach().requires_grad_() for name, p in theta.items()}
        look = partial(_refuse_others, leaves) if whole else None
        found = support_gradients(forward, loop, leaves, inputs, create_graph, look)
    return leaves, dict(zip(leaves, found, strict=True))


def _refuse_others(leaves: Mapping[str, Tensor], loss: Tensor) -> None:
    if {*map(id, leaves_of_graph(loss))} - {*map(id, leaves.values())}:
        raise UnknownTensors(f"{_UNKNOWN}. The way out: {_WAY_OUT}")


@contextmanager
def _telling_of_first_order() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not is_underived(error):
            raise
        hints = [hint for part, hint in _HINTS.items() if part in str(error)]
        raise NotImplementedError(
            f"{str(error).rstrip('.')}. The exact meta-gradient (order=2) needs this derivative of "
            "an operation of the module or the loss. order=1 does without it, and so "
            f"{hints[0] if hints else 'may other operations for the same'}"
        ) from error


_HINTS = {  # by part of the operation's name
    "embedding_bag": "do nn.Embedding and a mean for nn.EmbeddingBag",
    "cdist": "does (x[..., :, None, :] - y[..., None, :, :]).norm(dim=-1) for torch.cdist",
    "multi_margin": "does torch.relu of the margins for F.multi_margin_loss",
}


def _wanted(values: Mapping[Any, Any], needs: Mapping[Any, bool]) -> dict[Any, Tensor]:
    return {key: value for key, value in values.items() if needs[key]}
