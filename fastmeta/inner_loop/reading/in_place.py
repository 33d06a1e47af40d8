"""Which calls of a traced forward write into a tensor that is somebody else's."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.fx.node import Node
from torch.nn.modules.batchnorm import _NormBase

from fastmeta.inner_loop.reading.trace import IN_PLACE

__all__ = ["makes", "works_in_place", "writes_into"]

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
    flags = (*node.args, node.kwargs.get("inplace"))
    return node.target in IN_PLACE or name.endswith("_") or any(flag is True for flag in flags)


def makes(node: Node, parts: Parts) -> bool:
    """Whether a call gives a tensor of its own, no view of another one."""
    if node.op == "call_module":
        return isinstance(parts[str(node.target)], _LAYERS)
    return node.op == "call_function" and node.target in _FUNCTIONS and "out" not in node.kwargs
