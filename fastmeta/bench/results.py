"""What a run reports. Seconds, bytes, flops: plain numbers that go into JSON as they are."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmeta.bench.ceilings import Ceilings
from fastmeta.bench.kits import Single
from fastmeta.bench.workloads import Workload

SCHEMA = 1


@dataclass
class Entry:
    """One way to compute the meta-step of one workload, or an operation.

    ``status``: ``"timed"``, ``"wrong"`` (did not pass the gate, not timed), ``"skipped"`` (cannot
    run here) or ``"failed"`` (raised); ``reason`` says why it was not timed.

    A loop over tasks that would take too long is timed on ``measured_tasks`` tasks, and its times
    are extrapolated in proportion to all of them; loss, gradient and memory are those of the part.
    """

    name: str
    title: str
    status: str
    reason: str | None = None
    measured_tasks: int | None = None
    extrapolated: bool = False
    first_call_s: float | None = None  # building, compiling and one step
    loss_error: float | None = None
    gradient_error: float | None = None  # of an operation: of its result
    whole_error: float | None = None  # on images, see `gate.judge`
    median_s: float | None = None
    low_s: float | None = None  # lower quartile
    high_s: float | None = None  # upper quartile
    fastest_s: float | None = None
    samples: int | None = None
    calls_per_sample: int | None = None
    useful_flops_per_s: float | None = None
    share_of_mm: float | None = None  # of torch.mm's flop/s
    times_fastmeta: float | None = None  # its median over fastmeta's
    peak_bytes: int | None = None
    memory_reason: str | None = None  # why the peak is not known
    # On a GPU, of one step: see `device.Work`
    launches: int | None = None
    kernels: int | None = None
    busy_s: float | None = None


@dataclass
class Point:
    """One workload or operation: what it needs at least, and how everyone did."""

    workload: Workload | Single
    engine: str | None  # that fastmeta took for a workload
    useful_flops: int
    data_bytes: int
    ceilings: Ceilings  # as measured just before
    entries: list[Entry]
    # of a workload and fastmeta: native_share of its time, autograd_s of a step that computes
    # nothing, one_thread_s; of anyone: arithmetic_s and data_s, the least time at the best rates of
    # the run
    roofline: dict[str, float | None] = field(default_factory=dict)
    best_rival: str | None = None
    times_best_rival: float | None = None


def write_json(results: dict[str, Any], path: str | Path) -> None:
    """Write what ``run`` returned."""
    Path(path).write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read what ``write_json`` wrote.

    Raises:
        ValueError: the file holds something else, or another version of it.
    """
    results = json.loads(Path(path).read_text())
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        raise ValueError(f"{path} does not hold benchmark results of schema {SCHEMA}")
    return results
