"""Memory, roofline, machine and ceilings: what is measured beside time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_workloads import TINY

from fastmeta.backends import cpu
from fastmeta.bench import ceilings, machine, roofline
from fastmeta.bench.catalogue import sinusoid
from fastmeta.bench.memory import peak_bytes
from fastmeta.bench.rivals import Rival
from fastmeta.bench.workloads import Workload, make_problem

on_linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)
with_native = pytest.mark.skipif(
    cpu.native is None, reason=f"no native kernels: {cpu.unavailable()}"
)


@on_linux
def test_memory_of_a_meta_step_holds_what_must_be_kept():
    workload = sinusoid(tasks=2048, steps=1)
    fast_weights = workload.tasks * workload.parameter_count * 4
    found = peak_bytes(workload, "bmm", threads=1)
    assert fast_weights < found < 40 * fast_weights


@on_linux
def test_memory_of_images():
    fast_weights = TINY["conv"].tasks * TINY["conv"].parameter_count * 4
    assert peak_bytes(TINY["conv"], "loop", threads=1) > fast_weights


@on_linux
def test_a_rival_that_breaks_says_so():
    with pytest.raises(RuntimeError, match="nobody"):
        peak_bytes(TINY["relu"], "nobody", threads=1)


@with_native
def test_share_of_native_kernels():
    wide = Workload("wide", "regression", (64, 64, 64), "relu", "mse", 8, 64, 64, 1)
    assert 0.3 < roofline.native_share(make_problem(wide), seconds=0.05) < 1


@with_native
def test_the_native_module_is_put_back_after_an_error(monkeypatch):
    native = cpu.native

    def break_down(problem):
        assert cpu.native is not native
        raise ZeroDivisionError

    monkeypatch.setattr(roofline, "FASTMETA", Rival("broken", "breaks", break_down))
    with pytest.raises(ZeroDivisionError):
        roofline.native_share(make_problem(TINY["relu"]), seconds=0.01)
    assert cpu.native is native


def test_autograd_alone_takes_time():
    assert 0 < roofline.autograd_seconds(make_problem(TINY["relu"]), seconds=1e-3) < 1


def test_one_thread_is_for_the_measurement_only():
    threads, seen = torch.get_num_threads(), []
    roofline.one_thread_seconds(lambda: seen.append(torch.get_num_threads()), seconds=1e-4)
    assert set(seen) == {1} and torch.get_num_threads() == threads


def test_ceilings_are_rates(monkeypatch):
    monkeypatch.setattr(ceilings, "SIZE", 128)
    monkeypatch.setattr(ceilings, "COPIED_BYTES", 1 << 20)
    found = ceilings.measure_ceilings(attempts=2)
    assert 1e7 < found.mm < 1e15 and 1e7 < found.copy < 1e14


def test_machine_is_described_in_full():
    found = machine.describe_machine(threads=2)
    assert found["device"].startswith("cpu-") and found["device"].endswith("-2-threads")
    assert found["versions"]["torch"] == torch.__version__
    assert found["cpu"] and found["cores"] >= 1


def test_commit_of_an_installed_copy_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(machine.fastmeta, "__file__", str(tmp_path / "fastmeta" / "__init__.py"))
    assert machine.commit() is None
    (tmp_path / "fastmeta").mkdir()
    (tmp_path / "fastmeta/_build_info.json").write_text('{"commit": "0123"}')
    assert machine.commit() == "0123"


def test_uncommitted_changes_show(monkeypatch, tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "start")
    monkeypatch.setattr(machine.fastmeta, "__file__", str(tmp_path / "fastmeta" / "__init__.py"))
    assert machine.commit().isalnum() and len(machine.commit()) == 40
    (tmp_path / "new").touch()
    assert machine.commit().endswith("+changes")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no processor affinity here")
def test_only_so_many_cores():
    before = os.sched_getaffinity(0)
    with machine.only_cores(1):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_report_prints_a_file(tmp_path):
    path = tmp_path / "other.json"
    path.write_text("[]")
    command = [sys.executable, "-m", "fastmeta.bench.report", str(path)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode != 0 and "does not hold benchmark results" in answer.stderr
    assert "RuntimeWarning" not in answer.stderr


def test_drawn_problems_repeat_and_leave_the_generator_alone():
    state = torch.get_rng_state()
    first, second = (make_problem(TINY["relu"]) for _ in range(2))
    assert torch.equal(first.support_x, second.support_x)
    assert torch.equal(torch.get_rng_state(), state)
