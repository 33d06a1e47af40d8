"""The suite: which workloads and rivals, one point after another, and what all of it makes."""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from fastmeta.bench import prototypes
from fastmeta.bench.catalogue import FAMILIES, MEMORY, ON_GPU, SMALL, USUAL, WORKLOADS
from fastmeta.bench.ceilings import Ceilings
from fastmeta.bench.device import CPU, ieee_products
from fastmeta.bench.kits import KITS, Single, single_operations
from fastmeta.bench.machine import describe_machine, only_cores
from fastmeta.bench.memory import memory_in_steps
from fastmeta.bench.race import (
    PART,
    Progress,
    Settings,
    derive,
    measure_operation,
    measure_workload,
)
from fastmeta.bench.results import SCHEMA, Point
from fastmeta.bench.rivals import RIVALS, Rival
from fastmeta.bench.workloads import Workload

SECONDS, QUICK_SECONDS = 3.0, 0.3
LONGEST_STEP_S, QUICK_LONGEST_STEP_S = 10.0, 1.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with the results of the workloads that were done (`results`, as `run` returns)."""

    def __init__(self, results: dict[str, Any]) -> None:
        super().__init__()
        self.results = results


def selectable() -> list[str]:
    """What ``run`` takes as a workload: names of families, of workloads and of operations."""
    families = [*FAMILIES, *(kit.FAMILY for kit in KITS)]
    return list(dict.fromkeys([*families, *WORKLOADS, *single_operations()]))


def run(
    workloads: Sequence[str] | None = None,
    rivals: Sequence[str] | None = None,
    quick: bool = False,
    seconds: float | None = None,
    *,
    device: torch.device = CPU,
    time_limit: float | None = None,
    progress: Progress = lambda line: print(line, file=sys.stderr, flush=True),
) -> dict[str, Any]:
    """Measure fastmeta and its rivals, with ``torch.get_num_threads()`` threads for everyone.

    Args:
        workloads: any of ``selectable()``; default: the usual workloads of all families and the
            operations, or the small workloads if ``quick``.
        rivals: names, see ``RIVALS``; default: all, or those that do not compile if ``quick``. At
            operations PyTorch's own are the rivals.
        quick: for a short time, without the memory of each rival.
        seconds: time for one rival at one workload.
        device: the CPU, or a GPU, which has usual workloads of its own.
        time_limit: no workload begins that would end after so many seconds, as far as the longest
            one so far tells; the results say how many were left out.
        progress: is told what goes on, a line at a time.

    Returns:
        What ``format_table`` and ``write_json`` take: ``results.Point`` for each workload and each
        operation, peak memory over inner steps, the ceilings, the machine, and notes.

    Raises:
        ValueError: an unknown workload or rival.
        Interrupted: Ctrl-C after at least one workload.
    """
    chosen = _chosen_points(_usual_points(quick, device) if workloads is None else workloads)
    chosen_rivals = _chosen_rivals([*RIVALS] if rivals is None else rivals)
    settings = _settings(quick, seconds, rivals is not None or not quick, progress, device)
    machine = describe_machine(settings.threads, device)
    points: list[Point] = []
    memory: list[dict[str, Any]] = []
    interrupted = False
    with only_cores(settings.threads), _fresh_compile_cache(), ieee_products():
        try:
            _measure_all(chosen, chosen_rivals, settings, time_limit, points, memory)
        except KeyboardInterrupt:
            if not points:
                raise
            interrupted = True
    results = _results(machine, settings, points, memory, chosen_rivals)
    if len(points) < len(chosen):
        why = "Interrupted" if interrupted else "The time was over"
        results["notes"].append(f"{why}: {len(points)} of {len(chosen)} workloads.")
    if interrupted:
        raise Interrupted(results)
    return results


def _usual_points(quick: bool, device: torch.device) -> Sequence[str]:
    on_gpu = device.type == "cuda"
    if quick:
        return (*ON_GPU, *prototypes.OPERATIONS) if on_gpu else SMALL
    return [*(ON_GPU if on_gpu else USUAL), *single_operations()]


def _settings(
    quick: bool, seconds: float | None, compiles: bool, progress: Progress, device: torch.device
) -> Settings:
    return Settings(
        seconds=seconds or (QUICK_SECONDS if quick else SECONDS),
        longest_step=QUICK_LONGEST_STEP_S if quick else LONGEST_STEP_S,
        threads=torch.get_num_threads(),
        quick=quick,
        compiles=compiles,
        progress=progress,
        device=device,
    )


def _measure_all(
    chosen: Iterable[Workload | Single],
    rivals: Sequence[Rival],
    settings: Settings,
    time_limit: float | None,
    points: list[Point],
    memory: list[dict[str, Any]],
) -> None:
    """Fill `points` and `memory` one by one: what is in them stays when Ctrl-C ends this."""
    end = math.inf if time_limit is None else time.monotonic() + time_limit
    longest = 0.0
    for each in chosen:
        begun = time.monotonic()
        if begun + longest > end:
            break
        points.append(_measure(each, rivals, settings))
        settings.progress(_in_short(points[-1]))
        longest = max(longest, time.monotonic() - begun)
    if time.monotonic() >= end:
        return
    for workload in _measured_for_memory(points):
        settings.progress(f"{workload.name}: memory of fastmeta over inner steps")
        memory.append(memory_in_steps(workload, settings.threads, settings.device))


def _chosen_points(asked: Iterable[str]) -> list[Workload | Single]:
    """The workloads and operations of these names, families in full."""
    families = {**FAMILIES, **{kit.FAMILY: list(kit.OPERATIONS) for kit in KITS}}
    known: dict[str, Workload | Single] = {**WORKLOADS, **single_operations()}
    members = [member for name in asked for member in families.get(name, [name])]
    unknown = [name for name in members if name not in known]
    if unknown:
        known_names = ", ".join(selectable())
        raise ValueError(f"unknown workload {', '.join(unknown)}; there are {known_names}")
    return [known[name] for name in dict.fromkeys(members)]


def _chosen_rivals(asked: Sequence[str]) -> list[Rival]:
    unknown = [name for name in asked if name not in RIVALS]
    if unknown:
        raise ValueError(f"unknown rival {', '.join(unknown)}; there are {', '.join(RIVALS)}")
    return [RIVALS[name] for name in asked]


def _measure(
    what: Workload | Single, rivals: Sequence[Rival], settings: Settings
) -> Point:
    if not isinstance(what, Workload):
        return measure_operation(what, settings)
    return measure_workload(what, rivals, settings)


def _in_short(point: Point) -> str:
    """What is known of it, should the whole be ended before its tables are there."""
    times = {entry.name: entry.median_s for entry in point.entries if entry.median_s is not None}
    told = [f"{name} {seconds * 1e3:.3g} ms" for name, seconds in times.items()]
    return f"{point.workload.name}: {', '.join(told) or 'not timed'}"


def _measured_for_memory(points: Iterable[Point]) -> list[Workload]:
    """One workload for each family that was measured and has one."""
    families = {p.workload.family for p in points if isinstance(p.workload, Workload)}
    return [workload for workload in MEMORY if workload.family in families]


# ---- results -----------------------------------------------------------------------------------


def _results(
    machine: dict[str, Any],
    settings: Settings,
    points: Sequence[Point],
    memory: Sequence[dict[str, Any]],
    rivals: Sequence[Rival],
) -> dict[str, Any]:
    best = Ceilings(*(max(column) for column in zip(*(p.ceilings for p in points), strict=True)))
    for point in points:
        derive(point, best)
    of_operations = [point for point in points if not isinstance(point.workload, Workload)]
    of_workloads = [point for point in points if isinstance(point.workload, Workload)]
    return {
        "schema": SCHEMA,
        "machine": machine,
        "settings": {
            "quick": settings.quick,
            "seconds": settings.seconds,
            "threads": settings.threads,
            "device": str(settings.device),
        },
        "ceilings": _told(best),
        "points": [asdict(point) for point in of_workloads],
        "operations": [asdict(point) for point in of_operations],
        "memory_in_steps": list(memory),
        "notes": _notes(of_workloads, rivals),
    }


def _told(best: Ceilings) -> dict[str, float]:
    told = {"mm_flops_per_s": best.mm, "copy_bytes_per_s": best.copy}
    if best.bf16:
        told |= {"tf32_flops_per_s": best.tf32, "bf16_flops_per_s": best.bf16}
    return told


def _notes(points: Sequence[Point], rivals: Sequence[Rival]) -> list[str]:
    notes = [
        "A meta-step is forward and meta-gradient, exact second order, float32; no optimizer.",
        "Times are medians over samples taken in interleaved rounds.",
    ]
    left_out = [name for name in RIVALS if name not in {rival.name for rival in rivals}]
    if left_out:
        notes.append(f"Not asked for: {', '.join(left_out)}.")
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
