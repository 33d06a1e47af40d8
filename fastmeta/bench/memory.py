"""Peak memory of a meta-step, each in a process of its own so that nothing is left from before."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from typing import Any

import torch

from fastmeta.bench.device import CPU, peak_memory
from fastmeta.bench.rivals import FASTMETA
from fastmeta.bench.workloads import Workload, make_problem

TIMEOUT_S = 600
FEW_STEPS, MANY_STEPS = 5, 50


def peak_bytes(workload: Workload, rival: str, threads: int) -> int:
    """Resident memory at the peak of a meta-step, beyond what was there before the first one.

    Data, imports and compilation do not count; workspaces kept from step to step do.

    Raises:
        RuntimeError: this system does not tell peak memory (Linux does), or the step failed or
            took too long.
    """
    command = [sys.executable, "-m", "fastmeta.bench.memory_process"]
    question = json.dumps({"workload": asdict(workload), "rival": rival, "threads": threads})
    try:
        answer = subprocess.run(
            command, input=question, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"measuring memory took more than {TIMEOUT_S} s") from None
    if answer.returncode != 0:
        last_line = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"measuring memory failed with {answer.returncode}: {last_line}")
    return int(answer.stdout.split()[-1])


def _peak(workload: Workload, threads: int, device: torch.device) -> int:
    if device.type == "cpu":
        return peak_bytes(workload, FASTMETA.name, threads)
    problem = make_problem(workload, device=device)
    step = FASTMETA.build(problem)
    step()
    with peak_memory(device) as peak:
        step()
    assert peak.bytes is not None
    return peak.bytes


def memory_in_steps(workload: Workload, threads: int, device: torch.device = CPU) -> dict[str, Any]:
    """Does fastmeta's memory stay flat in the number of inner steps? Peaks at K = 5 and K = 50.

    The fast weights theta_1 .. theta_K must be kept (theta_0 is shared); nothing else may grow:
    peak(50) <= 1.3 * peak(5) + the fast weights at 50.
    """
    few, many = (replace(workload, steps=steps) for steps in (FEW_STEPS, MANY_STEPS))
    try:
        peaks = {w.steps: _peak(w, threads, device) for w in (few, many)}
    except RuntimeError as error:
        return {"workload": workload.name, "reason": str(error)}
    kept = {w.steps: w.tasks * w.parameter_count * 4 * w.steps for w in (few, many)}
    limit = 1.3 * peaks[few.steps] + kept[many.steps]
    return {
        "workload": workload.name,
        "points": [
            {"steps": k, "peak_bytes": peaks[k], "fast_weight_bytes": kept[k]} for k in peaks
        ],
        "limit_bytes": limit,
        "flat": peaks[many.steps] <= limit,
    }
