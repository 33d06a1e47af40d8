"""What a module's forward does: layers, and sums and the like of two results, in their order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import Node

from fastmeta.functional.forward import has_hooks, module_lock
from fastmeta.inner_loop.reading.affine import affine_of
from fastmeta.inner_loop.reading.differs import differs
from fastmeta.inner_loop.reading.joins import is_spread, join_of
from fastmeta.inner_loop.reading.layer_calls import (
    has_parts,
    layer_of_part,
    layers_of_call,
    name_of,
    whole_of,
)
from fastmeta.inner_loop.reading.layers import called, leaves_of
from fastmeta.inner_loop.reading.shape_layers import OfSizes
from fastmeta.inner_loop.reading.sizes import ROWS, asked_of, asks, evaluated, is_rows, is_size
from fastmeta.inner_loop.reading.trace import (
    Unknown,
    check_traceable,
    is_layer,
    own_name,
    trace,
)
from fastmeta.inner_loop.reading.unused import without_unused
from fastmeta.inner_loop.reading.watched import watched
from fastmeta.watching.surroundings import Surroundings

__all__ = [
    "Call", "asks_types", "calls_of", "calls_until", "described", "is_by_hand", "misread",
]  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A layer that runs, or a join of results.

    Attributes:
        name: what to call it in a sentence.
        layer: a `Join` of the inputs, or a layer for one. Of a function it may be one without
            values.
        parameters: the module's names of the layer's parameters, by the layer's own.
        inputs: the calls whose results it takes, -1 for the module's input.
        alone: at most one call reads its result.
        sizes: the calls whose results' shapes tell which layers it is, see `OfSizes`.
        in_place: it writes its result over its first input.
    """

    name: str
    layer: Any
    parameters: Mapping[str, str]
    inputs: tuple[int, ...]
    alone: bool = True
    in_place: bool = False
    sizes: tuple[int, ...] = ()


def calls_of(module: nn.Module) -> list[Call] | str:
    """The calls of a forward whose last one makes the output, or a sentence why there are none."""
    for name, part in module.named_modules():
        if has_hooks(part):
            return f"{called(name, part)} has hooks, which the native kernels would not call"
    leaves = leaves_of(module)
    by_hand = next((leaf for leaf in leaves if not is_layer(leaf[1])), None)
    if by_hand is None:
        return [
            Call(
                called(prefix, layer), layer, _parameters(layer, prefix), (index - 1,),
                in_place=_works_in_place(layer),
            )
            for index, (prefix, layer) in enumerate(leaves)
        ]  # fmt: skip
    root = nn.Sequential(module)
    try:
        with module_lock, watched(module, again=lambda: described(trace(root))) as surroundings:
            check_traceable(surroundings)
            return _GraphReader(root).read()
    except Unknown as unknown:
        reason = str(unknown)
    return (
        f"{called(*by_hand)} has a forward() written by hand, and {reason}: write it with layers "
        'that the native kernels have, or let another engine run it, as engine="auto" does'
    )


def calls_until(graph: fx.Graph, root: nn.Module) -> tuple[list[Call], dict[Node, int]]:
    """The calls of a traced forward up to one that none stands for, and which nodes those are."""
    reader = _GraphReader(root)
    try:
        for node in graph.nodes:
            reader.take(node)
    except Unknown:
        pass  # what follows is somebody else's
    return reader.calls, reader.results


def is_by_hand(module: nn.Module) -> bool:
    """Whether there is a forward besides those of layers and of Sequentials."""
    return not all(is_layer(layer) for _, layer in leaves_of(module))


def asks_types(module: nn.Module) -> bool:
    """Whether a forward written by hand does, to which a size that torch.fx gives is no number."""
    return is_by_hand(module) and Surroundings(module).asks_types


def misread(module: nn.Module, sample: Sequence[int], samples: int = 2) -> str | None:
    """A sentence if a forward written by hand was traced as what it is not."""
    own = dict(module.named_parameters())
    like = next(iter(own.values()), torch.empty(()))
    numbers = samples * math.prod(sample)
    x = torch.linspace(-2, 2, numbers, dtype=like.dtype, device=like.device).sin()
    try:
        return differs(module, own, x.reshape(samples, *sample))
    except RuntimeError as error:
        return f"its forward has no gradient: {str(error).splitlines()[0]}"
    except Exception as error:  # the forward is the user's
        return f"its forward does not run for some samples: {type(error).__name__}: {error}"


def _parameters(layer: nn.Module, prefix: str) -> dict[str, str]:
    return {name: f"{prefix}{name}" for name, _ in layer.named_parameters(recurse=False)}


def _works_in_place(layer: nn.Module) -> bool:
    return bool(getattr(layer, "inplace", False))


# ---- a graph -----------------------------------------------------------------------------------


def described(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """What is equal for equal graphs."""
    return [(node.op, node.target, repr(node.args), repr(node.kwargs)) for node in graph.nodes]


class _GraphReader:
    """Turns the nodes of a graph into calls; raises Unknown."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.calls: list[Call] = []
        self.results: dict[Node, int] = {}
        self.sizes: set[Node] = set()

    def read(self) -> list[Call]:
        for node in without_unused(trace(self.root), self.root).nodes:
            self.take(node)
        return self.calls

    def take(self, node: Node) -> None:
        if node.op == "placeholder":
            self.results[node] = -1
        elif node.op == "output":
            (last,) = node.args
            if not isinstance(last, Node) or self.results.get(last) != len(self.calls) - 1:
                raise Unknown("it returns something else than the last layer's result")
        elif is_size(node, self.sizes):
            self.sizes.add(node)
        elif node.op != "get_attr" and not has_parts(node):
            if not node.users:
                raise Unknown("it computes something that it does not return")
            self._read(node)

    def _read(self, node: Node) -> None:
        affine = affine_of(node)
        if affine is not None:
            source, layer = affine
            inputs = self._inputs(node, (source,), {})
            self._add(node, f"the call of {name_of(node)}", layer, {}, inputs)
        elif (join := join_of(node)) is not None:
            inputs = self._inputs(node, join.operands, {})
            self._add(node, join.name, join, {}, inputs, join.in_place)
        elif (whole := whole_of(node)) is not None and has_parts(whole):
            inputs = self._inputs(whole, whole.args[:1], {})
            part = layer_of_part(node, whole.args[1:], whole.kwargs)
            self._add(node, f"the call of {name_of(whole)}", part, {}, inputs)
        elif is_spread(node):
            self.results[node] = self._inputs(node, node.args[:1], {})[0]
        elif node.op == "call_module":
            self._read_module(node)
        else:
            self._read_function(node)

    def _read_module(self, node: Node) -> None:
        layer: Any = self.root.get_submodule(str(node.target))
        name = called(own_name(node.target), layer)
        inputs = self._inputs(node, node.args, node.kwargs)
        if len(inputs) != 1:
            raise Unknown(f"it calls {name} with several inputs")
        self._add(node, name, layer, _parameters(layer, f"{own_name(node.target)}."), inputs)

    def _read_function(self, node: Node) -> None:
        inputs = self._inputs(node, node.args[:1], {})
        sizes = [each for each in node.all_input_nodes if each in self.sizes]
        asked = [*dict.fromkeys(of for size in sizes for of in asked_of(size))]
        if not all(of in self.results for of in asked):
            raise Unknown(f"it calls {name_of(node)} with a size of what is no layer's result")
        if not all(map(is_rows, sizes)):
            self._add_sized(node, inputs, asked)
            return
        for layer, parameters in self._layers(node, {}):
            self._add(node, f"the call of {name_of(node)}", layer, parameters, inputs)
            inputs = (self.results[node],)

    def _add_sized(self, node: Node, inputs: tuple[int, ...], asked: Sequence[Node]) -> None:
        """A call whose layers wait for the shapes of results."""

        def layers(shapes: Sequence[Sequence[int]]) -> list[tuple[nn.Module, Mapping[str, str]]]:
            return self._layers(node, dict(zip(asked, shapes, strict=True)))

        parameters = [own_name(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
        self._add(
            node, f"the call of {name_of(node)}", OfSizes(layers),
            {name: name for name in parameters}, inputs,
            sizes=tuple(self.results[of] for of in asked),
        )  # fmt: skip

    def _layers(
        self, node: Node, shapes: Mapping[Node, Sequence[int]]
    ) -> list[tuple[nn.Module, Mapping[str, str]]]:
        given = (node.args[1:], node.kwargs)
        try:
            args, kwargs = evaluated(given, self.sizes, lambda of: (ROWS, *shapes[of]))
        except (TypeError, ValueError) as error:  # of the number of samples, or of what not
            raise Unknown(f"it calls {name_of(node)} with a size that it computes") from error
        return layers_of_call(node, self.root, args, kwargs)

    def _inputs(self, node: Node, args: Any, kwargs: Any) -> tuple[int, ...]:
        if kwargs or not args or not all(isinstance(a, Node) and a in self.results for a in args):
            raise Unknown(f"it calls {name_of(node)} with what is no layer's result")
        return tuple(self.results[a] for a in args)

    def _add(
        self, node: Node, name: str, layer: Any, parameters: Mapping[str, str],
        inputs: tuple[int, ...], in_place: bool = False, sizes: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        self.results[node] = len(self.calls)
        in_place = in_place or _works_in_place(layer)
        if in_place and inputs[0] < 0:
            raise Unknown("it changes its input in place")
        alone = sum(not asks(user) for user in node.users) <= 1
        self.calls.append(Call(name, layer, parameters, inputs, alone, in_place, sizes))

