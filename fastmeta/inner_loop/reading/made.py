"""Weights that a forward makes of its parameters, apart from what it does with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node

from fastmeta.functional.forward import call_module, has_hooks, module_lock
from fastmeta.inner_loop.reading.calls import described
from fastmeta.inner_loop.reading.cuts import can_be_copied
from fastmeta.inner_loop.reading.differs import unlike
from fastmeta.inner_loop.reading.made_split import Maker, split_made
from fastmeta.inner_loop.reading.trace import Unknown, check_traceable, trace
from fastmeta.inner_loop.reading.unused import without_unused
from fastmeta.inner_loop.reading.watched import watched

__all__ = ["DOES_NOT_RUN", "Made", "made_of"]

DOES_NOT_RUN = "its forward does not run for some samples"


@dataclass(frozen=True)
class Made:
    """A module's forward in two: what makes tensors of parameters alone, and what uses them.

    Attributes:
        rest: of samples; what is made it has as parameters, as it has those used as they are.
        kept: the names of those.
        varies: the names of parameters of the rest that depend on one that adapts.
        makers: of what depends on those that adapt, and of what does not.
        ranks: the dimensions of the module's parameters, by name.
        held: the buffers that all these hold, and where the module has them.
    """

    rest: nn.Module
    kept: tuple[str, ...]
    varies: tuple[str, ...]
    makers: tuple[Maker, ...]
    ranks: Mapping[str, int]
    held: tuple[tuple[dict[str, Any], str, Any], ...]

    def weights(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rest's parameters by name, [T, *shape] or, shared by all tasks, [*shape].

        Args:
            parameters: of the module, alike.
        """
        weights = {name: parameters[name] for name in self.kept}
        for maker in self.makers:
            own = {name: parameters[name] for name in maker.reads}
            weights |= zip(maker.makes, self._made(maker.module, own), strict=True)
        return weights

    def is_current(self) -> bool:
        """Whether the module has the buffers that it had."""
        return all([owner.get(key) is buffer for owner, key, buffer in self.held])

    def _made(self, maker: nn.Module, own: dict[str, Tensor]) -> Sequence[Tensor]:
        of_tasks = {name: 0 if p.dim() > self.ranks[name] else None for name, p in own.items()}
        if not any(dim == 0 for dim in of_tasks.values()):
            return _call(maker, own)
        made = torch.func.vmap(lambda own: _call(maker, own), in_dims=(of_tasks,))(own)
        return [tensor.contiguous() for tensor in made]


def _call(maker: nn.Module, own: Mapping[str, Tensor]) -> Any:
    return call_module(maker, own, torch.empty(0))


def made_of(module: nn.Module, adapted: Sequence[str], sample: Sequence[int]) -> Made | str:
    """A forward in two, for samples of a shape, or a sentence why not."""
    if any(has_hooks(part) for part in module.modules()):
        return "its forward has hooks"
    if not can_be_copied(module):
        return "its parameters have several names, or such as code cannot have"
    try:
        with module_lock, watched(module, again=lambda: described(_traced(module))) as surroundings:
            check_traceable(surroundings)
            graph = _traced(module)
        if surroundings.asks_types:
            raise Unknown("its forward asks for types")
        return _split(module, graph, adapted, sample)
    except Unknown as unknown:
        return str(unknown)
    except Exception as error:  # of the user's code
        return f"{DOES_NOT_RUN}: {type(error).__name__}: {error}"


def _split(
    module: nn.Module, graph: fx.Graph, adapted: Sequence[str], sample: Sequence[int]
) -> Made:
    twin = deepcopy(module)  # a forward that is tried out may do more than compute
    x = _waves((3, *sample), module)
    rest, makers = split_made(module, graph, _values(twin, graph, x), adapted)
    made = {name: not set(adapted).isdisjoint(m.reads) for m in makers for name in m.makes}
    names = [name for name, _ in rest.named_parameters()]
    owners = [part._buffers for part in module.modules()]
    found = Made(
        rest=rest,
        kept=tuple(name for name in names if name not in made),
        varies=tuple(name for name in names if made.get(name, name in adapted)),
        makers=tuple(makers),
        ranks={name: p.dim() for name, p in module.named_parameters()},
        held=tuple((own, key, buffer) for own in owners for key, buffer in own.items()),
    )
    misses = _misses(twin, found, adapted, x)
    if misses is not None:
        raise Unknown(misses)
    return found


def _traced(module: nn.Module) -> fx.Graph:
    return without_unused(trace(module, opens_parametrizations=True), module)


def _waves(shape: Sequence[int], module: nn.Module) -> Tensor:
    like = next(module.parameters())
    count = torch.Size(shape).numel()
    return torch.linspace(-2, 2, count, dtype=like.dtype, device=like.device).sin().view(shape)


def _misses(twin: nn.Module, made: Made, adapted: Sequence[str], x: Tensor) -> str | None:
    """A sentence if the two parts make something else of some samples, or another gradient."""
    before = {name: t.clone() for name, t in (*twin.named_parameters(), *twin.named_buffers())}

    def forward(theta: Mapping[str, Tensor], x: Tensor) -> Tensor:
        own = {name: p[None] if name in adapted else p for name, p in theta.items()}
        weights = made.weights(own).items()
        return call_module(made.rest, {n: w[0] if n in made.varies else w for n, w in weights}, x)

    parameters = dict(twin.named_parameters())
    state = torch.get_rng_state()
    said = unlike(twin, forward, parameters, x, rounds=True)
    now = (*twin.named_parameters(), *twin.named_buffers())
    if not torch.equal(state, torch.get_rng_state()) or not all(
        torch.equal(before[name], tensor) for name, tensor in now
    ):
        return "what it makes of its parameters is more than computed"
    return said


class _Values(fx.Interpreter):
    """Runs a graph and notes what becomes of each node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.of: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        self.of[n.name] = value
        return value


def _values(twin: nn.Module, graph: fx.Graph, x: Tensor) -> dict[str, Any]:
    """What each node is for some samples, by its name."""
    run = _Values(fx.GraphModule(twin, graph))
    with torch.no_grad():
        run.run(x)
    return run.of
