"""Modules as the native kernels know them: chains, stages, arithmetic on samples, or both."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta.backends.kernels import Kernels
from fastmeta.functional.forward import module_lock
from fastmeta.functional.loss_programs import (
    NO_LABEL,
    NO_LOSS,
    CrossEntropyAtPlaces,
    LossProgram,
)
from fastmeta.inner_loop.arithmetic.headed import Headed, headed_for_some, headed_of
from fastmeta.inner_loop.arithmetic.written import Written, unwritten_for_any, written_of
from fastmeta.inner_loop.arithmetic.written_trial import (
    miscomputed,
    miscounted,
    misheaded,
    mispredicted,
)
from fastmeta.inner_loop.engines.reasons import neither
from fastmeta.inner_loop.loop import InnerLoop, UnknownTensors
from fastmeta.inner_loop.probe import hidden_from_saved_tensor_hooks
from fastmeta.inner_loop.reading.calls import asks_types, is_by_hand, misread
from fastmeta.inner_loop.reading.chain import Chain, chain_of
from fastmeta.inner_loop.reading.counters import counters_put_back
from fastmeta.inner_loop.reading.stages import Stages, never_fits, stages_of
from fastmeta.watching.frozen import frozen
from fastmeta.watching.weight_norm import without_made

__all__ = [
    "Buffers", "Network", "as_native", "has_buffers", "inputs_of", "native_network", "no_network",
    "output_of", "shapes_of", "targets_of", "unlike_others",
]  # fmt: skip

Network = Chain | Stages | Written | Headed


def native_network(loop: InnerLoop, sample: torch.Size) -> Network | str:
    """What a module is for samples of a shape, or the reason why the kernels do not know it."""
    key = ("network", sample)
    if key not in loop.memory:
        with module_lock, counters_put_back(loop.module), without_made(loop.module):
            network = _network(loop.module, sample, loop.steps)
        bare = not isinstance(network, str) and not network.names
        loop.memory[key] = "its forward reads no parameter" if bare else network
    return loop.memory[key]


def unlike_others(
    loop: InnerLoop, network: Network, sample: torch.Size, counts: Iterable[int]
) -> str | None:
    """A sentence if of such a number of samples something else becomes than of others."""
    if "asks types" not in loop.memory:
        loop.memory["asks types"] = asks_types(loop.module)
    if not isinstance(network, (Written, Headed)) and not loop.memory["asks types"]:
        return None
    for count in counts:
        key = ("count", sample, count)
        if key not in loop.memory:
            with module_lock, hidden_from_saved_tensor_hooks(), counters_put_back(loop.module):
                loop.memory[key] = _unlike(network, loop.module, sample, count)
        if loop.memory[key] is not None:
            return str(loop.memory[key])
    return None


def _unlike(network: Network, module: nn.Module, sample: torch.Size, count: int) -> str | None:
    if isinstance(network, (Written, Headed)):
        return miscounted(network, module, sample, count)
    return misread(module, sample, count)


def _network(module: nn.Module, sample: torch.Size, steps: int) -> Network | str:
    layers = _layers(module, sample)
    if not isinstance(layers, str) and not _faster_as_rows(layers, steps):
        return layers
    with hidden_from_saved_tensor_hooks():
        written = written_of(module, sample)
        failed = miscomputed(written, module, sample) if isinstance(written, Written) else None
    if isinstance(written, Written) and failed is None:
        return written
    if not isinstance(layers, str):
        return layers
    with hidden_from_saved_tensor_hooks():
        headed = headed_of(module, sample)
        if isinstance(headed, Headed):
            return misread(module, sample) or misheaded(headed, module, sample) or headed
    return failed or neither(module, layers, str(written), headed)


def _faster_as_rows(network: Chain | Stages, steps: int) -> bool:
    """Whether stages are better arithmetic on each sample's numbers, if they are such.

    By docs/notes/cpu-kernels.md, "Rows as stages": 0.9 to 4.4 times as fast where there are no
    pixels, but 0.6 to 0.9 times if few tasks take one step in wide layers without gates.
    """
    if not isinstance(network, Stages):
        return False
    products = [stage for stage in network.stages if stage["product"] != "none"]
    apart = all(stage["pool"] == "none" and stage["norm"] != "batch" for stage in network.stages)
    pixels = any(stage["h"] * stage["w"] > 1 for stage in products)
    widest = max((stage["c"] for stage in products), default=0)
    gated = any(stage["join"] not in ("none", "sum") for stage in network.stages)
    return apart and not pixels and (steps > 1 or gated or widest <= _NARROW)


_NARROW = 64  # at 128 outputs stages are faster with few tasks


def has_buffers(network: Network) -> bool:
    """Whether it depends on any of its module's."""
    return bool(network.buffers or (isinstance(network, (Written, Headed)) and network.tables))


def _layers(module: nn.Module, sample: torch.Size) -> Chain | Stages | str:
    chain = chain_of(module)
    fits = isinstance(chain, Chain) and (chain.flattens or len(sample) == 1)
    network = chain if fits else stages_of(module, sample)
    if isinstance(network, str) or not is_by_hand(module):
        return network
    return misread(module, sample) or mispredicted(network, module, sample) or network


def no_network(module: nn.Module, chain: Chain | str) -> str | None:
    """Why a module, which may be a chain, is no network for any samples, or None."""
    if isinstance(chain, Chain):
        return None
    layer = never_fits(module)
    written = None if layer is None else unwritten_for_any(module)
    if layer is None or written is None or headed_for_some(module):
        return None
    return neither(module, layer, written)


class Buffers:
    """Those of a module that a network reads, as they are now.

    Raises:
        UnknownTensors: one of the module's buffers has another shape or dtype, or is the same as
            another one or no longer so; or one that the network was made with has other numbers.
    """

    def __init__(self, module: nn.Module, network: Network) -> None:
        self._places = {
            f"{prefix}.{key}" if prefix else key: (owner._buffers, key)
            for prefix, owner in module.named_modules() for key in owner._buffers
        }  # fmt: skip
        self._names = network.buffers
        self._tables = network.tables if isinstance(network, (Written, Headed)) else ()
        self._looks = self._look()

    def now(self) -> dict[str, Tensor]:
        with module_lock:  # another thread may run the module with other ones in their places
            return self._now()

    def _now(self) -> dict[str, Tensor]:
        if self._look() != self._looks:
            raise UnknownTensors("a buffer of the module is of another kind than before")
        for name, before in self._tables:
            own, key = self._places[name]
            if frozen(own[key]) != before:
                raise UnknownTensors("a buffer of the module has other numbers than before")
        return {name: own[key] for name in self._names for own, key in [self._places[name]]}

    def _look(self) -> list[Any]:
        first: dict[int, int] = {}
        found = (own.get(key) for own, key in self._places.values())
        return [
            None if b is None else (b.shape, b.dtype, first.setdefault(id(b), i))
            for i, b in enumerate(found)
        ]


def output_of(network: Network) -> tuple[int, ...]:
    """The shape of what it makes of a sample."""
    return (network.outputs,) if isinstance(network, Chain) else network.shape


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
    loss = _native_loss(loop.loss, output_of(network), kernels)
    sizes = [math.prod(shape) for shape in shapes_of(network, loop)]
    if isinstance(network, Headed):
        return kernels.chain(list(network.below.stages), list(network.steps), sizes, loss)
    if isinstance(network, Written):
        return kernels.chain(network.inputs, list(network.steps), sizes, loss)
    layers = network.nodes if isinstance(network, Chain) else network.stages
    return kernels.chain(list(layers), loss, len(network.names))


def _native_loss(loss: Any, output: tuple[int, ...], kernels: Kernels) -> Any:
    """A name, or what the kernels take for labels at places or a program."""
    if isinstance(loss, LossProgram):
        return kernels.loss(loss.predictions, loss.targets, loss.adds, loss.steps)
    if isinstance(loss, CrossEntropyAtPlaces):
        return kernels.loss(
            loss.classes, loss.places, loss.ignored, loss.classes_last, loss.weights
        )
    if loss is NO_LOSS:
        return "cross_entropy"
    if loss == "cross_entropy" and len(output) > 1:
        return kernels.loss(output[0], math.prod(output[1:]), NO_LABEL, False, ())
    return loss


def targets_of(loss: Any, output: tuple[int, ...]) -> int:
    """Targets of a sample, by the shape of its predictions."""
    if isinstance(loss, LossProgram):
        return loss.targets
    if isinstance(loss, CrossEntropyAtPlaces):
        return loss.places
    if loss is NO_LOSS:
        return 1
    return math.prod(output[1:] if loss == "cross_entropy" else output)
