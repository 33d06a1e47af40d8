"""The suite: which workloads and rivals, one point after another, and what all of it makes."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from fastmeta.bench import operations, prototypes
from fastmeta.bench.catalogue import FAMILIES, MEMORY, SMALL, USUAL, WORKLOADS
from fastmeta.bench.ceilings import Ceilings
from fastmeta.bench.machine import describe_machine, only_cores
from fastmeta.bench.memory import memory_in_steps
from fastmeta.bench.operations import OPERATIONS, Operation
from fastmeta.bench.prototypes import Prototypes
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
    families = [*FAMILIES, operations.FAMILY, prototypes.FAMILY]
    return list(dict.fromkeys([*families, *WORKLOADS, *OPERATIONS, *prototypes.OPERATIONS]))


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
        workloads: any of ``selectable()``; default: the usual workloads of all families and the
            operations, or the small workloads if ``quick``.
        rivals: names, see ``RIVALS``; default: all, or those that do not compile if ``quick``. At
            operations PyTorch's own are the rivals.
        quick: for a short time, without the memory of each rival.
        seconds: time for one rival at one workload.
        progress: is told what goes on, a line at a time.

    Returns:
        What ``format_table`` and ``write_json`` take: ``results.Point`` for each workload and each
        operation, peak memory over inner steps, the ceilings, the machine, and notes.

    Raises:
        ValueError: an unknown workload or rival.
        Interrupted: Ctrl-C after at least one workload.
    """
    if workloads is None:
        workloads = SMALL if quick else [*USUAL, *OPERATIONS, *prototypes.OPERATIONS]
    if rivals is None:
        rivals = [name for name, rival in RIVALS.items() if not (quick and rival.compiles)]
    chosen, chosen_rivals = _chosen_points(workloads), _chosen_rivals(rivals)
    settings = Settings(
        seconds=seconds or (QUICK_SECONDS if quick else SECONDS),
        longest_step=QUICK_LONGEST_STEP_S if quick else LONGEST_STEP_S,
        threads=torch.get_num_threads(),
        quick=quick,
        progress=progress,
    )
    machine = describe_machine(settings.threads)
    points: list[Point] = []
    memory: list[dict[str, Any]] = []
    interrupted = False
    with only_cores(settings.threads), _fresh_compile_cache():
        try:
            for each in chosen:
                points.append(_measure(each, chosen_rivals, settings))
            for workload in _measured_for_memory(points):
                progress(f"{workload.name}: memory of fastmeta over inner steps")
                memory.append(memory_in_steps(workload, settings.threads))
        except KeyboardInterrupt:
            if not points:
                raise
            interrupted = True
    results = _results(machine, settings, points, memory, chosen_rivals)
    if interrupted:
        results["notes"].append(f"Interrupted: {len(points)} of {len(chosen)} workloads.")
        raise Interrupted(results)
    return results


def _chosen_points(asked: Iterable[str]) -> list[Workload | Operation | Prototypes]:
    """The workloads and operations of these names, families in full."""
    families = {
        **FAMILIES,
        operations.FAMILY: list(OPERATIONS),
        prototypes.FAMILY: list(prototypes.OPERATIONS),
    }
    known: dict[str, Workload | Operation | Prototypes] = {
        **WORKLOADS, **OPERATIONS, **prototypes.OPERATIONS,
    }  # fmt: skip
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
    what: Workload | Operation | Prototypes, rivals: Sequence[Rival], settings: Settings
) -> Point:
    if not isinstance(what, Workload):
        return measure_operation(what, settings)
    return measure_workload(what, rivals, settings)


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
        },
        "ceilings": {"mm_flops_per_s": best.mm, "copy_bytes_per_s": best.copy},
        "points": [asdict(point) for point in of_workloads],
        "operations": [asdict(point) for point in of_operations],
        "memory_in_steps": list(memory),
        "notes": _notes(of_workloads, rivals),
    }


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
