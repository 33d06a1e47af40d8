"""What a call of a module does beside making its result."""

from __future__ import annotations

from torch import fx, nn
from torch.fx.node import Node
from torch.nn.modules.batchnorm import _NormBase

from fastmeta.inner_loop.reading.counters import Counters
from fastmeta.inner_loop.reading.stages import Stages
from fastmeta.inner_loop.reading.trace import IN_PLACE, Unknown, trace

__all__ = ["does_more"]


def does_more(module: nn.Module, stages: Stages) -> str | None:
    """A sentence if a call of the module changes more than the norms of its stages do, or None."""
    counters = Counters(module)
    try:
        graph = trace(nn.Sequential(module))
    except Unknown as unknown:
        return str(unknown)
    if counters.put_back():
        return "its forward counts its calls"
    parts = dict(nn.Sequential(module).named_modules())
    if _norms_called(graph, parts) != len(stages.norms):
        return "it calls norms of which it does not return what they make"
    if _writes_input(graph, parts):
        return "it changes its input in place"
    return None


def _norms_called(graph: fx.Graph, parts: dict[str, nn.Module]) -> int:
    called = [parts[str(n.target)] for n in graph.nodes if n.op == "call_module"]
    return sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in called)


def _writes_input(graph: fx.Graph, parts: dict[str, nn.Module]) -> bool:
    """Whether it may: what is no layer's result may be a view of the input."""
    views: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            views.add(node)
        elif not views.isdisjoint(node.all_input_nodes):
            if _works_in_place(node, parts):
                return True
            layer = parts.get(str(node.target)) if node.op == "call_module" else None
            if not isinstance(layer, _MAKING):
                views.add(node)
    return False


_MAKING = (
    nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear, _NormBase,
    nn.GroupNorm, nn.LayerNorm,
)  # fmt: skip


def _works_in_place(node: Node, parts: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return bool(getattr(parts[str(node.target)], "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_")
    name = getattr(node.target, "__name__", "")
    flags = (*node.args, node.kwargs.get("inplace"))
    return node.target in IN_PLACE or name.endswith("_") or any(flag is True for flag in flags)
