"""`benchmarks/gpu.sh`, as far as a CPU can run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="a script for bash"),
]


def run(out, stages, **variables):
    environment = {
        **os.environ, "DEVICE": "cpu", "TINY": "1", "OUT": str(out), "STAGES": stages,
        "PYTHON": sys.executable, "WORKLOADS": "sinusoid-T1-K1", **variables,
    }  # fmt: skip
    command = ["bash", str(ROOT / "benchmarks/gpu.sh")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)


def test_a_cpu_runs_through_and_says_what_needs_a_gpu(tmp_path):
    answer = run(tmp_path, "machine sanitize bench", LIMIT="880")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    ends = answer.stdout[answer.stdout.index("== results") :]
    assert "sinusoid-T1-K1" in ends and "FAILED" not in ends
    assert "skipped: memcheck,racecheck,initcheck: compute-sanitizer needs a GPU" in ends
    (results,) = tmp_path.glob("*.json")
    assert results.name.startswith("cpu-")
    entries = json.loads(results.read_text())["points"][0]["entries"]
    assert len(entries) > 1 and {entry["status"] for entry in entries} == {"timed"}
    assert (tmp_path / "sanitize.log").read_text().count("meta-gradient off by") == 10


def test_it_goes_on_after_a_failure_and_tells_it(tmp_path):
    answer = run(tmp_path, "machine bench compiled", WORKLOADS="nothing")
    assert answer.returncode == 1
    assert "== bench FAILED: 2" in answer.stdout
    assert "skipped: compiled: torch" in answer.stdout
    assert "FAILED:  bench: 2 after" in answer.stdout


def test_what_no_time_is_left_for_is_skipped(tmp_path):
    answer = run(tmp_path, "machine bench", LIMIT="4")
    assert answer.stdout.count("skipped: no time left") == 2
