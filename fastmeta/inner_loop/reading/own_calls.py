"""What a call of a module does beside making its result."""

from __future__ import annotations

from torch import fx, nn

from fastmeta.inner_loop.reading.counters import Counters
from fastmeta.inner_loop.reading.in_place import writes_into
from fastmeta.inner_loop.reading.stages import Stages
from fastmeta.inner_loop.reading.trace import Unknown, trace

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
    (x,) = [node for node in graph.nodes if node.op == "placeholder"]
    if writes_into(x, graph.nodes, parts):
        return "it changes its input in place"
    return None


def _norms_called(graph: fx.Graph, parts: dict[str, nn.Module]) -> int:
    called = [parts[str(n.target)] for n in graph.nodes if n.op == "call_module"]
    return sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in called)
