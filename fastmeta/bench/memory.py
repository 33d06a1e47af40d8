"""Peak memory of a meta-step, each in a process of its own so that nothing is left from before."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

from fastmeta.bench.workloads import Workload

TIMEOUT_S = 600


def peak_bytes(workload: Workload, rival: str, threads: int) -> int:
    """Resident memory at the peak of a meta-step, beyond what was there before the first one.

    Data, imports and compilation do not count; workspaces kept from step to step do.

    Raises:
        RuntimeError: this system does not tell peak memory (Linux does), or the step failed.
    """
    command = [sys.executable, "-m", "fastmeta.bench.memory_process"]
    question = json.dumps({"workload": asdict(workload), "rival": rival, "threads": threads})
    answer = subprocess.run(
        command, input=question, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    if answer.returncode != 0:
        last_line = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"measuring memory failed with {answer.returncode}: {last_line}")
    return int(answer.stdout.split()[-1])
