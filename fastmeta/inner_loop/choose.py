"""One predicate decides which engine runs, and says why not the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fastmeta.backends import requested_backend
from fastmeta.inner_loop.checks import backward_hooks
from fastmeta.inner_loop.engines import layered, reference, resident, stepwise, vmap
from fastmeta.inner_loop.loop import InnerLoop, Rates
from fastmeta.tasks import TaskBatch
from fastmeta.words import one_of

__all__ = ["ENGINES", "Choice", "Engine", "choose"]


class Engine(Protocol):
    """A module that runs inner loops. The resident engine has `accumulate_gradients`, too."""

    def can_run(
        self,
        loop: InnerLoop,
        tasks: TaskBatch | None,
        parameters: Mapping[str, Tensor],
        rates: Rates,
    ) -> str | None:
        """None, or the reason why not as a sentence; with no tasks, what holds for any."""

    def adapt(
        self, loop: InnerLoop, parameters: Mapping[str, Tensor], rates: Rates, tasks: TaskBatch
    ) -> dict[str, Tensor]:
        """Every parameter by name; those that adapt [T, *shape], the others as given.

        Of the tasks it reads the support alone.
        """

    def meta_loss(
        self, loop: InnerLoop, parameters: Mapping[str, Tensor], rates: Rates, tasks: TaskBatch
    ) -> tuple[Tensor, Tensor]:
        """The query loss [T] and predictions [T, Q, O] of the adapted tasks."""


# Fastest first.
ENGINES: dict[str, Engine] = {
    "resident": resident, "stepwise": stepwise, "layered": layered, "vmap": vmap
}  # fmt: skip
# The engine that runs a backend's kernels.
_ENGINE_OF_BACKEND = {"cpu": "resident", "cuda": "resident", "triton": "layered"}


@dataclass(frozen=True)
class Choice:
    """The engine that runs an inner loop, and why not the others.

    Attributes:
        name: of the engine.
        engine: its module.
        passed_over: a sentence for each other engine.
        depends: whether certain tasks may run on another, since none were looked at.
    """

    name: str
    engine: Engine
    passed_over: dict[str, str]
    depends: bool = False

    def __str__(self) -> str:
        lines = [f"engine: {self.name}"]
        lines += [f"  not {name}: {reason}" for name, reason in self.passed_over.items()]
        if self.depends:
            lines.append(
                "  without tasks: their shapes, and what the loss makes of them, may need another "
                "engine; fastmeta.explain(meta, tasks) looks at them"
            )
        return "\n".join(lines)


def check_engine(engine: str) -> None:
    """ValueError unless `engine` is "auto" or the name of one."""
    names = ("auto", *ENGINES, "reference")
    if engine not in names:
        raise ValueError(one_of("engine", engine, names))


def choose(
    loop: InnerLoop,
    tasks: TaskBatch | None,
    parameters: Mapping[str, Tensor],
    rates: Rates,
    engine: str = "auto",
) -> Choice:
    """The engine for an inner loop: the backend that is in force, else `engine`, else the fastest.

    Args:
        loop, parameters, rates: as the engine would get them.
        tasks: a batch like the one to come, or None where nothing is known of it.
        engine: "auto", "resident", "stepwise", "layered", "vmap" or "reference".

    Raises:
        ValueError: the backend or engine that is demanded cannot run this, with the reason.
    """
    check_engine(engine)
    backend = requested_backend()
    if "reference" in (backend, engine) and loop.precision != "fp32":
        raise ValueError(f'precision="{loop.precision}" is of Triton kernels, not of the reference')
    if backend == "reference":
        return _only("reference", 'the backend "reference" is in force')
    if backend is not None:
        engine = _engine_for(backend, engine)
    if engine == "reference":
        return _only("reference", 'engine="reference" was asked for')
    if engine != "auto":
        reason = _reason(engine, loop, tasks, parameters, rates)
        if reason is not None:
            raise ValueError(f'the engine "{engine}" was demanded but cannot run this: {reason}')
        return _only(engine, f'"{engine}" was asked for')
    return _fastest(loop, tasks, parameters, rates)


def _fastest(
    loop: InnerLoop, tasks: TaskBatch | None, parameters: Mapping[str, Tensor], rates: Rates
) -> Choice:
    passed_over: dict[str, str] = {}
    for name, engine in ENGINES.items():
        reason = _reason(name, loop, tasks, parameters, rates)
        if reason is None:
            later = (n for n in (*ENGINES, "reference") if n != name and n not in passed_over)
            passed_over |= dict.fromkeys(later, f"not asked: {name} comes first")
            return Choice(name, engine, passed_over, depends=tasks is None)
        passed_over[name] = reason
    if loop.precision != "fp32":
        raise ValueError(
            f'no engine can run this with precision="{loop.precision}"; '
            f"layered: {passed_over['layered']}"
        )
    return Choice("reference", reference, passed_over)


def _reason(
    name: str,
    loop: InnerLoop,
    tasks: TaskBatch | None,
    parameters: Mapping[str, Tensor],
    rates: Rates,
) -> str | None:
    """Why an engine cannot run this, or None."""
    if loop.precision != "fp32" and name != "layered":
        return f'precision="{loop.precision}" is of the Triton kernels, which it does not use'
    return backward_hooks(loop.module) or ENGINES[name].can_run(loop, tasks, parameters, rates)


def _engine_for(backend: str, engine: str) -> str:
    needed = _ENGINE_OF_BACKEND[backend]
    if engine not in ("auto", needed):
        raise ValueError(
            f'the backend "{backend}" is in force and runs engine="{needed}", not "{engine}"'
        )
    return needed


def _only(name: str, reason: str) -> Choice:
    modules: dict[str, Engine] = {**ENGINES, "reference": reference}
    return Choice(name, modules[name], {other: reason for other in modules if other != name})
