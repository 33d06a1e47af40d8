"""What the steps of an inner loop read, and the loss that each goes down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.functional.losses import task_loss
from fastmeta.inner_loop.loop import InnerLoop, Rates

__all__ = ["Forward", "Inputs", "Layout", "split_parameters", "support_gradients"]


class Forward(NamedTuple):
    """How an engine runs the module.

    Attributes:
        engine: its name.
        run: (loop, parameters by name, x [T, S, ...]) -> predictions [T, S, O...], twice
            differentiable; a parameter is [T, *shape] or, shared by the tasks, [*shape].
        at_once: (loop, x [T, S, ...]) -> of how many tasks to run the inner loop together.
        gradients: (loop, theta, inputs, create_graph) -> as `support_gradients`, which without it
            asks autograd, through `run`.
    """

    engine: str
    run: Callable[[InnerLoop, Mapping[str, Tensor], Tensor], Tensor]
    at_once: Callable[[InnerLoop, Tensor], int] = lambda loop, x: len(x)
    gradients: Callable[..., Sequence[Tensor]] | None = None


def split_parameters(
    loop: InnerLoop, parameters: Mapping[str, Tensor], size: int, parts: int
) -> list[dict[str, Tensor]]:
    """Parameters by name for `size` tasks at a time; those shared by all tasks as they are."""
    split = {
        name: p.split(size) if p.dim() > len(loop.shapes.get(name, p.shape)) else (p,) * parts
        for name, p in parameters.items()
    }
    return [{name: pieces[i] for name, pieces in split.items()} for i in range(parts)]


class Inputs(NamedTuple):
    """All that the inner loop reads, [T, ...] but for `constant` ones shared by the tasks."""

    theta: dict[str, Tensor]
    constant: dict[str, Tensor]
    rates: Rates
    support: tuple[Tensor, Tensor, Tensor | None]

    def split(self, loop: InnerLoop, size: int) -> list[Inputs]:
        """The same for `size` tasks at a time."""
        x, y, weight = self.support
        xs, ys = x.split(size), y.split(size)
        weights = [None] * len(xs) if weight is None else weight.split(size)
        theta = split_parameters(loop, self.theta, size, len(xs))
        constant = split_parameters(loop, self.constant, size, len(xs))
        supports = zip(xs, ys, weights, strict=True)
        rows = zip(theta, constant, supports, strict=True)
        return [Inputs(t, c, self.rates, support) for t, c, support in rows]

    def detached(self) -> Inputs:
        """The same numbers, so that theta alone is a variable."""
        constant = {name: p.detach() for name, p in self.constant.items()}
        x, y, weight = self.support
        support = (x.detach(), y.detach(), None if weight is None else weight.detach())
        return self._replace(constant=constant, support=support)

    def flatten(self) -> tuple[Layout, list[Tensor | None]]:
        rate, rates = None, []
        if isinstance(self.rates, Mapping):
            rates = [self.rates[name] for name in self.theta]
        else:
            rate = self.rates
        layout = Layout(tuple(self.theta), tuple(self.constant), rate, torch.is_grad_enabled())
        return layout, [*self.theta.values(), *self.constant.values(), *rates, *self.support]


class Layout(NamedTuple):
    """How the flat tensors of `Inputs` are read back."""

    adapted: tuple[str, ...]
    constant: tuple[str, ...]
    rate: float | None  # None: a tensor by adapted name
    grad_mode: bool  # of the caller

    def unflatten(self, flat: Sequence[Any]) -> Inputs:
        rest = iter(flat)
        theta = {name: next(rest) for name in self.adapted}
        constant = {name: next(rest) for name in self.constant}
        rates: Any = self.rate
        if rates is None:
            rates = {name: next(rest) for name in self.adapted}
        return Inputs(theta, constant, rates, (next(rest), next(rest), next(rest)))


def support_gradients(
    forward: Forward,
    loop: InnerLoop,
    theta: Mapping[str, Tensor],
    inputs: Inputs,
    create_graph: bool,
    look: Callable[[Tensor], None] | None = None,
) -> Sequence[Tensor]:
    """Of each task's support loss at theta, [T, *shape], in the order of theta.

    look: is shown the loss that autograd differentiates, if it is that.
    """
    if forward.gradients is not None:
        return forward.gradients(loop, theta, inputs, create_graph)
    x, y, weight = inputs.support
    predictions = forward.run(loop, {**inputs.constant, **theta}, x)
    loss = task_loss(loop.loss, predictions, y, weight).sum()
    if look is not None:
        look(loss)
    return torch.autograd.grad(
        loss, list(theta.values()), create_graph=create_graph, materialize_grads=True
    )
