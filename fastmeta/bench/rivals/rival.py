"""What a rival is: something that builds a meta-step for a problem, or says why it cannot."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.bench.workloads import Problem, Workload


class Outcome(NamedTuple):
    """One meta-step's result: the mean query loss and its gradients by name.

    A gradient is an array of any framework, or a list with one array a task.
    """

    loss: Any
    gradients: dict[str, Any]


Step = Callable[[], Outcome]


def nothing(workload: Workload) -> str | None:
    return None


def anywhere(device: torch.device) -> str | None:
    return None


def never(workload: Workload) -> bool:
    return False


def always(workload: Workload) -> bool:
    return True


@dataclass(frozen=True)
class Rival:
    """A way to compute the meta-step.

    ``build(problem)`` prepares everything that a training loop prepares once and returns the step.
    ``why_not(workload)`` is the reason why the rival cannot run here, or None; it ``compiles`` a
    workload if the first call takes seconds to minutes, anywhere or ``compiles_on_gpus``.
    """

    name: str
    title: str
    build: Callable[[Problem], Step]
    why_not: Callable[[Workload], str | None] = nothing
    compiles: Callable[[Workload], bool] = never
    loops_over_tasks: bool = False  # time is proportional to the number of tasks
    hides_memory: str | None = None  # why resident memory does not show what a step needs
    why_not_on: Callable[[torch.device], str | None] = anywhere  # likewise, for a device
    compiles_on_gpus: bool = False  # every workload


class Leaves(NamedTuple):
    """The tensors of a problem, those that are learned requiring grad."""

    parameters: dict[str, Tensor]
    support_x: Tensor
    query_x: Tensor
    learned: dict[str, Tensor]

    def clear(self) -> None:
        for leaf in self.learned.values():
            leaf.grad = None

    def gradients(self) -> dict[str, Tensor | None]:
        return {name: leaf.grad for name, leaf in self.learned.items()}


def make_leaves(problem: Problem, parameters: dict[str, Tensor] | None = None) -> Leaves:
    """The problem's leaves; ``parameters``: those of a module instead of copies."""
    if parameters is None:
        parameters = {name: p.clone().requires_grad_() for name, p in problem.parameters.items()}
    learns_inputs = problem.workload.learns_inputs
    support_x = problem.support_x.detach().requires_grad_(learns_inputs)
    query_x = problem.query_x.detach().requires_grad_(learns_inputs)
    inputs = {"support_x": support_x, "query_x": query_x} if learns_inputs else {}
    return Leaves(parameters, support_x, query_x, {**parameters, **inputs})


def needs(package: str) -> Callable[[Workload], str | None]:
    """``why_not`` of a rival that uses an optional package."""

    def why_not(workload: Workload) -> str | None:
        try:
            importlib.import_module(package)
        except ImportError as error:
            return f"{package} cannot be imported: {error}"
        return None

    return why_not


def needs_compiler(workload: Workload) -> str | None:
    """``why_not`` of a rival that uses ``torch.compile``."""
    candidates = [os.environ.get("CXX"), "g++", "clang++", "cl"]
    if any(name and shutil.which(name) for name in candidates):
        return None
    return "torch.compile needs a C++ compiler, and none was found"
