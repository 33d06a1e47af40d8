"""Weights that a forward makes of its parameters, apart from what it does with them."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import Node

from fastmeta.functional.forward import call_module, module_lock
from fastmeta.inner_loop.reading.cuts import can_be_named, graph_of
from fastmeta.inner_loop.reading.differs import unlike
from fastmeta.inner_loop.reading.made_split import Maker, part_of, split_made
from fastmeta.inner_loop.reading.trace import Unknown
from fastmeta.watching.weight_norm import has_other_hooks, without_made

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
        buffers: those of the module that all these read, as they were.
        held: where the rest has buffers, and their names.
    """

    rest: nn.Module
    kept: tuple[str, ...]
    varies: tuple[str, ...]
    makers: tuple[Maker, ...]
    ranks: Mapping[str, int]
    buffers: Mapping[str, Tensor]
    held: tuple[tuple[dict[str, Any], str, str], ...]

    def weights(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rest's parameters by name, [T, *shape] or, shared by all tasks, [*shape].

        Args:
            tensors: the module's parameters, alike, and the `buffers`, which the rest has from now.
        """
        with module_lock:
            for owner, key, name in self.held:
                owner[key] = tensors[name]
        weights = {name: tensors[name] for name in self.kept}
        for maker in self.makers:
            own = {name: tensors[name] for name in maker.reads}
            weights |= zip(maker.makes, self._made(maker.module, own), strict=True)
        return weights

    def buffers_now(self, module: nn.Module) -> dict[str, Tensor] | None:
        """The module's, or None where one is of another kind than it was."""
        now = {name: module.get_buffer(name) for name in self.buffers}
        pairs = [(now[name], before) for name, before in self.buffers.items()]
        alike = all([b.shape == own.shape and b.dtype is own.dtype for b, own in pairs])
        return now if alike else None

    def _made(self, maker: nn.Module, own: dict[str, Tensor]) -> Sequence[Tensor]:
        ranks = self.ranks
        of_tasks = {n: 0 if n in ranks and t.dim() > ranks[n] else None for n, t in own.items()}
        if not any(dim == 0 for dim in of_tasks.values()):
            return _call(maker, own)
        made = torch.func.vmap(lambda own: _call(maker, own), in_dims=(of_tasks,))(own)
        return [tensor.contiguous() for tensor in made]


def _call(maker: nn.Module, own: Mapping[str, Tensor]) -> Any:
    return call_module(maker, own, torch.empty(0))


def made_of(module: nn.Module, adapted: Sequence[str], sample: Sequence[int]) -> Made | str:
    """A forward in two, for samples of a shape, or a sentence why not."""
    if any(has_other_hooks(part) for part in module.modules()):
        return "it has hooks, which would not be called"
    if not can_be_named(module):
        return "its parts have names that code cannot have"
    with module_lock, without_made(module):
        return _made_of(module, adapted, sample)


def _made_of(module: nn.Module, adapted: Sequence[str], sample: Sequence[int]) -> Made | str:
    try:
        return _split(module, _by_first_names(module), adapted, sample)
    except Unknown as unknown:
        return str(unknown)
    except Exception as error:  # of the user's code
        said = "".join(f": {line}" for line in str(error).splitlines()[:1])
        return f"{DOES_NOT_RUN}: {type(error).__name__}{said}"


def _split(
    module: nn.Module, graph: fx.Graph, adapted: Sequence[str], sample: Sequence[int]
) -> Made:
    twin = deepcopy(module)  # a forward that is tried out may do more than compute
    x = _waves((3, *sample), module)
    if any(isinstance(part, nn.PReLU) for part in module.modules()):
        _open_prelus(graph, module, _values(twin, graph, x))
    rest, makers = split_made(module, graph, _values(twin, graph, x), adapted)
    made = {name: not set(adapted).isdisjoint(m.reads) for m in makers for name in m.makes}
    names = [name for name, _ in rest.named_parameters()]
    buffers, copies = dict(module.named_buffers()), _copied_buffers(rest, module)
    read = {name for _, _, name in copies} | {name for m in makers for name in m.reads}
    found = Made(
        rest=rest,
        kept=tuple(name for name in names if name not in made),
        varies=tuple(name for name in names if made.get(name, name in adapted)),
        makers=tuple(makers),
        ranks={name: p.dim() for name, p in module.named_parameters()},
        buffers={name: buffer for name, buffer in buffers.items() if name in read},
        held=tuple(copies),
    )
    for off in (0.0, 0.3):  # what a mask of ones or a gate of zero hides may come out later
        _move(twin, off)
        misses = _misses(twin, found, adapted, x)
        if misses is not None:
            raise Unknown(misses)
    return found


def _open_prelus(graph: fx.Graph, module: nn.Module, values: Mapping[str, Any]) -> None:
    """Their slopes as scales of what is below 0."""
    for node in list(graph.nodes):
        layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if type(layer) is not nn.PReLU or len(node.args) != 1 or node.kwargs:
            continue
        (x,) = node.args
        with graph.inserting_before(node):
            above = graph.call_function(F.relu, (x,))
            below = graph.call_function(operator.sub, (x, above))
            slope = graph.get_attr(f"{node.target}.weight")
            if layer.num_parameters > 1:
                shape = (-1, *[1] * (values[node.name].dim() - 2))
                slope = graph.call_method("view", (slope, shape))
            scaled = graph.call_function(operator.mul, (below, slope))
            y = graph.call_function(operator.add, (above, scaled))
        node.replace_all_uses_with(y)
        graph.erase_node(node)


def _move(twin: nn.Module, off: float) -> None:
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            if tensor.is_floating_point():
                height = off / max(tensor.shape[1:].numel(), 1) ** 0.5
                tensor += height * _waves(tensor.shape, twin).to(tensor)


def _copied_buffers(rest: nn.Module, module: nn.Module) -> list[tuple[dict[str, Any], str, str]]:
    """Where a copy of a forward holds buffers of the module, whose layers it has as they are."""
    known = {name for name, _ in module.named_buffers()}
    layers = {id(part._buffers) for part in module.modules()}
    return [
        (part._buffers, key, name)
        for prefix, part in rest.named_modules() if id(part._buffers) not in layers
        for key in part._buffers if (name := f"{prefix}.{key}".lstrip(".")) in known
    ]  # fmt: skip


def _by_first_names(module: nn.Module) -> fx.Graph:
    """The graph of its forward, with parts by the first of their names."""
    graph = graph_of(module, opens_parametrizations=True)
    parts = [*module.named_modules(), *module.named_parameters(), *module.named_buffers()]
    first = {id(part): name for name, part in parts}
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module"):
            node.target = first[id(part_of(module, str(node.target)))]
    return graph


def _waves(shape: Sequence[int], module: nn.Module) -> Tensor:
    like = next(module.parameters())
    count = torch.Size(shape).numel()
    return torch.linspace(-2, 2, count, dtype=like.dtype, device=like.device).sin().view(shape)


def _misses(twin: nn.Module, made: Made, adapted: Sequence[str], x: Tensor) -> str | None:
    """A sentence if the two parts make something else of some samples, or another gradient."""
    before = {name: t.clone() for name, t in (*twin.named_parameters(), *twin.named_buffers())}

    def forward(theta: Mapping[str, Tensor], x: Tensor) -> Tensor:
        own = {name: p[None] if name in adapted else p for name, p in theta.items()}
        weights = made.weights({**buffers, **own}).items()
        return call_module(made.rest, {n: w[0] if n in made.varies else w for n, w in weights}, x)

    parameters, buffers = dict(twin.named_parameters()), dict(twin.named_buffers())
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
