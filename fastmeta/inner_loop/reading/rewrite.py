"""A traced module rewritten to run for many tasks at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, fx, nn
from torch.fx.node import Node, map_arg

from fastmeta.functional.forward import has_hooks, module_lock
from fastmeta.inner_loop.reading.blocks import Block, block_at, run_at_once
from fastmeta.inner_loop.reading.call_rules import FUNCTIONS, METHODS
from fastmeta.inner_loop.reading.in_place import changes_in_place
from fastmeta.inner_loop.reading.layer_rules import LAYERS, unfit
from fastmeta.inner_loop.reading.trace import (
    IN_PLACE,
    Unknown,
    check_traceable,
    own_name,
    trace,
)
from fastmeta.inner_loop.reading.watched import watched
from fastmeta.watching.surroundings import Surroundings

__all__ = ["Program", "rewrite"]


class Program:
    """The steps of a module's forward on tensors [T, ...].

    What the forward read from Python is as it was when it was traced, see `is_current`.

    Attributes:
        largest: elements a sample in the largest tensor of the first run; 0 before it.
        asks_types: whether the forward does, which takes a size of a proxy for no number.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, surroundings: Surroundings) -> None:
        *nodes, output = graph.nodes
        self._steps = _steps(_Names(root), nodes, _last_uses(graph), output)
        self._output = _output(output)
        self._surroundings = surroundings
        self.asks_types = surroundings.asks_types
        self.largest = 0

    def is_current(self) -> bool:
        """Whether all that a forward may have read from Python is as it was."""
        return self._surroundings.are_same()

    def run(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The predictions [T, S, O...].

        Args:
            parameters: every parameter by name, [T, *shape] or, shared by all tasks, [*shape].
            x: [T, S, ...].
        """
        known: dict[Node, Any] = {}
        largest = 0
        for step in self._steps:
            value = step.run(known, parameters, x)
            for node in step.spent:
                del known[node]
            if isinstance(value, Tensor):  # a number that grows is another number
                known.update((node, value) for node in step.changes if node in known)
            if step.is_used:
                known[step.node] = value
            if not self.largest and isinstance(value, Tensor):
                largest = max(largest, value.numel())
        self.largest = self.largest or largest // (x.shape[0] * x.shape[1])
        y = known[self._output]
        return y if len(y) == len(x) else y.expand(len(x), *y.shape[1:])


def rewrite(module: nn.Module) -> Program | str:
    """The program of a module, or a sentence why there is none."""
    hooked = [name for name, part in module.named_modules() if has_hooks(part)]
    if hooked:
        return f"it has hooks ({', '.join(map(repr, hooked))}), which would not be called"
    root = nn.Sequential(module)  # around it, since torch.fx traces into a root that is a layer
    with module_lock:
        try:
            with watched(module) as surroundings:
                check_traceable(surroundings)
                return Program(root, trace(root), surroundings)
        except Unknown as unknown:
            return str(unknown)


class _Step(NamedTuple):
    node: Node
    run: Callable[[dict[Node, Any], Mapping[str, Tensor], Tensor], Any]  # (known, parameters, x)
    changes: tuple[Node, ...] = ()  # in place, says the forward; here they are its value then
    spent: tuple[Node, ...] = ()  # nodes that no later step needs
    is_used: bool = True


# ---- steps -------------------------------------------------------------------------------------


def _steps(
    names: _Names, nodes: Sequence[Node], spent: Mapping[Node, tuple[Node, ...]], output: Node
) -> list[_Step]:
    steps: list[_Step] = []
    changes = changes_in_place([*nodes, output], dict(names.root.named_modules()))
    in_blocks: set[Node] = set()
    for node in nodes:
        if node in in_blocks:
            continue
        block = block_at(names.root, node)
        step = _step(names, node) if block is None else _block_step(names, block)
        covered = (node,) if block is None else block.nodes
        in_blocks.update(covered)
        done = tuple(n for part in covered for n in spent.get(part, ()) if n not in covered[:-1])
        changed = changes.get(node, ()) if block is None else ()
        steps.append(step._replace(changes=changed, spent=done, is_used=bool(step.node.users)))
    return steps


def _block_step(names: _Names, block: Block) -> _Step:
    """Its layers at once or one after another; what is in place in it changes what it has made."""
    parts = [_step(names, node) for node in block.nodes]
    (source,) = block.nodes[0].all_input_nodes
    own = names.of_layer(block.norm)

    def run(known: dict[Node, Any], parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        if run_at_once(known[source]):
            of_norm = {key: parameters[name] for key, name in own.items()}
            return block.run(of_norm, known[source])
        values = {source: known[source]}
        for part in parts:
            values[part.node] = part.run(values, parameters, x)
        return values[block.nodes[-1]]

    return _Step(block.nodes[-1], run)


def _step(names: _Names, node: Node) -> _Step:
    if node.op == "placeholder":
        return _Step(node, lambda known, parameters, x: x)
    if node.op == "get_attr":
        read = names.reader(str(node.target))
        return _Step(node, lambda known, parameters, x: read(parameters))
    if node.op == "call_module":
        return _layer_step(names, node)
    return _call_step(node)


def _layer_step(names: _Names, node: Node) -> _Step:
    layer: Any = names.root.get_submodule(str(node.target))
    called = f"layer {own_name(node.target)!r} ({type(layer).__name__})"
    rule = LAYERS.get(type(layer))
    if rule is None:
        raise Unknown(f"{called} is not among the layers that fastmeta.functional has")
    reason = unfit(layer)
    if reason is not None:
        raise Unknown(f"{called} {reason}")
    if len(node.args) != 1 or not isinstance(node.args[0], Node) or node.kwargs:
        raise Unknown(f"{called} is called with more than its input")
    source = node.args[0]
    if getattr(layer, "inplace", False):
        layer = copy.copy(layer)
        layer.inplace = False
    own = names.of_layer(layer)

    def run(known: dict[Node, Any], parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return rule(layer, {key: parameters[name] for key, name in own.items()}, known[source])

    return _Step(node, run)


def _call_step(node: Node) -> _Step:
    target, kwargs = node.target, dict(node.kwargs)
    kwargs.pop("inplace", None)
    if node.op == "call_method":
        name = str(target)
        rule = METHODS.get(name.rstrip("_"))
    else:
        rule = FUNCTIONS.get(IN_PLACE.get(target, target))  # type: ignore[arg-type]
        name = getattr(target, "__name__", str(target))
    if rule is None:
        raise Unknown(f"its forward calls {name}, which has no rule for many tasks")

    def run(known: dict[Node, Any], parameters: Mapping[str, Tensor], x: Tensor) -> Any:
        args: Any = map_arg(node.args, known.__getitem__)
        options: Any = map_arg(kwargs, known.__getitem__)
        return rule(*args, **options)

    return _Step(node, run)


class _Names:
    """The parameters and buffers that a graph reads, by the names that the engines use."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self._parameters = {id(p): own_name(name) for name, p in root.named_parameters()}

    def of_layer(self, layer: nn.Module) -> dict[str, str]:
        """The names of a layer's parameters by their own names in it."""
        own = layer._parameters.items()
        return {key: self._parameters[id(p)] for key, p in own if p is not None}

    def reader(self, target: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """What gives a parameter or a buffer as [T, ...] or [1, ...]."""
        prefix, _, key = target.rpartition(".")
        owner = self.root.get_submodule(prefix)
        parameter = owner._parameters.get(key)
        if parameter is not None:
            name, rank = self._parameters[id(parameter)], parameter.dim()
            return lambda parameters: _with_tasks(parameters[name], rank)
        if owner._buffers.get(key) is None:
            raise Unknown(f"its forward reads {own_name(target)!r}, no parameter and no buffer")
        return lambda parameters: owner._buffers[key].unsqueeze(0)  # type: ignore[union-attr]


def _with_tasks(parameter: Tensor, rank: int) -> Tensor:
    return parameter if parameter.dim() > rank else parameter.unsqueeze(0)


def _output(node: Node) -> Node:
    (output,) = node.args
    if not isinstance(output, Node):
        raise Unknown("its forward returns something else than one tensor")
    return output


def _last_uses(graph: fx.Graph) -> dict[Node, tuple[Node, ...]]:
    """The nodes whose last user a node is."""
    last = {used: node for node in graph.nodes for used in node.all_input_nodes}
    spent: dict[Node, tuple[Node, ...]] = {}
    for used, node in last.items():
        spent[node] = (*spent.get(node, ()), used)
    return spent
