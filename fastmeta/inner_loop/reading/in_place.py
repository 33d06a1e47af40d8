"""Which calls of a traced forward write into a tensor that is somebody else's."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx.node import Node
from torch.nn.modules.batchnorm import _NormBase

from fastmeta.functional.aliases import asks_in_place
from fastmeta.inner_loop.reading.trace import IN_PLACE, Unknown

__all__ = ["changes_in_place", "makes", "works_in_place", "writes_into"]

Parts = Mapping[str, nn.Module]  # by their names in the graph

# What gives a tensor of its own. Of all else nobody knows that it is not a view.
_LAYERS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear,
    nn.Embedding, _NormBase, nn.GroupNorm, nn.LayerNorm,
)  # fmt: skip
_FUNCTIONS = (
    operator.add, operator.sub, operator.mul, operator.truediv, operator.matmul, operator.neg,
    torch.cat, torch.add, torch.mul,
)  # fmt: skip


# What may give a view of its first input.
_VIEW_LAYERS = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_VIEWS = frozenset(
    "chunk contiguous dropout dropout2d expand flatten getitem permute ravel reshape split squeeze "
    "transpose unflatten unsqueeze view".split()
)


def changes_in_place(order: Sequence[Node], parts: Parts) -> dict[Node, tuple[Node, ...]]:
    """For each call that writes in place, the nodes before it that are the very tensor it changes.

    Unknown if a view of such a tensor is read afterwards: for many tasks it may be a copy.
    """
    last_use = {used: i for i, node in enumerate(order) for used in node.all_input_nodes}
    tensor: dict[Any, Any] = {}  # one for all nodes that are the same tensor
    memory: dict[Any, Any] = {}  # one for all that are, or may be, views of one
    changed: dict[Node, tuple[Node, ...]] = {}
    for i, node in enumerate(order):
        itself = node.target if node.op == "get_attr" else node
        writes = bool(node.all_input_nodes) and works_in_place(node, parts)
        of = node.all_input_nodes[0] if writes or _may_view(node, parts) else None
        tensor[node] = tensor[of] if writes else itself
        memory[node] = itself if of is None else memory[of]
        if writes:
            others = [n for n in order[:i] if memory[n] == memory[of]]
            changed[node] = tuple(n for n in others if tensor[n] == tensor[of])
            if any(last_use.get(n, 0) > i for n in others if tensor[n] != tensor[of]):
                raise Unknown("its forward changes a tensor in place and reads a view of it after")
    return changed


def writes_into(source: Node, calls: Iterable[Node], parts: Parts) -> bool:
    """Whether one of the calls may write into what a node gives."""
    views = {source}
    for node in calls:
        if views.isdisjoint(node.all_input_nodes):
            continue
        if works_in_place(node, parts):
            return True
        if not makes(node, parts):
            views.add(node)
    return False


def works_in_place(node: Node, parts: Parts) -> bool:
    if node.op == "call_module":
        return bool(getattr(parts[str(node.target)], "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_")
    name = getattr(node.target, "__name__", "")
    asked = asks_in_place(node.target, node.args, node.kwargs)
    return node.target in IN_PLACE or name.endswith("_") or asked


def _may_view(node: Node, parts: Parts) -> bool:
    if node.op == "call_module":
        return isinstance(parts[str(node.target)], _VIEW_LAYERS)
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    if node.op == "get_attr" or name not in _VIEWS or not node.all_input_nodes:
        return False
    return node.all_input_nodes[0].target not in (builtins.getattr, "size")  # one of the sizes


def makes(node: Node, parts: Parts) -> bool:
    """Whether a call gives a tensor of its own, no view of another one."""
    if node.op == "call_module":
        return isinstance(parts[str(node.target)], _LAYERS)
    return node.op == "call_function" and node.target in _FUNCTIONS and "out" not in node.kwargs
