"""What a network makes of samples, on the native kernels: one forward, without an inner loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from fastmeta.backends import cpu, requested_backend
from fastmeta.backends.operation import nobody_sees_values
from fastmeta.functional.eager import apply_to_plain, runs_eagerly
from fastmeta.inner_loop.arithmetic.headed import Headed
from fastmeta.inner_loop.engines.forms import Form, prepare
from fastmeta.inner_loop.engines.networks import Network, native_network, unlike_others
from fastmeta.inner_loop.engines.resident_autograd import keep_tensors, run_backward
from fastmeta.inner_loop.engines.resident_runs import by_tensor
from fastmeta.inner_loop.loop import InnerLoop, refuse_batched, refuse_graph
from fastmeta.inner_loop.reading.own_norms import Learning
from fastmeta.inner_loop.reading.stages import Stages

__all__ = ["Features", "convolutional", "stages_in", "unfit_inputs"]

_transform_level = torch._C._functorch.maybe_current_level
_is_batched = torch._C._functorch.is_batchedtensor
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor


@dataclass(frozen=True)
class Features:
    """A network that the kernels run on the samples of T tasks, each with statistics of its own.

    Attributes:
        loop: without steps.
        network: what its module is for samples of one shape.
        trial: the loop of a module that may be run on trial, where what becomes of samples may
            depend on how many they are.
        again: (parameters by name, samples [T, n, ...]) -> the same by PyTorch, for derivatives of
            gradients, or RuntimeError where the module is no longer what it was; None: there are no
            such derivatives.
        learning: norms that keep running statistics, which a run updates; of one task.
        engine: what errors call this.
    """

    loop: InnerLoop
    network: Network
    trial: InnerLoop | None
    again: Callable[[Mapping[str, Tensor], Tensor], Tensor] | None = None
    learning: tuple[Learning, ...] = ()
    engine: str = "resident"

    def unfit(self, parameters: Mapping[str, Tensor], x: Tensor) -> str | None:
        """None if this can run, else the reason; x: [T, n, ...]."""
        shapes, n = self.loop.shapes, x.shape[1]
        for name, p in parameters.items():
            if p.dtype is not x.dtype or p.device != x.device or p.shape != shapes[name]:
                return f"parameter {name!r} is of another dtype, device or shape than it was"
            if type(p) not in (Tensor, nn.Parameter):
                return f"parameter {name!r} is a {type(p).__name__}"
        if n < self.network.fewest or any([n * own.pixels < 2 for own in self.learning]):
            return "of so few samples a norm has no statistics"
        if not all([own.fits(x.dtype, self._channels(own)) for own in self.learning]):
            return "running statistics are not one number a channel, of the inputs' dtype"
        if self.trial is None:
            return None
        return unlike_others(self.trial, self.network, x.shape[2:], [n])

    def __call__(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Features [T, n, ...] of samples [T, n, ...], differentiable as often as `again` is.

        Args:
            parameters: by name, [*shape] or, of each task, [T, *shape].

        Raises:
            UnknownTensors: a buffer that the network reads is of another kind than before.
        """
        alone = self._takes_lone_samples() and _are_shared(parameters, self.loop)
        if x.shape[1] > 1 and alone and not _builds_graph(parameters, x):
            # As tasks of their own samples stay in the cache from layer to layer: 800 of Conv4-64
            # at 28 x 28 take 60 ms, together 79; 96 at 84 x 84 66, together 77.
            each = self(parameters, x.flatten(0, 1).unsqueeze(1))
            return each.squeeze(1).unflatten(0, x.shape[:2])
        # The kernels judge predictions by targets; these cost nothing: nobody asks for the loss.
        labels = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
        few = slice(0, self.network.fewest)
        support, every = (x[:, few], labels[:, few], None), (x, labels, None)
        form, addresses, tensors, constants = prepare(self.loop, parameters, 0.0, support, every)
        if torch.is_grad_enabled() and any([tensor.requires_grad for tensor in tensors]):
            call = _Call(form, self, x.shape)
            return apply_to_plain(_Features, call, addresses, constants, *tensors)
        return self.run(form, addresses, tensors[-1], keep=False)[1]

    def _takes_lone_samples(self) -> bool:
        """Whether each sample goes through by itself, whatever the others are."""
        if not isinstance(self.network, Stages) or self.network.fewest > 1:
            return False
        return all([stage["norm"] != "batch" for stage in self.network.stages])

    def run(
        self, form: Form, addresses: list[int], like: Tensor, keep: bool
    ) -> tuple[Any, Tensor]:
        """(record, features)"""
        assert form.predictions is not None
        features = form.program.kernels.empty(form.predictions, like)
        moments = self._room_for_moments(like)
        record = form.program.kernels.forward(
            form.native, like, addresses, keep, features.data_ptr(), 0, (),
            [0 if room is None else room.data_ptr() for room in moments],
        )  # fmt: skip
        for own in self.learning:
            own.learn(moments[own.stage], samples=form.predictions[1])
        return record, features

    def _channels(self, own: Learning) -> int:
        return int(stages_in(self.network).stages[own.stage]["c"])

    def _room_for_moments(self, like: Tensor) -> list[Any]:
        """For mean and variance, by stage; nothing where no norm learns them."""
        if not self.learning:
            return []
        stages = stages_in(self.network).stages
        learn = {own.stage for own in self.learning}
        return [like.new_empty(2, s["c"]) if at in learn else None for at, s in enumerate(stages)]


def _are_shared(parameters: Mapping[str, Tensor], loop: InnerLoop) -> bool:
    return all([p.dim() == len(loop.shapes[name]) for name, p in parameters.items()])


def _builds_graph(parameters: Mapping[str, Tensor], x: Tensor) -> bool:
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or any([p.requires_grad for p in parameters.values()])


def unfit_inputs(x: Tensor) -> str | None:
    """What of samples [n, ...] or [T, n, ...] keeps them from the kernels, whatever the network."""
    if requested_backend() not in (None, "cpu"):
        return f'the backend "{requested_backend()}" is in force'
    if type(x) is not Tensor:
        return f"samples are a {type(x).__name__}"
    if _transform_level() is not None or forward_ad._current_level >= 0 or nobody_sees_values():
        return "a transform of PyTorch's takes the forward apart"
    if torch.jit.is_tracing():
        return "torch.jit traces it"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    return cpu.refusal(x)


def convolutional(loop: InnerLoop, sample: torch.Size) -> Stages | Headed | str:
    """A module as the kernels know it, or why they do not or are no faster than PyTorch's own."""
    network = native_network(loop, sample)
    if isinstance(network, str):
        return network
    if isinstance(network, (Stages, Headed)):
        stages = stages_in(network).stages
        if any(stage["product"] != "none" and stage["h"] * stage["w"] > 1 for stage in stages):
            return network
    return "without convolutions PyTorch's products are as fast"


def stages_in(network: Network) -> Stages:
    """The stages of one that has some."""
    assert isinstance(network, (Stages, Headed))
    return network.below if isinstance(network, Headed) else network


# ---- autograd ----------------------------------------------------------------------------------


class _Call(NamedTuple):
    form: Form
    features: Features
    shape: torch.Size  # of the samples


class _Features(torch.autograd.Function):
    """(parameters, each task's first samples, all samples) -> features."""

    @staticmethod
    def forward(
        ctx: Any, call: _Call, addresses: list[int], constants: list[Tensor], *tensors: Tensor
    ) -> Tensor:
        keep_tensors(ctx, call.form, tensors, constants)
        ctx.call = call
        ctx.record, features = call.features.run(call.form, addresses, tensors[-1], keep=True)
        return features

    @staticmethod
    @runs_eagerly
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        transformed = _is_batched(grad) or _is_legacy_batched(grad)
        if torch.is_grad_enabled() or transformed or forward_ad._current_level >= 0:
            return None, None, None, *_by_autograd(ctx, grad)
        gradients = run_backward(ctx, ctx.saved_tensors, None, grad, None)
        return None, None, None, *by_tensor(ctx.form, gradients)


def _by_autograd(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """The gradients through PyTorch's own forward, which autograd differentiates once more."""
    form, features, shape = ctx.call
    if features.again is None:
        refuse_graph(features.engine)
        refuse_batched(features.engine, grad)
    names, needs = form.program.names, ctx.needs_input_grad[3:]
    tensors = ctx.saved_tensors[: len(needs)]
    wanted = [tensor for tensor, need in zip(tensors, needs, strict=True) if need]
    graph = torch.is_grad_enabled()
    with torch.autocast("cpu", enabled=False):  # as in the forward that ran
        with torch.enable_grad():
            parameters = dict(zip(names, tensors, strict=False))
            made = features.again(parameters, tensors[-1].view(shape))
        found = torch.autograd.grad(made, wanted, grad, create_graph=graph, allow_unused=True)
    each = iter(found)
    return [next(each) if need else None for need in needs]
