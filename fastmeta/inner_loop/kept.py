"""The last inner steps by plain autograd, where the graphs of them are small enough to be kept.

Their backward then computes no gradient again, which is a third of a meta-step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from fastmeta.functional.eager import Function, runs_eagerly
from fastmeta.inner_loop.loop import InnerLoop, Rates, rate_at, refuse_batched, refuse_graph
from fastmeta.inner_loop.steps import Forward, Inputs, support_gradients
from fastmeta.inner_loop.updates import sum_over_weights

__all__ = ["descend_keeping", "is_underived", "steps_to_keep"]

_MOST_BYTES = 256 << 20  # of the graphs of all steps and tasks; README.md states it


def steps_to_keep(forward: Forward, loop: InnerLoop, inputs: Inputs) -> int:
    """Of how many last steps the graphs fit; 0 too where a step is to be computed again as it was:
    under autocast and saved-tensor hooks, which see the fast weights alone.
    """
    if loop.order == 1 or not torch.is_grad_enabled() or not _is_plain(inputs):
        return 0
    size = len(inputs.support[0]) * _bytes_of_a_task(forward, loop, inputs)
    return min(loop.steps, _MOST_BYTES // max(size, 1))


def descend_keeping(
    forward: Forward, loop: InnerLoop, inputs: Inputs, first: int
) -> dict[str, Tensor]:
    """theta_K of the steps from `first` on, differentiable once through all of them."""
    theta = {name: _as_variable(p) for name, p in inputs.theta.items()}
    for step in range(first, loop.steps):
        gradients = support_gradients(forward, loop, theta, inputs, create_graph=True)
        if step == loop.steps - 1:
            _refuse_more_derivatives(forward.engine, gradients)
        theta = _stepped(theta, gradients, inputs.rates, step)
    return theta


def _is_plain(inputs: Inputs) -> bool:
    tensors = [t for t in inputs.flatten()[1] if t is not None]
    return (
        all(t.device.type == "cpu" for t in tensors)
        and any(t.requires_grad for t in tensors)
        and not torch.is_autocast_enabled("cpu")
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    )


def _bytes_of_a_task(forward: Forward, loop: InnerLoop, inputs: Inputs) -> int:
    """What the graph of one step keeps for a task, measured once for the most samples seen."""
    x = inputs.support[0]
    key = ("bytes of a step", x.shape[2:], x.dtype)
    samples, size = loop.memory.get(key, (0, 0))
    if x.shape[1] > samples:
        size = _measured(forward, loop, inputs.split(loop, _MEASURED_TASKS)[0])
        loop.memory[key] = x.shape[1], size
    return int(size)


_MEASURED_TASKS = 2  # of one task, PyTorch skips copies that it makes of several


def _measured(forward: Forward, loop: InnerLoop, inputs: Inputs) -> int:
    """The bytes for each of these tasks; more than may be kept without a second derivative."""
    leaves = {name: p.detach().requires_grad_() for name, p in inputs.theta.items()}

    def run() -> Sequence[Tensor]:
        with torch.random.fork_rng([]):
            return support_gradients(forward, loop, leaves, inputs, create_graph=True)

    measure: _Saved | _Made = _Saved(inputs)
    try:
        with measure:
            gradients = run()
    except RuntimeError as error:
        # Of torch.func, in a forward, that is not to be seen: of all that is made it is a part.
        if not any(said in str(error) for said in ("saved tensor hooks", "invalid python storage")):
            raise
        measure = _Made()
        with measure:
            gradients = run()
    if not _has_second_derivative(gradients, leaves):
        return _MOST_BYTES + 1  # the recursion says what to do
    return measure.bytes // len(inputs.support[0])


class _Saved(saved_tensors_hooks):
    """Measures what is saved for a backward, beside what was given."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(self._note, lambda tensor: tensor)
        self._given = {_address(t) for t in inputs.flatten()[1] if t is not None}
        self._sizes: dict[int, int] = {}

    def _note(self, tensor: Tensor) -> Tensor:
        if _address(tensor) not in self._given:
            self._sizes[_address(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self._sizes.values())


class _Made(TorchDispatchMode):
    """Measures all results."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            self.bytes += x.numel() * x.element_size() if isinstance(x, Tensor) else 0
        return result

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to keep the compiler out, PyTorch would import it: a second


def _has_second_derivative(gradients: Sequence[Tensor], leaves: Mapping[str, Tensor]) -> bool:
    curved = [gradient for gradient in gradients if gradient.requires_grad]
    ones = [torch.ones_like(gradient) for gradient in curved]
    try:
        torch.autograd.grad(curved, list(leaves.values()), ones, allow_unused=True)
    except RuntimeError as error:
        if not is_underived(error):
            raise
        return False
    return True


def is_underived(error: RuntimeError) -> bool:
    """Whether PyTorch says that an operation has no further derivative, as it does in two ways."""
    said = str(error)
    return "derivative for " in said and "is not implemented" in said


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _stepped(
    theta: Mapping[str, Tensor], gradients: Sequence[Tensor], rates: Rates, step: int
) -> dict[str, Tensor]:
    stepped = {}
    for (name, p), gradient in zip(theta.items(), gradients, strict=True):
        rate = rate_at(rates, name, step)
        if isinstance(rate, Tensor):
            rate = _Spread.apply(rate, p.shape)
        stepped[name] = p - rate * gradient
    return stepped


class _Spread(Function):
    """A rate for all numbers of a weight, its gradient with the same bits for any threads."""

    @staticmethod
    def forward(ctx: Any, rate: Tensor, shape: torch.Size) -> Tensor:
        ctx.shape = rate.shape
        return rate.expand(shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        of_tasks = gradient.sum(0, keepdim=True)
        return sum_over_weights(of_tasks, (1, *ctx.shape))[0], None


def _as_variable(parameter: Tensor) -> Tensor:
    return parameter if parameter.requires_grad else parameter.detach().requires_grad_()


def _refuse_more_derivatives(engine: str, gradients: Sequence[Tensor]) -> None:
    """As the recursion does, which runs where the same tasks are a few more."""
    for gradient in gradients:
        if gradient.requires_grad:
            gradient.register_hook(partial(_refuse, engine))


@runs_eagerly
def _refuse(engine: str, outer_gradient: Tensor) -> None:
    refuse_graph(engine)
    refuse_batched(engine, outer_gradient)
