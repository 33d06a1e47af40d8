"""Calls of a traced forward of which nothing comes."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.fx.node import Node
from torch.nn.modules.dropout import _DropoutNd

from fastmeta.functional.aliases import asks_in_place
from fastmeta.inner_loop.reading.call_rules import FUNCTIONS, METHODS
from fastmeta.inner_loop.reading.layer_rules import LAYERS
from fastmeta.inner_loop.reading.layers import is_idle

__all__ = ["only_computes", "without_unused"]

_MORE_METHODS = ("detach", "expand", "expand_as")


def without_unused(graph: fx.Graph, root: nn.Module) -> fx.Graph:
    """The graph without what leads to no result, where it does nothing beside one."""
    for node in reversed([*graph.nodes]):
        if not node.users and only_computes(node, root):
            graph.erase_node(node)
    return graph


def only_computes(node: Node, root: nn.Module) -> bool:
    """Whether it writes into no tensor and draws no random numbers, as far as is known."""
    if node.op == "get_attr":
        return True
    if node.op == "call_module":
        return _layer_only_computes(root.get_submodule(str(node.target)))
    if node.op == "call_method":
        return node.target in METHODS or node.target in _MORE_METHODS
    return node.op == "call_function" and _function_only_computes(node)


def _layer_only_computes(layer: Any) -> bool:
    """Norms too: in no engine do they keep statistics."""
    if isinstance(layer, _DropoutNd) and not is_idle(layer):
        return False
    return type(layer) in LAYERS and not getattr(layer, "inplace", False)


def _function_only_computes(node: Node) -> bool:
    name = getattr(node.target, "__name__", "")
    if node.target not in FUNCTIONS or name.startswith("dropout") or "out" in node.kwargs:
        return False
    return not asks_in_place(node.target, node.args, node.kwargs)
