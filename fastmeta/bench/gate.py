"""The correctness gate: nothing is timed before its loss and meta-gradient are right."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastmeta.bench.device import CPU
from fastmeta.bench.rivals import Outcome, Rival, loop, vmap_forward
from fastmeta.bench.workloads import BLOCKS, Problem, Workload, make_problem

# Exact float32 stays under 1e-6 without images and under 1e-5 with few of them; first-order MAML is
# off by 1e-2 or more, wrongly vmapped norms by 5e-4 or more.
TOLERANCE = 1e-4
# What float32 decides otherwise has moved the meta-gradient of whole workloads by up to 0.07, their
# loss by 1e-5; first-order MAML is off by 0.3 or more.
COARSE_GRADIENT, COARSE_LOSS = 0.2, 1e-2
ZERO = 1e-10
LOOPED_TASKS = 64
CHUNK, GPU_CHUNK = 256, 8192
FEW_PIXELS, FEWEST_PIXELS = 28, 1 << BLOCKS  # for Conv4, and for what decides more often
DRAWS = 6


class Errors(NamedTuple):
    """Relative errors against float64: |a - b| / |b|, for gradients in the maximum norm."""

    loss: float
    gradient: float  # of the worst tensor
    worst: str  # the name of that tensor
    overall: float  # of all gradients as one vector, in the Euclidean norm

    def wrong(self) -> str | None:
        """Why the outcome does not pass, or None."""
        if self.loss > TOLERANCE:
            return f"the loss is off by {self.loss:.1e}"
        if self.gradient > TOLERANCE:
            return f"the meta-gradient of {self.worst} is off by {self.gradient:.1e}"
        return None

    def far_off(self) -> str | None:
        """Why what float32 decided otherwise cannot explain the outcome, or None."""
        if self.loss > COARSE_LOSS:
            return f"the loss is off by {self.loss:.1e}"
        if self.overall > COARSE_GRADIENT:
            return f"the meta-gradient is off by {self.overall:.1e}"
        return None


class Verdict(NamedTuple):
    """``reason``: why the rival does not pass, or None."""

    errors: Errors
    whole_error: float | None  # `Errors.overall` of the whole workload where `errors` are not
    reason: str | None


def judge(
    rival: Rival,
    workload: Workload,
    outcome: Outcome,
    exact: Outcome,
    device: torch.device = CPU,
) -> Verdict:
    """Is a rival right, judged by its outcome at a workload?

    On images ReLU and max-pool decide millions of times, some near a tie, where float32 may decide
    otherwise than float64, and one such decision can move the meta-gradient by percents. So the
    whole workload is judged coarsely, and the rival by its errors on few samples and pixels, at the
    first of some draws on which it is right, if there is one.
    """
    found = errors(outcome, exact)
    if not workload.image:
        return Verdict(found, None, found.wrong())
    on_few_samples = _errors_on_few_samples(rival, _few_samples(workload), device)
    reason = on_few_samples.wrong() or found.far_off()
    return Verdict(on_few_samples, found.overall, reason)


def _few_samples(workload: Workload) -> Workload:
    channels, size, _ = workload.image
    residual = workload.blocks == "residual"
    size = min(size, FEWEST_PIXELS if residual else FEW_PIXELS)
    features = workload.filters * (size >> BLOCKS) ** 2
    return replace(
        workload,
        name="few-samples",
        sizes=workload.sizes if residual else (features, *workload.sizes[1:]),
        image=(channels, size, size),
        tasks=min(workload.tasks, 2),
        support=5,
        query=5,
        steps=min(workload.steps, 2),
    )


@cache
def _errors_on_few_samples(rival: Rival, workload: Workload, device: torch.device) -> Errors:
    """At the first draw where the rival is right, or else at the one where it is closest."""
    found = []
    for seed in range(DRAWS):
        outcome = rival.build(make_problem(workload, seed, device))()
        found.append(errors(outcome, _exact_on_few_samples(workload, seed, device)))
        if found[-1].wrong() is None:
            break
    return min(found, key=lambda each: max(each.loss, each.gradient))


@cache
def _exact_on_few_samples(workload: Workload, seed: int, device: torch.device) -> Outcome:
    return exact_outcome(make_problem(workload, seed, device))


def errors(outcome: Outcome, exact: Outcome) -> Errors:
    """Errors of ``outcome`` against the float64 ``exact``; what is missing counts as infinite."""
    scales = _scales(exact.gradients)
    by_name = {
        name: relative_error(outcome.gradients.get(name), value, scales[name])
        for name, value in exact.gradients.items()
    }
    worst = max(by_name, key=lambda name: by_name[name])
    loss = relative_error(outcome.loss, exact.loss)
    overall = math.inf if math.isinf(by_name[worst]) else _overall(outcome, exact)
    return Errors(loss, by_name[worst], worst, overall)


def _scales(exact: dict[str, Any]) -> dict[str, float]:
    """What the error of each gradient is relative to: its own size.

    A gradient that is zero to rounding in float64, as that of a bias before batch norm, has none,
    and is held against the largest of all.
    """
    sizes = {name: _size(value) for name, value in exact.items()}
    largest = max(sizes.values())
    return {name: size if size > ZERO * largest else largest for name, size in sizes.items()}


def _overall(outcome: Outcome, exact: Outcome) -> float:
    difference, size = 0.0, 0.0
    for name, value in exact.gradients.items():
        wanted = _as_float64(value)
        difference += float(((_as_float64(outcome.gradients[name]) - wanted) ** 2).sum())
        size += float((wanted**2).sum())
    return math.sqrt(difference / size)


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
    chunk = GPU_CHUNK if problem.device.type == "cuda" else CHUNK
    parts = [problem.part(start, start + chunk) for start in range(0, tasks, chunk)]
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


def relative_error(value: Any, exact: Any, scale: float | None = None) -> float:
    """|value - exact| / scale in the maximum norm; infinite where something is missing.

    ``scale``: by default the size of ``exact``.
    """
    if value is None or (isinstance(value, list) and any(v is None for v in value)):
        return math.inf
    got, wanted = _as_float64(value), _as_float64(exact)
    if got.shape != wanted.shape:
        return math.inf
    error = np.abs(got - wanted).max() / (_size(exact) if scale is None else scale)
    return float(error) if np.isfinite(error) else math.inf


def _size(value: Any) -> float:
    return float(np.abs(_as_float64(value)).max())


def _as_float64(value: Any) -> np.ndarray:
    if isinstance(value, list):
        return np.stack([_as_float64(each) for each in value])
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=np.float64)
