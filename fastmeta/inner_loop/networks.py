"""Modules as the native kernels know them: chains, stages, or arithmetic on samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta.backends import cpu
from fastmeta.backends.kernels import Kernels
from fastmeta.functional.forward import in_every_place, module_lock
from fastmeta.functional.loss_programs import LossProgram
from fastmeta.inner_loop.calls import misread
from fastmeta.inner_loop.chain import Chain, chain_of
from fastmeta.inner_loop.differs import is_alike
from fastmeta.inner_loop.loop import InnerLoop, UnknownTensors
from fastmeta.inner_loop.stages import Stages, never_fits, stages_of
from fastmeta.inner_loop.written import Written, written_for_some, written_of

__all__ = [
    "Buffers", "Network", "as_native", "inputs_of", "native_network", "no_network", "shapes_of",
]  # fmt: skip

Network = Chain | Stages | Written


def native_network(loop: InnerLoop, sample: torch.Size) -> Network | str:
    """What a module is for samples of a shape, or the reason why the kernels do not know it."""
    key = ("network", sample)
    if key not in loop.memory:
        network = _network(loop.module, sample)
        reason = None if isinstance(network, str) else misread(loop.module, sample)
        if reason is None and isinstance(network, Written):
            reason = _miscomputed(network, loop, sample)
        loop.memory[key] = reason or network
    return loop.memory[key]


def _miscomputed(network: Written, loop: InnerLoop, sample: torch.Size) -> str | None:
    """A sentence if the kernels make something else of some samples than the module.

    With other parameters and buffers, too: what a gate of 0 hides may come out later. And of fewer
    samples: some of their numbers might depend on how many there are.
    """
    named = (*loop.module.named_parameters(), *loop.module.named_buffers())
    own = {name: tensor.detach() for name, tensor in named if tensor.is_floating_point()}
    others = {name: tensor + _waves(tensor) for name, tensor in own.items()}
    for tensors, samples in ((own, 5), (others, 5), (others, 2)):
        if not _computes(network, loop, (samples, *sample), tensors):
            return "of its forward as arithmetic on each sample's numbers comes something else"
    return None


def _waves(like: Tensor) -> Tensor:
    return torch.linspace(-2, 2, like.numel(), dtype=like.dtype).sin().view(like.shape)


def _computes(
    network: Written, loop: InnerLoop, shape: Sequence[int], own: Mapping[str, Tensor]
) -> bool:
    tensors = [own[name].contiguous() for name in network.names]
    like, samples = tensors[0], shape[0]
    x = 3 * _waves(like.new_empty(shape))
    kernels = cpu.kernels(str(like.dtype).removeprefix("torch."))
    zeros, rate = x.new_zeros(samples, network.outputs), x.new_zeros(1)
    call = kernels.call(
        as_native(network, replace(loop, loss="mse"), kernels), 1, 0, 1, [0] * len(tensors),
        [None] * len(tensors), True, (samples, samples), False, (False, False),
    )  # fmt: skip
    given = [t.data_ptr() for t in (*tensors, x, x, zeros, zeros, rate)]
    found = torch.empty_like(zeros)
    kernels.forward(call, x, given, False, found.data_ptr(), 0, ())
    with torch.no_grad(), module_lock:
        everywhere = in_every_place(loop.module, own)
        expected = functional_call(loop.module, everywhere, (x.clone(),), tie_weights=False)
        return is_alike(expected, found)


def _network(module: nn.Module, sample: torch.Size) -> Network | str:
    chain = chain_of(module)
    if isinstance(chain, Chain) and (chain.flattens or len(sample) == 1):
        return chain
    stages = stages_of(module, sample)
    if isinstance(stages, Stages):
        return stages
    written = written_of(module, sample)
    if isinstance(written, Written):
        return written
    return f"{stages}. As arithmetic on each sample's numbers it is not read either: {written}"


def no_network(module: nn.Module, chain: Chain | str) -> str | None:
    """Why a module, which may be a chain, is no network for any samples, or None."""
    if isinstance(chain, Chain):
        return None
    layer = never_fits(module)
    return None if layer is None or written_for_some(module) else layer


class Buffers:
    """Those of a module that a network reads, as they are now.

    Raises:
        UnknownTensors: one of the module's buffers has another shape or dtype, or is the same as
            another one or no longer so.
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        self._places = {
            f"{prefix}.{key}" if prefix else key: (owner._buffers, key)
            for prefix, owner in module.named_modules() for key in owner._buffers
        }  # fmt: skip
        self._names = names
        self._looks = self._look()

    def now(self) -> dict[str, Tensor]:
        if self._look() != self._looks:
            raise UnknownTensors("a buffer of the module is of another kind than before")
        return {name: own[key] for name in self._names for own, key in [self._places[name]]}

    def _look(self) -> list[Any]:
        first: dict[int, int] = {}
        found = (own.get(key) for own, key in self._places.values())
        return [
            None if b is None else (b.shape, b.dtype, first.setdefault(id(b), i))
            for i, b in enumerate(found)
        ]


def inputs_of(network: Network, sample: torch.Size) -> int:
    """Numbers of a sample."""
    return network.nodes[0][4] if isinstance(network, Chain) else math.prod(sample)


def shapes_of(network: Network, loop: InnerLoop) -> tuple[tuple[int, ...], ...]:
    """Of the tensors that it names."""
    buffers = {name: loop.module.get_buffer(name).shape for name in network.buffers}
    shapes = {**loop.shapes, **buffers}
    return tuple(tuple(shapes[name]) for name in network.names)


def as_native(network: Network, loop: InnerLoop, kernels: Kernels) -> Any:
    """The same for the kernels, with the loss."""
    loss = _native_loss(loop.loss)
    if isinstance(network, Written):
        sizes = [math.prod(shape) for shape in shapes_of(network, loop)]
        return kernels.chain(network.inputs, list(network.steps), sizes, loss)
    layers = network.nodes if isinstance(network, Chain) else network.stages
    return kernels.chain(list(layers), loss, len(network.names))


def _native_loss(loss: Any) -> Any:
    """A name, or a program as the CPU kernels take it."""
    if not isinstance(loss, LossProgram):
        return loss
    assert cpu.native is not None
    return cpu.native.Loss(loss.predictions, loss.targets, loss.adds, loss.steps)
