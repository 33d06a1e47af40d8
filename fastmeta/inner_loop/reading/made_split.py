"""A traced forward as what makes tensors of parameters alone, and what uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node, map_arg

from fastmeta.inner_loop.reading.cuts import copied
from fastmeta.inner_loop.reading.in_place import makes, works_in_place
from fastmeta.inner_loop.reading.scales import (
    Numbers,
    Recipe,
    Scale,
    depthwise,
    norm_of,
    scale_of,
    scaled,
)
from fastmeta.inner_loop.reading.trace import Unknown

__all__ = ["Maker", "part_of", "split_made"]


class Maker(NamedTuple):
    """What makes some of the tensors that are made.

    Attributes:
        module: of no samples, a tuple of tensors.
        reads: its parameters and buffers, by the names of the whole.
        makes: what the rest calls what it makes.
    """

    module: nn.Module
    reads: tuple[str, ...]
    makes: tuple[str, ...]


def split_made(
    module: nn.Module, graph: fx.Graph, values: Mapping[str, Any], adapted: Sequence[str]
) -> tuple[nn.Module, list[Maker]]:
    """The rest, which has what is made as parameters, and what makes it.

    What depends on parameters that adapt is made apart from what does not.

    Args:
        graph: of the module, whose parts it calls by their first names.
        values: what each node is for some samples, by its name.

    Raises:
        Unknown: there is nothing to be made, or it is no tensor that is computed.
    """
    splitter = _Splitter(module, graph, values)
    splitter.sort()
    makers = _Makers(module, splitter.made)
    varies = {name for name in splitter.made if not makers.reads(name).isdisjoint(adapted)}
    groups = [[n for n in splitter.made if (n in varies) is group] for group in (True, False)]
    return splitter.rest(), [makers.maker(names) for names in groups if names]


class _Splitter:
    """Sorts the nodes of a graph into those of parameters alone and those of samples.

    Attributes:
        made: how, by the name in the rest.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph, values: Mapping[str, Any]) -> None:
        self._module, self._graph, self._values = module, graph, values
        self._parameters = {id(p): name for name, p in module.named_parameters()}
        self._of_samples = _made_of_samples(graph)
        self._rest = fx.Graph()
        self._nodes: dict[Node, Node] = {}  # of samples, in the rest
        self._parts: dict[str, Any] = {}  # that the rest has, by name
        self._used: set[str] = set()  # parameters that it has as they are
        self._scales = self._all_scales(dict(module.named_modules()))
        self.made: dict[str, Node | str | Recipe] = {}

    def sort(self) -> None:
        parts = dict(self._module.named_modules())
        for node in self._graph.nodes:
            if node in self._of_samples:
                if not self._is_scaled_alone(node):
                    self._nodes[node] = self._of_rest(node)
            elif node.op == "output":
                self._rest.output(map_arg(node.args[0], self._operand))
            elif node.op != "get_attr" and works_in_place(node, parts):
                raise Unknown("its forward changes in place what it makes of its parameters")
        if not self.made:
            raise Unknown("no weight is made of parameters, and no layer runs twice")

    def rest(self) -> nn.Module:
        return copied(self._parts, self._rest, type(self._module).__name__)

    def _value(self, node: Node) -> Any:
        return self._values[node.name]

    def _of_rest(self, node: Node) -> Node:
        if node.op == "placeholder":
            return self._rest.placeholder("x")
        if node in self._scales:
            return self._scaled(self._scales[node])
        if node.op == "call_module":
            return self._called(node)
        return self._rest.node_copy(node, self._operand)

    def _operand(self, node: Node) -> Any:
        """A node of the rest for one of the whole, or the number that it always is."""
        if node in self._of_samples:
            return self._nodes[node]
        value = self._value(node)
        if not isinstance(value, Tensor):
            return tuple(value) if isinstance(value, torch.Size) else value
        name = str(node.target)
        if node.op == "get_attr" and name not in self._used:
            if id(part_of(self._module, name)) in self._parameters:  # buffers may be read again
                self._used.add(name)
            self._parts[name] = part_of(self._module, name)
            return self._rest.get_attr(name)
        return self._made(node)

    def _made(self, recipe: Node | str | Recipe) -> Node:
        value = self._value_of(recipe)
        if not value.is_floating_point():
            raise Unknown("it makes whole numbers or truths of its parameters")
        name = f"fastmeta_made_{len(self.made)}"
        self.made[name] = recipe
        self._parts[name] = nn.Parameter(value.detach().clone())
        return self._rest.get_attr(name)

    def _value_of(self, recipe: Node | str | Recipe) -> Tensor:
        if isinstance(recipe, Node):
            return self._value(recipe)
        if isinstance(recipe, str):
            return self._module.get_parameter(recipe).detach()
        return recipe.function(*map(self._value_of, recipe.sources), *recipe.constants)

    # ---- scales of channels --------------------------------------------------------------------

    def _all_scales(self, parts: Mapping[str, nn.Module]) -> dict[Node, Scale]:
        found: dict[Node, Scale] = {}
        for node in self._graph.nodes:
            scale = scale_of(node, self._of_samples.__contains__, self._value)
            if scale is None:
                continue
            # In place it may change what others read, by another name.
            alone = len(scale.of.users) == 1 and makes(scale.of, parts)
            if alone or not works_in_place(node, parts):
                found[node] = scale
        return found

    def _is_scaled_alone(self, node: Node) -> bool:
        """Whether it is a norm or a scale that a scale alone reads, which does both."""
        users = [*node.users]
        if len(users) != 1 or users[0] not in self._scales:
            return False
        return node in self._scales or self._norm_of(node) is not None

    def _norm_of(self, node: Node) -> Any:
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            return None
        target = str(node.target)
        return norm_of(self._module.get_submodule(target), target)

    def _scaled(self, scale: Scale) -> Node:
        then = [scale]
        while scale.of in self._scales and self._is_scaled_alone(scale.of):
            scale = self._scales[scale.of]
            then.insert(0, scale)
        below, call, numbers = scale.of, None, Numbers(None, None)
        if self._is_scaled_alone(below):
            call, numbers = self._norm_of(below)
            (below,) = below.all_input_nodes
        for each in then:
            numbers = scaled(numbers, each.numbers)
        if call is None:
            call, numbers = depthwise(scale.shape, numbers)
        else:
            numbers = Numbers(*numbers.both())
        function, before, behind = call
        made = [None if recipe is None else self._made(recipe) for recipe in numbers]
        return self._rest.call_function(function, (self._nodes[below], *before, *made, *behind))

    def _called(self, node: Node) -> Node:
        """A layer, or one like it where its parameters are used already."""
        target = str(node.target)
        layer = self._module.get_submodule(target)
        own = {name: self._parameters[id(p)] for name, p in layer.named_parameters()}
        names = {f"{target}.{name}" for name in own}
        if names == {*own.values()} and self._used.isdisjoint(names):
            self._used |= names
            self._parts[target] = layer
        else:
            again = f"fastmeta_again_{len(self._parts)}"
            self._parts[again] = deepcopy(layer)
            self.made |= {f"{again}.{name}": first for name, first in own.items()}
            target = again
        args, kwargs = map_arg((node.args, node.kwargs), self._operand)
        return self._rest.call_module(target, args, kwargs)


class _Makers:
    """Modules of the nodes that what is made is made by."""

    def __init__(self, module: nn.Module, made: Mapping[str, Node | str | Recipe]) -> None:
        self._module, self._recipes = module, made
        self._parameters = {name for name, _ in module.named_parameters()}

    def maker(self, names: Sequence[str]) -> Maker:
        graph, parts = fx.Graph(), dict[str, Any]()
        copies: dict[Node, Node] = {}
        graph.placeholder("nothing")

        def copy(node: Node) -> Node:
            if node not in copies:
                if node.op in ("get_attr", "call_module"):
                    parts[str(node.target)] = part_of(self._module, str(node.target))
                copies[node] = graph.node_copy(node, copy)
            return copies[node]

        def make(recipe: Node | str | Recipe) -> Node:
            if isinstance(recipe, Node):
                return copy(recipe)
            if isinstance(recipe, str):
                parts[recipe] = part_of(self._module, recipe)
                return graph.get_attr(recipe)
            sources = tuple(map(make, recipe.sources))
            return graph.call_function(recipe.function, (*sources, *recipe.constants))

        graph.output(tuple(make(self._recipes[name]) for name in names))
        reads = {read for name in names for read in self.reads(name)}
        return Maker(copied(parts, graph, "Maker"), tuple(sorted(reads)), tuple(names))

    def reads(self, name: str) -> set[str]:
        """The parameters and buffers of which something is made."""
        found, stack = set[str](), [self._recipes[name]]
        while stack:
            recipe = stack.pop()
            if isinstance(recipe, str):
                found.add(recipe)
            elif isinstance(recipe, Node):
                found |= self._read_by(recipe)
                stack += recipe.all_input_nodes
            else:
                stack += recipe.sources
        return found

    def _read_by(self, node: Node) -> set[str]:
        target = str(node.target)
        if node.op == "get_attr":
            return {target}
        if node.op != "call_module":
            return set()
        layer = self._module.get_submodule(target)
        names = {f"{target}.{name}" for name, _ in layer.named_parameters()}
        if not names <= self._parameters:
            raise Unknown(f"what makes weights shares parameters with another layer ({target})")
        return names | {f"{target}.{name}" for name, _ in layer.named_buffers()}


def part_of(module: nn.Module, target: str) -> Any:
    """What the target of a node names."""
    owner, _, name = target.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _made_of_samples(graph: fx.Graph) -> set[Node]:
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op != "output" and (
            node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes)
        ):
            found.add(node)
    return found
