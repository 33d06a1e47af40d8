"""Networks of layers over pixels with arithmetic on each sample's numbers above them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.fx.node import Node

from fastmeta.functional.forward import has_hooks, module_lock
from fastmeta.functional.row_programs import Step, Unreadable
from fastmeta.inner_loop.arithmetic.written import Written, read_head
from fastmeta.inner_loop.reading.calls import Call, calls_until, described
from fastmeta.inner_loop.reading.cuts import after, lone_results
from fastmeta.inner_loop.reading.layers import likely_samples, misshapen, unlike_parameters
from fastmeta.inner_loop.reading.stage_builder import StageBuilder
from fastmeta.inner_loop.reading.stages import Stages, finished
from fastmeta.inner_loop.reading.trace import Unknown, check_traceable, own_name, trace
from fastmeta.inner_loop.reading.unused import without_unused
from fastmeta.inner_loop.reading.watched import watched

__all__ = ["Headed", "headed_for_some", "headed_of"]


@dataclass(frozen=True)
class Headed:
    """A module as the native kernels see it, for samples of one shape.

    Attributes:
        below: the stages.
        above: what is made of the features that the last of them gives, its names aside.
        names: the module's parameters and buffers, first those of the stages.
    """

    below: Stages
    above: Written
    names: tuple[str, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """Those above, with indices into all names."""
        return tuple(_moved(step, len(self.below.names)) for step in self.above.steps)

    @property
    def buffers(self) -> tuple[str, ...]:
        return (*self.below.buffers, *self.above.buffers)

    @property
    def tables(self) -> tuple[tuple[str, Any], ...]:
        return self.above.tables

    @property
    def shape(self) -> tuple[int, ...]:
        return self.above.shape

    @property
    def outputs(self) -> int:
        return self.above.outputs

    @property
    def fewest(self) -> int:
        return max(self.below.fewest, self.above.fewest)

    @property
    def squeezes(self) -> bool:
        return self.below.squeezes or self.above.fewest > 1


def _moved(step: Step, first: int) -> Step:
    op, a, b, c, x, y, width = step
    if op == "linear":
        return op, a, b + first, c + first if c >= 0 else c, x, y, width
    return (op, a, b + first, c, x, y, width) if op == "parameter" else step


def headed_of(module: nn.Module, sample: Sequence[int]) -> Headed | str | None:
    """Stages and what stands above them, for samples of a shape.

    A sentence where what stands above is no arithmetic, None where no stages come first.
    """
    if any(has_hooks(part) for part in module.modules()):
        return None
    root = nn.Sequential(module)
    try:
        with module_lock, watched(module, again=lambda: described(trace(root))) as surroundings:
            check_traceable(surroundings)
            return _Cutter(root, module, sample).cut()
    except Unknown:  # which a reading as layers alone has told of
        return None


def headed_for_some(module: nn.Module) -> bool:
    """Whether it is such a network for samples of a likely shape."""
    return any(isinstance(headed_of(module, sample), Headed) for sample in likely_samples(module))


class _Cutter:
    """Cuts a traced forward where one result alone goes on; raises Unknown."""

    def __init__(self, root: nn.Module, module: nn.Module, sample: Sequence[int]) -> None:
        self._root, self._module, self._sample = root, module, tuple(sample)
        self._graph = without_unused(trace(root), root)

    def cut(self) -> Headed | str | None:
        """At the last place that leaves stages below and a forward of rows above.

        If none does, why what stands above the last stages is no such forward.
        """
        calls, results = calls_until(self._graph, self._root)
        places = [node for node in lone_results(self._graph) if node in results]
        said: str | None = None
        for node in reversed(places):
            below = self._stages(calls[: results[node] + 1])
            if isinstance(below, str):
                continue
            stages, features = below
            if not any(map(_is_no_arithmetic, stages.stages)):
                break
            try:
                return self._headed(stages, self._above(node, features))
            except Unreadable as reason:
                said = said or str(reason)
        return said

    def _stages(self, calls: Sequence[Call]) -> tuple[Stages, tuple[int, ...]] | str:
        shapes = misshapen(self._module, [(call.layer, call.parameters) for call in calls])
        if shapes is not None:
            return shapes
        builder = StageBuilder(self._module, self._sample)
        for call in calls:
            reason = builder.add(call)
            if reason is not None:
                return reason
        stages = finished(builder)
        return stages if isinstance(stages, str) else (stages, stages.shape)

    def _above(self, node: Node, features: Sequence[int]) -> Written:
        head = fx.GraphModule(self._root, after(self._graph, node))
        return read_head(head, features, self._names(head))

    def _names(self, head: nn.Module) -> dict[str, str]:
        """The module's names of the head's parameters and buffers."""
        own = (*self._module.named_parameters(), *self._module.named_buffers())
        names = {id(tensor): name for name, tensor in own}
        known = (*head.named_parameters(), *head.named_buffers())
        return {name: names.get(id(tensor), own_name(name)) for name, tensor in known}

    def _headed(self, below: Stages, above: Written) -> Headed:
        names = (*below.names, *above.names)
        parameters = [name for name in names if name not in above.buffers]
        unlike = unlike_parameters(self._module, parameters)
        if unlike is not None:
            raise Unreadable(unlike)
        return Headed(below, above, names)


def _is_no_arithmetic(stage: Mapping[str, Any]) -> bool:
    return stage["h"] * stage["w"] > 1 or stage["norm"] == "batch"
