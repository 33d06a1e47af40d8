"""The process that measures the memory of one rival: `memory.peak_bytes` starts it."""

from __future__ import annotations

import ctypes
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastmeta.bench.rivals import FASTMETA, FASTMETA_DIRECT, RIVALS, Step
from fastmeta.bench.workloads import Workload, make_problem

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def _measure(workload: Workload, rival: str, threads: int) -> int:
    torch.set_num_threads(threads)
    known = {**RIVALS, **{ours.name: ours for ours in (FASTMETA, FASTMETA_DIRECT)}}[rival]
    # The first use loads code. What compiles finds this very workload in the cache.
    first_use = workload if known.compiles(workload) else replace(workload, tasks=2)
    known.build(make_problem(first_use))()
    step = known.build(make_problem(workload))
    _give_back_free_memory()
    before = _resident("VmRSS")
    step()
    return _peak_of(step) - before


def _peak_of(step: Step) -> int:
    """The peak of a warm call: the first may have compiled."""
    _CLEAR_REFS.write_text("5")  # sets the peak to what is resident now, see proc(5)
    step()
    return _resident("VmHWM")


def _give_back_free_memory() -> None:
    """What malloc holds in reserve would hide what the step needs."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def _resident(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {field}")


def _main() -> None:
    question = json.load(sys.stdin)
    fields = question["workload"].items()
    as_declared: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in fields}
    workload = Workload(**as_declared)
    print(_measure(workload, question["rival"], question["threads"]))


if __name__ == "__main__":
    _main()
