"""Traced forwards in two: what lies below one result, and what is made of that alone."""

from __future__ import annotations

import keyword
import operator
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import Node

from fastmeta.functional.forward import has_hooks, module_lock
from fastmeta.inner_loop.reading.calls import described
from fastmeta.inner_loop.reading.in_place import writes_into
from fastmeta.inner_loop.reading.sizes import asks, is_rows
from fastmeta.inner_loop.reading.trace import IN_PLACE, Unknown, check_traceable, trace
from fastmeta.inner_loop.reading.unused import only_computes, without_unused
from fastmeta.inner_loop.reading.watched import watched

__all__ = [
    "after", "can_be_copied", "can_be_named", "copied", "graph_of", "halves", "lone_results",
]  # fmt: skip


def halves(
    module: nn.Module, stays_above: Callable[[str], bool]
) -> tuple[nn.Module, nn.Module] | None:
    """A module below and a module above a result, which together are the one that is given.

    They are cut as far up as nothing below reads a parameter that stays above; their parameters
    have the module's names, and they hold the tensors that the module has now. None where its
    forward has no such result, or does more than compute. Tried out they are not.
    """
    if not can_be_copied(module):
        return None
    try:
        graph = graph_of(module)
    except Unknown:
        return None
    calls = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    if not all(_only_computes(node, module) for node in calls):
        return None
    place = _highest_place(graph, module, stays_above)
    if place is None:
        return None
    upper = after(graph, place)
    if [*upper.nodes][-1].op != "output":
        return None
    name = type(module).__name__
    return copied(module, _until(graph, place), name), copied(module, upper, name)


def graph_of(module: nn.Module, opens_parametrizations: bool = False) -> fx.Graph:
    """The calls of its forward that lead to its result, for a copy that runs instead.

    Raises:
        Unknown: torch.fx cannot tell them, or nobody could tell later that they are the same.
    """
    def read() -> fx.Graph:
        return trace(module, opens_parametrizations)

    with module_lock, watched(module, again=lambda: described(read())) as surroundings:
        check_traceable(surroundings)
        graph = without_unused(read(), module)
    if surroundings.asks_types:  # which torch.fx answers for tensors
        raise Unknown("its forward asks for types")
    return graph


def can_be_copied(module: nn.Module) -> bool:
    """Whether a GraphModule can have all of its parts, each under one name."""
    if any(has_hooks(part) for part in module.modules()):
        return False
    places = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    return len(places) == len(dict(module.named_parameters())) and can_be_named(module)


def can_be_named(module: nn.Module) -> bool:
    """Whether code of a GraphModule can have the names of all of its parts."""
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    names += [name for name, _ in module.named_buffers(remove_duplicate=False)]
    names += [name for name, _ in module.named_modules(remove_duplicate=False)]
    words = {name.partition(".")[0] for name in names}
    return not words & _TAKEN and not any(
        keyword.iskeyword(word) for name in names for word in name.split(".")
    )


# Names that a GraphModule has itself, or its code.
_TAKEN = {*dir(fx.GraphModule(nn.Module(), fx.Graph())), "shape_env"}


def _highest_place(
    graph: fx.Graph, module: nn.Module, stays_above: Callable[[str], bool]
) -> Node | None:
    order = [node for node in graph.nodes if node.op not in ("get_attr", "output")]
    reads = (any(map(stays_above, _parameters(node, module))) for node in order)
    end = next((i for i, it in enumerate(reads) if it), len(order))
    places = {node: i for i, node in enumerate(order[:end])}
    parts = dict(module.named_modules())
    if any(writes_into(own, order, parts) for own in graph.nodes if own.op == "get_attr"):
        return None
    for node in reversed(lone_results(graph)):
        if node not in places or not _is_one_tensor(node):
            continue
        below, above = order[: places[node] + 1], order[places[node] + 1 :]
        if writes_into(order[0], below, parts) or writes_into(node, above, parts):
            continue
        if not any(_counts_other_rows(each, {*below[:-1]}) for each in order if is_rows(each)):
            return node
    return None


def _is_one_tensor(node: Node) -> bool:
    """Else it may be one of several results of a call, or several."""
    return not any(user.target is operator.getitem for user in node.users)


def _counts_other_rows(size: Node, below: Container[Node]) -> bool:
    """Whether what is above reads the first dimension of what is below, not that of the input."""
    asked = _asked(size)
    if asked not in below or asked.op == "placeholder":
        return False
    return any(user not in below for user in size.users)


def _asked(size: Node) -> Node:
    """The tensor of which a size is the first dimension."""
    (of,) = size.all_input_nodes
    return of if size.op == "call_method" else of.all_input_nodes[0]


def _only_computes(node: Node, module: nn.Module) -> bool:
    """Whether a call draws nothing and changes at most a tensor that it is given."""
    if only_computes(node, module) or asks(node) or node.target in IN_PLACE:
        return True
    if node.op != "call_module":
        return node.op == "call_function" and node.target in (F.relu, F.leaky_relu, F.elu, F.silu)
    layer: Any = module.get_submodule(str(node.target))
    return type(layer) in _MORE_LAYERS and getattr(layer, "max_norm", None) is None


# Beside those that the native kernels have.
_MORE_LAYERS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Hardswish, nn.Mish, nn.CELU, nn.SELU,
    nn.Hardtanh, nn.Hardsigmoid, nn.Embedding, nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d,
    nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.Softmax, nn.LogSoftmax, nn.Unflatten, nn.PixelShuffle,
)  # fmt: skip


def _parameters(node: Node, module: nn.Module) -> Iterator[str]:
    """Names of those that a call reads; buffers are none."""
    for read in node.all_input_nodes:
        if read.op == "get_attr" and isinstance(_tensor(module, read), nn.Parameter):
            yield str(read.target)
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        yield from (f"{node.target}.{name}" for name, _ in layer.named_parameters())


def _tensor(module: nn.Module, node: Node) -> object:
    owner, _, name = str(node.target).rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _until(graph: fx.Graph, cut: Node) -> fx.Graph:
    below = fx.Graph()
    values: dict[Node, Node] = {}
    for node in graph.nodes:
        values[node] = below.node_copy(node, lambda n: values[n])
        if node is cut:
            below.output(values[node])
            break
    for node in reversed([*below.nodes]):
        if node.op == "get_attr" and not node.users:
            below.erase_node(node)
    return below


def copied(root: nn.Module | dict[str, Any], graph: fx.Graph, name: str) -> nn.Module:
    """A module of what a graph reads, which it finds in `root` by its targets."""
    made = fx.GraphModule(root, graph, name)
    type(made).__module__ = __name__  # a class of its own: by that of fx it would pass for a layer
    return made


def lone_results(graph: fx.Graph) -> list[Node]:
    """Nodes of which alone is made what follows, parameters and the number of samples aside."""
    nodes = [node for node in graph.nodes if node.op not in ("get_attr", "output")]
    places = {node: i for i, node in enumerate(nodes)}
    end = len(nodes)
    last = {node: max((places.get(u, end) for u in node.users), default=-1) for node in nodes}
    counted = {node for node in nodes if asks(node) or is_rows(node)}
    return [
        node
        for i, node in enumerate(nodes)
        if node.op != "placeholder"
        and node not in counted
        and all(last[other] <= i or _counts_alone(other, i, places) for other in nodes[:i])
    ]


def _counts_alone(node: Node, place: int, places: Mapping[Node, int]) -> bool:
    """Whether all that is made of it behind a place is a number of samples."""
    if is_rows(node):
        return True
    later = [user for user in node.users if places.get(user, place + 1) > place]
    return all(
        is_rows(user) or (asks(user) and _counts_alone(user, place, places)) for user in later
    )


def after(graph: fx.Graph, cut: Node) -> fx.Graph:
    """What follows a node, of which it is the input now."""
    after, values = fx.Graph(), {}
    x = after.placeholder("x")
    values[cut] = x
    seen = False
    for node in graph.nodes:
        if node.op == "get_attr":
            values[node] = after.node_copy(node)
        elif node is cut:
            seen = True
        elif is_rows(node) and _asked(node) not in values:  # of what is below: as many as of x
            values[node] = after.call_method("size", (x, 0))
        elif seen and all(below in values for below in node.all_input_nodes):
            values[node] = after.node_copy(node, lambda n: values[n])
        # else it is below, or a shape of what is below, of which nothing but that is read
    return after
