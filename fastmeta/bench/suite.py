"""The suite: for each workload the gate, then the race, then where the time went."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from fastmeta.bench.ceilings import Ceilings, measure_ceilings
from fastmeta.bench.flops import useful_flops
from fastmeta.bench.gate import errors, exact_outcome
from fastmeta.bench.machine import describe_machine, only_cores
from fastmeta.bench.memory import peak_bytes
from fastmeta.bench.results import SCHEMA, Entry, Point
from fastmeta.bench.rivals import FASTMETA, RIVALS, Outcome, Rival, Step, engine
from fastmeta.bench.roofline import native_share, one_thread_seconds
from fastmeta.bench.timing import Timing, measure, seconds_of
from fastmeta.bench.workloads import SMALL, WORKLOADS, Problem, Workload, make_problem, sinusoid

SECONDS, QUICK_SECONDS = 3.0, 0.3
# A loop over tasks is timed on 64 of them where one step on all would take longer than this.
LONGEST_STEP_S, QUICK_LONGEST_STEP_S = 10.0, 1.0
PART = 64

Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Settings:
    seconds: float
    longest_step: float
    threads: int
    memory: bool
    progress: Progress


def run(
    workloads: Sequence[str] | None = None,
    rivals: Sequence[str] | None = None,
    quick: bool = False,
    seconds: float | None = None,
    *,
    progress: Progress = lambda line: print(line, file=sys.stderr, flush=True),
) -> dict[str, Any]:
    """Measure fastmeta and its rivals, with ``torch.get_num_threads()`` threads for everyone.

    Args:
        workloads: names, see ``WORKLOADS``; default: all, or the small ones if ``quick``.
        rivals: names, see ``RIVALS``; default: all, or those that do not compile if ``quick``.
        quick: the small workloads for a short time, without memory.
        seconds: time for one rival at one workload.
        progress: is told what goes on, a line at a time.

    Returns:
        What ``format_table`` and ``write_json`` take: ``results.Point`` for each workload, the
        ceilings, the machine, and notes.

    Raises:
        ValueError: an unknown workload or rival.
    """
    instant = [name for name, rival in RIVALS.items() if not rival.compiles]
    chosen_workloads = _chosen("workload", WORKLOADS, workloads, SMALL if quick else WORKLOADS)
    chosen_rivals = _chosen("rival", RIVALS, rivals, instant if quick else RIVALS)
    settings = _Settings(
        seconds=seconds or (QUICK_SECONDS if quick else SECONDS),
        longest_step=QUICK_LONGEST_STEP_S if quick else LONGEST_STEP_S,
        threads=torch.get_num_threads(),
        memory=not quick,
        progress=progress,
    )
    machine = describe_machine(settings.threads)
    with only_cores(settings.threads), _fresh_compile_cache():
        points = [_point(workload, chosen_rivals, settings) for workload in chosen_workloads]
        in_steps = _memory_in_steps(settings) if settings.memory and workloads is None else None
    best = Ceilings(*(max(column) for column in zip(*(p.ceilings for p in points), strict=True)))
    for point in points:
        _derive(point, best)
    return {
        "schema": SCHEMA,
        "machine": machine,
        "settings": {"quick": quick, "seconds": settings.seconds, "threads": settings.threads},
        "ceilings": {"mm_flops_per_s": best.mm, "copy_bytes_per_s": best.copy},
        "points": [asdict(point) for point in points],
        "memory_in_steps": in_steps,
        "notes": _notes(points, chosen_rivals),
    }


def _chosen(
    kind: str, known: Mapping[str, Any], names: Sequence[str] | None, default: Iterable[str]
) -> list[Any]:
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"unknown {kind} {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in (default if names is None else names)]


# ---- one workload ------------------------------------------------------------------------------


def _point(workload: Workload, rivals: Sequence[Rival], settings: _Settings) -> Point:
    torch.compiler.reset()  # each workload compiles anew, far from the limit on recompilations
    settings.progress(f"{workload.name}: float64 reference")
    race = _Race(make_problem(workload), settings)
    ceilings = measure_ceilings()
    entries = [race.enter(rival) for rival in (FASTMETA, *rivals)]
    settings.progress(f"{workload.name}: timing {', '.join(race.steps)}")
    timings = measure(race.steps, settings.seconds)
    for entry in entries:
        if entry.name in timings:
            _write_timing(entry, timings[entry.name], workload.tasks)
    point = Point(
        workload=workload,
        engine=engine(workload),
        useful_flops=useful_flops(workload),
        data_bytes=race.problem.data_bytes,
        ceilings=ceilings,
        entries=entries,
    )
    if FASTMETA.name in race.steps:
        point.roofline = _roofline(race, settings)
    if settings.memory:
        for rival, entry in zip((FASTMETA, *rivals), entries, strict=True):
            _measure_memory(rival, entry, workload, settings)
    return point


class _Race:
    """The rivals at one workload: who passed the gate gets to ``steps``."""

    def __init__(self, problem: Problem, settings: _Settings) -> None:
        self.problem = problem
        self.settings = settings
        self.steps: dict[str, Step] = {}
        self._exact = {problem.workload.tasks: exact_outcome(problem)}

    def enter(self, rival: Rival) -> Entry:
        """Build the rival, run it once, and let it through the gate if it is right."""
        entry = Entry(rival.name, rival.title, "timed")
        reason = rival.why_not(self.problem.workload)
        if reason is not None:
            entry.status, entry.reason = "skipped", reason
            return entry
        self.settings.progress(f"{self.problem.workload.name}: {rival.name}")
        try:
            step, outcome = self._first_call(rival, entry)
        except Exception as error:  # a rival may break on any version: its row says so
            entry.status, entry.reason = "failed", _one_line(error)
            return entry
        entry.reason = self._judge(outcome, entry)
        if entry.reason is None:
            self.steps[rival.name] = step
        else:
            entry.status = "wrong"
        return entry

    def _first_call(self, rival: Rival, entry: Entry) -> tuple[Step, Outcome]:
        problem = self._affordable(rival)
        entry.measured_tasks = problem.workload.tasks
        entry.extrapolated = problem is not self.problem
        start = time.perf_counter()
        step = rival.build(problem)
        outcome = step()
        entry.first_call_s = time.perf_counter() - start
        return step, outcome

    def _affordable(self, rival: Rival) -> Problem:
        """The problem, or a part of it for a loop over tasks that would take too long."""
        tasks = self.problem.workload.tasks
        if not rival.loops_over_tasks or tasks <= PART:
            return self.problem
        part = self.problem.part(0, PART)
        step = rival.build(part)
        step()
        predicted = seconds_of(step) * tasks / PART
        return part if predicted > self.settings.longest_step else self.problem

    def _judge(self, outcome: Outcome, entry: Entry) -> str | None:
        tasks = entry.measured_tasks
        assert tasks is not None
        if tasks not in self._exact:
            self._exact[tasks] = exact_outcome(self.problem.part(0, tasks))
        found = errors(outcome, self._exact[tasks])
        # JSON has no infinity; the reason tells what is missing.
        entry.loss_error = found.loss if math.isfinite(found.loss) else None
        entry.gradient_error = found.gradient if math.isfinite(found.gradient) else None
        return found.wrong()


def _write_timing(entry: Entry, timing: Timing, tasks: int) -> None:
    assert entry.measured_tasks is not None
    scale = tasks / entry.measured_tasks
    entry.median_s, entry.low_s = timing.median * scale, timing.low * scale
    entry.high_s, entry.fastest_s = timing.high * scale, timing.fastest * scale
    entry.samples, entry.calls_per_sample = timing.samples, timing.calls_per_sample


def _roofline(race: _Race, settings: _Settings) -> dict[str, float | None]:
    step, seconds = race.steps[FASTMETA.name], settings.seconds / 3
    return {
        "native_share": native_share(race.problem, seconds),
        "one_thread_s": one_thread_seconds(step, seconds) if settings.threads > 1 else None,
    }


def _measure_memory(rival: Rival, entry: Entry, workload: Workload, settings: _Settings) -> None:
    if entry.status != "timed" or entry.measured_tasks is None:
        return
    entry.memory_reason = rival.hides_memory
    if entry.memory_reason is not None:
        return
    settings.progress(f"{workload.name}: memory of {entry.name}")
    part = replace(workload, tasks=entry.measured_tasks)
    try:
        entry.peak_bytes = peak_bytes(part, entry.name, settings.threads)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        entry.memory_reason = _one_line(error)


# ---- all workloads -----------------------------------------------------------------------------


def _memory_in_steps(settings: _Settings) -> dict[str, Any]:
    """Does memory stay flat in the number of inner steps? Peaks at K = 5 and K = 50.

    The fast weights theta_1 .. theta_K must be kept (theta_0 is shared); nothing else may grow:
    peak(50) <= 1.3 * peak(5) + the fast weights at 50.
    """
    few, many = sinusoid(tasks=256, steps=5), sinusoid(tasks=256, steps=50)
    settings.progress("memory at 5 and at 50 inner steps")
    try:
        peaks = {w.steps: peak_bytes(w, FASTMETA.name, settings.threads) for w in (few, many)}
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return {"reason": _one_line(error)}
    kept = {w.steps: w.tasks * w.parameter_count * 4 * w.steps for w in (few, many)}
    limit = 1.3 * peaks[few.steps] + kept[many.steps]
    return {
        "workload": few.name.rsplit("-", 1)[0],
        "points": [
            {"steps": k, "peak_bytes": peaks[k], "fast_weight_bytes": kept[k]} for k in peaks
        ],
        "limit_bytes": limit,
        "flat": peaks[many.steps] <= limit,
    }


def _derive(point: Point, best: Ceilings) -> None:
    """Write the rates and ratios that follow from the times."""
    ours = next(entry for entry in point.entries if entry.name == FASTMETA.name)
    timed = [entry for entry in point.entries if entry.median_s]
    for entry in timed:
        assert entry.median_s is not None
        entry.useful_flops_per_s = point.useful_flops / entry.median_s
        entry.share_of_mm = entry.useful_flops_per_s / best.mm
        if ours.median_s:
            entry.times_fastmeta = entry.median_s / ours.median_s
    rivals = [entry for entry in timed if entry is not ours]
    if rivals:
        fastest = min(rivals, key=lambda entry: entry.median_s or math.inf)
        point.best_rival, point.times_best_rival = fastest.name, fastest.times_fastmeta
    point.roofline["arithmetic_s"] = point.useful_flops / best.mm
    point.roofline["data_s"] = point.data_bytes / best.copy


def _notes(points: Sequence[Point], rivals: Sequence[Rival]) -> list[str]:
    notes = [
        "A meta-step is forward and meta-gradient, exact second order, float32; no optimizer.",
        "Times are medians over samples taken in interleaved rounds.",
    ]
    left_out = [name for name in RIVALS if name not in {rival.name for rival in rivals}]
    if left_out:
        notes.append(f"Not asked for, or left out of a quick run: {', '.join(left_out)}.")
    for point in points:
        parts = [e.name for e in point.entries if e.extrapolated]
        if parts:
            notes.append(
                f"{point.workload.name}: {', '.join(parts)} timed on {PART} of "
                f"{point.workload.tasks} tasks and extrapolated in proportion."
            )
    return notes


@contextmanager
def _fresh_compile_cache() -> Iterator[None]:
    """Without it a second run would find the code compiled and report no compile time."""
    variable = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(variable)
    with tempfile.TemporaryDirectory(prefix="fastmeta-bench-") as folder:
        os.environ[variable] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[variable]
            else:
                os.environ[variable] = before


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"
