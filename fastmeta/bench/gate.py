"""The correctness gate: nothing is timed before its loss and meta-gradient are right."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastmeta.bench.rivals import Outcome, loop, vmap_forward
from fastmeta.bench.workloads import Problem

# Exact float32 stays under 1e-6 at every workload; first-order MAML is off by 1e-2 or more.
TOLERANCE = 1e-4
LOOPED_TASKS = 64
CHUNK = 256


class Errors(NamedTuple):
    """Relative errors against float64: |a - b| / |b|, for gradients in the maximum norm."""

    loss: float
    gradient: float  # of the worst tensor
    worst: str  # the name of that tensor

    def wrong(self) -> str | None:
        """Why the outcome does not pass, or None."""
        if self.loss > TOLERANCE:
            return f"the loss is off by {self.loss:.1e}"
        if self.gradient > TOLERANCE:
            return f"the meta-gradient of {self.worst} is off by {self.gradient:.1e}"
        return None


def errors(outcome: Outcome, exact: Outcome) -> Errors:
    """Errors of ``outcome`` against the float64 ``exact``; what is missing counts as infinite."""
    by_name = {
        name: _relative_error(outcome.gradients.get(name), value)
        for name, value in exact.gradients.items()
    }
    worst = max(by_name, key=lambda name: by_name[name])
    return Errors(_relative_error(outcome.loss, exact.loss), by_name[worst], worst)


def exact_outcome(problem: Problem) -> Outcome:
    """The outcome in float64, from the Python loop.

    Of many tasks the loop does the first 64. All of them are then done in float64 by vmap of the
    forward with plain autograd outside, which must agree with the loop on those 64.

    Raises:
        RuntimeError: it does not.
    """
    problem = problem.double()
    if problem.workload.tasks <= LOOPED_TASKS:
        return loop.build(problem)()
    start = problem.part(0, LOOPED_TASKS)
    disagreement = errors(_chunked(start), loop.build(start)())
    if max(disagreement.loss, disagreement.gradient) > 1e-10:
        raise RuntimeError(f"the two float64 oracles disagree: {disagreement}")
    return _chunked(problem)


def _chunked(problem: Problem) -> Outcome:
    """vmap forward + autograd in float64, a chunk of tasks at a time: memory stays bounded."""
    tasks = problem.workload.tasks
    parts = [problem.part(start, start + CHUNK) for start in range(0, tasks, CHUNK)]
    shares = [part.workload.tasks / tasks for part in parts]
    outcomes = [vmap_forward.build(part)() for part in parts]
    gradients: dict[str, Any] = {
        name: sum(o.gradients[name] * share for o, share in zip(outcomes, shares, strict=True))
        for name in problem.parameters
    }
    if problem.workload.learns_inputs:
        for name in ("support_x", "query_x"):
            pieces = zip(outcomes, shares, strict=True)
            gradients[name] = torch.cat([o.gradients[name] * share for o, share in pieces])
    loss = sum(o.loss * share for o, share in zip(outcomes, shares, strict=True))
    return Outcome(loss, gradients)


def _relative_error(value: Any, exact: Any) -> float:
    wanted = _as_float64(exact)
    if value is None or (isinstance(value, list) and any(v is None for v in value)):
        return math.inf
    got = _as_float64(value)
    if got.shape != wanted.shape:
        return math.inf
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    return float(error) if np.isfinite(error) else math.inf


def _as_float64(value: Any) -> np.ndarray:
    if isinstance(value, list):
        return np.stack([_as_float64(each) for each in value])
    if isinstance(value, Tensor):
        value = value.detach().numpy()
    return np.asarray(value, dtype=np.float64)
