"""One point: the gate, then the race, then where the time went."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fastmeta.bench.ceilings import Ceilings, measure_ceilings
from fastmeta.bench.device import CPU, peak_memory, waits_for, work_of
from fastmeta.bench.flops import useful_flops
from fastmeta.bench.gate import TOLERANCE, exact_outcome, judge
from fastmeta.bench.kits import Single, kit_of
from fastmeta.bench.memory import peak_bytes
from fastmeta.bench.results import Entry, Point
from fastmeta.bench.rivals import (
    FASTMETA,
    FASTMETA_DIRECT,
    FASTMETA_GRAPH,
    Outcome,
    Rival,
    Step,
    engine,
)
from fastmeta.bench.roofline import autograd_seconds, native_share, one_thread_seconds
from fastmeta.bench.timing import Timing, measure, seconds_of
from fastmeta.bench.workloads import Problem, Workload, make_problem

# A loop over tasks that would take too long is timed on so many of them.
PART = 64
OPERATION_SECONDS = 1.0
# The profiler takes seconds for the events of a loop over many tasks.
LONGEST_PROFILED_S = 0.5

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How a run measures.

    ``quick``: without memory. ``compiles``: also rivals that take seconds to minutes to compile.
    ``longest_step``: of a loop over all tasks, in seconds.
    """

    seconds: float
    longest_step: float
    threads: int
    quick: bool
    compiles: bool
    progress: Progress
    device: torch.device = CPU

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


def measure_workload(workload: Workload, rivals: Sequence[Rival], settings: Settings) -> Point:
    """Fastmeta and its rivals at a workload."""
    torch.compiler.reset()  # each workload compiles anew, far from the limit on recompilations
    settings.progress(f"{workload.name}: float64 reference")
    race = _Race(make_problem(workload, device=settings.device), settings)
    ceilings = measure_ceilings(settings.device)
    everyone = (FASTMETA, FASTMETA_GRAPH if settings.on_gpu else FASTMETA_DIRECT, *rivals)
    entries = [race.enter(rival) for rival in everyone]
    settings.progress(f"{workload.name}: timing {', '.join(race.steps)}")
    timings = measure(race.steps, settings.seconds, waits_for(settings.device))
    for entry in entries:
        if entry.name in timings:
            _write_timing(entry, timings[entry.name], workload.tasks)
            _write_work(entry, race.steps[entry.name], settings.device)
    point = Point(
        workload=workload,
        engine=engine(workload, settings.device),
        useful_flops=useful_flops(workload),
        data_bytes=race.problem.data_bytes,
        ceilings=ceilings,
        entries=entries,
    )
    if FASTMETA.name in race.steps and not settings.on_gpu:
        point.roofline = _roofline(race, settings)
    if not settings.quick and not settings.on_gpu:
        for rival, entry in zip(everyone, entries, strict=True):
            _measure_memory(rival, entry, workload, settings)
    return point


class _Race:
    """The rivals at one workload: who passed the gate gets to ``steps``."""

    def __init__(self, problem: Problem, settings: Settings) -> None:
        self.problem = problem
        self.settings = settings
        self.steps: dict[str, Step] = {}
        self._exact = {problem.workload.tasks: exact_outcome(problem)}

    def enter(self, rival: Rival) -> Entry:
        """Build the rival, run it once, and let it through the gate if it is right."""
        entry = Entry(rival.name, rival.title, "timed")
        reason = self._why_not(rival)
        if reason is not None:
            entry.status, entry.reason = "skipped", reason
            return entry
        self.settings.progress(f"{self.problem.workload.name}: {rival.name}")
        try:
            step, outcome = self._first_call(rival, entry)
            entry.reason = self._judge(rival, outcome, entry)
        except Exception as error:  # a rival may break on any version: its row says so
            entry.status, entry.reason = "failed", _one_line(error)
            return entry
        if entry.reason is None:
            self.steps[rival.name] = step
        else:
            entry.status = "wrong"
        return entry

    def _why_not(self, rival: Rival) -> str | None:
        workload = self.problem.workload
        compiles = rival.compiles(workload) or (self.settings.on_gpu and rival.compiles_on_gpus)
        if compiles and not self.settings.compiles:
            return "a quick run leaves out what compiles; --rival asks for it"
        return rival.why_not(workload) or rival.why_not_on(self.settings.device)

    def _first_call(self, rival: Rival, entry: Entry) -> tuple[Step, Outcome]:
        problem = self._affordable(rival)
        entry.measured_tasks = problem.workload.tasks
        entry.extrapolated = problem is not self.problem
        if self.settings.on_gpu:
            torch.cuda.empty_cache()  # graphs keep memory that the cache does not see
        start = time.perf_counter()
        with peak_memory(self.settings.device) as peak:
            step = rival.build(problem)
            outcome = step()
        entry.first_call_s = time.perf_counter() - start
        entry.memory_reason = rival.hides_memory
        entry.peak_bytes = peak.bytes if rival.hides_memory is None else None
        return step, outcome

    def _affordable(self, rival: Rival) -> Problem:
        """The problem, or a part of it for a loop over tasks that would take too long."""
        tasks = self.problem.workload.tasks
        if not rival.loops_over_tasks or tasks <= PART:
            return self.problem
        part = self.problem.part(0, PART)
        step = rival.build(part)
        step()
        predicted = seconds_of(step, waits_for(self.settings.device)) * tasks / PART
        return part if predicted > self.settings.longest_step else self.problem

    def _judge(self, rival: Rival, outcome: Outcome, entry: Entry) -> str | None:
        tasks = entry.measured_tasks
        assert tasks is not None
        if tasks not in self._exact:
            self._exact[tasks] = exact_outcome(self.problem.part(0, tasks))
        verdict = judge(
            rival, self.problem.workload, outcome, self._exact[tasks], self.settings.device
        )
        entry.loss_error = _finite(verdict.errors.loss)
        entry.gradient_error = _finite(verdict.errors.gradient)
        entry.whole_error = _finite(verdict.whole_error)
        return verdict.reason


def _finite(error: float | None) -> float | None:
    """JSON has no infinity; the reason tells what is missing."""
    return error if error is not None and math.isfinite(error) else None


def _write_timing(entry: Entry, timing: Timing, tasks: int) -> None:
    assert entry.measured_tasks is not None
    scale = tasks / entry.measured_tasks
    entry.median_s, entry.low_s = timing.median * scale, timing.low * scale
    entry.high_s, entry.fastest_s = timing.high * scale, timing.fastest * scale
    entry.samples, entry.calls_per_sample = timing.samples, timing.calls_per_sample


def _write_work(entry: Entry, step: Callable[[], Any], device: torch.device) -> None:
    if entry.median_s is None or entry.median_s > LONGEST_PROFILED_S:
        return
    work = work_of(step, device)
    if work is not None:
        entry.launches, entry.kernels, entry.busy_s = work


def _roofline(race: _Race, settings: Settings) -> dict[str, float | None]:
    step, seconds = race.steps[FASTMETA.name], settings.seconds / 3
    return {
        "native_share": native_share(race.problem, seconds),
        "autograd_s": autograd_seconds(race.problem, seconds),
        "one_thread_s": one_thread_seconds(step, seconds) if settings.threads > 1 else None,
    }


def _measure_memory(rival: Rival, entry: Entry, workload: Workload, settings: Settings) -> None:
    if entry.status != "timed" or entry.measured_tasks is None:
        return
    entry.memory_reason = rival.hides_memory
    if entry.memory_reason is not None:
        return
    settings.progress(f"{workload.name}: memory of {entry.name}")
    part = replace(workload, tasks=entry.measured_tasks)
    try:
        entry.peak_bytes = peak_bytes(part, entry.name, settings.threads)
    except RuntimeError as error:
        entry.memory_reason = str(error)


def measure_operation(operation: Single, settings: Settings) -> Point:
    """Fastmeta and others at a single operation; in a quick run without those that compile."""
    torch.compiler.reset()
    settings.progress(operation.name)
    kit = kit_of(operation)
    everyone: tuple[Any, ...] = kit.contestants(operation, settings.device)
    arrays = kit.make_arrays(operation)
    arrays = type(arrays)(*(each.to(settings.device) for each in arrays))
    exact = kit.exact_result(operation, arrays)
    ceilings = measure_ceilings(settings.device)
    entries, calls = [], {}
    for contestant in everyone:
        if contestant.why_not(operation) or (settings.quick and contestant.compiles):
            entries.append(_skipped(contestant, operation))
            continue
        settings.progress(f"{operation.name}: {contestant.name}")
        try:
            call = contestant.build(operation, arrays)
        except Exception as error:  # one that is not for this device, say
            failed = Entry(contestant.name, contestant.title, "failed", _one_line(error))
            entries.append(failed)
            continue
        entries.append(_operation_entry(contestant, operation, call, exact))
        if entries[-1].reason is None:
            calls[contestant.name] = call
    seconds = min(settings.seconds, OPERATION_SECONDS)
    timings = measure(calls, seconds, waits_for(settings.device))
    for entry in entries:
        if entry.name in timings:
            _write_timing(entry, timings[entry.name], operation.tasks)
            _write_work(entry, calls[entry.name], settings.device)
    return Point(
        workload=operation,
        engine=None,
        useful_flops=operation.useful_flops,
        data_bytes=arrays.data_bytes,
        ceilings=ceilings,
        entries=entries,
    )


def _skipped(contestant: Any, operation: Any) -> Entry:
    reason = contestant.why_not(operation) or "not in a quick run"
    return Entry(contestant.name, contestant.title, "skipped", reason)


def _operation_entry(
    contestant: Any, operation: Any, call: Callable[[], Any], exact: list[torch.Tensor]
) -> Entry:
    entry = Entry(contestant.name, contestant.title, "timed", measured_tasks=operation.tasks)
    start = time.perf_counter()
    try:
        result = call()
    except Exception as problem:  # torch.compile may break on any version: the row says so
        entry.status, entry.reason = "failed", _one_line(problem)
        return entry
    entry.first_call_s = time.perf_counter() - start
    error = contestant.error(operation, result, exact)
    entry.gradient_error = _finite(error)
    if error > TOLERANCE:
        entry.status, entry.reason = "wrong", f"the result is off by {error:.1e}"
    return entry


def derive(point: Point, best: Ceilings) -> None:
    """Write the rates and ratios that follow from the times.

    Ratios are to fastmeta called in the usual way, on a GPU or in a CUDA graph of that.
    """
    timed = [entry for entry in point.entries if entry.median_s]
    ours = [entry for entry in timed if entry.name in (FASTMETA.name, FASTMETA_GRAPH.name)]
    fastest_of_ours = min((entry.median_s or math.inf for entry in ours), default=None)
    for entry in timed:
        assert entry.median_s is not None
        entry.useful_flops_per_s = point.useful_flops / entry.median_s
        entry.share_of_mm = entry.useful_flops_per_s / best.mm
        if fastest_of_ours:
            entry.times_fastmeta = entry.median_s / fastest_of_ours
    rivals = [e for e in timed if e not in ours and e.name != FASTMETA_DIRECT.name]
    if rivals:
        fastest = min(rivals, key=lambda entry: entry.median_s or math.inf)
        point.best_rival, point.times_best_rival = fastest.name, fastest.times_fastmeta
    point.roofline["arithmetic_s"] = point.useful_flops / best.mm
    point.roofline["data_s"] = point.data_bytes / best.copy


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"
