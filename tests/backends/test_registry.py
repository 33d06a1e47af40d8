import os
import subprocess
import sys
import threading

import pytest

import fastmeta as fm
from fastmeta.backends import cpu, registry, requested_backend


def test_reference_is_always_there():
    backends = fm.available_backends()
    assert backends["reference"] is True
    assert all(state is True or isinstance(state, str) for state in backends.values())


def test_a_backend_that_does_not_load_gives_its_reason(monkeypatch):
    monkeypatch.setattr(cpu, "unavailable", lambda: "no compiler")
    assert fm.available_backends()["cpu"] == "no compiler"


def test_the_innermost_block_wins_and_ends():
    assert requested_backend() is None
    with fm.use_backend("reference"):
        with fm.use_backend("cpu"):
            assert requested_backend() == "cpu"
        assert requested_backend() == "reference"
    assert requested_backend() is None


def test_a_block_ends_with_an_exception_too():
    with pytest.raises(KeyError), fm.use_backend("reference"):
        raise KeyError
    assert requested_backend() is None


def test_other_threads_are_left_alone():
    seen = []
    with fm.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(requested_backend()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_unknown_names_are_refused():
    known = "one of reference, cpu, cuda, triton, not 'gpu'"
    with pytest.raises(ValueError, match=known), fm.use_backend("gpu"):
        pass


def test_the_environment_decides_where_no_block_does(monkeypatch):
    monkeypatch.setattr(registry, "_from_environment", "reference")
    assert requested_backend() == "reference"
    with fm.use_backend("cpu"):
        assert requested_backend() == "cpu"
    monkeypatch.setattr(registry, "_from_environment", "gpu")
    with pytest.raises(ValueError, match="FASTMETA_BACKEND"):
        requested_backend()


def test_the_variable_is_read_at_import():
    program = "from fastmeta.backends import requested_backend; print(requested_backend())"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "FASTMETA_BACKEND": "reference"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "reference"
