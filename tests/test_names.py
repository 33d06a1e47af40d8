"""What `dir` and `import *` show: what is public, and nothing else."""

import importlib
import subprocess
import sys

import pytest

import fastmeta as fm

PARTS = ("functional", "models", "episodes", "training", "algorithms", "backends")


@pytest.mark.parametrize("name", PARTS)
def test_a_part_shows_its_public_names_alone(name):
    part = importlib.import_module(f"fastmeta.{name}")
    assert dir(part) == sorted(part.__all__)
    assert all(hasattr(part, public) for public in part.__all__)
    namespace = {}
    exec(f"from fastmeta.{name} import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(part.__all__)


def test_the_package_shows_its_public_names_alone():
    assert dir(fm) == sorted([*fm.__all__, "__version__"])
    namespace = {}
    exec("from fastmeta import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(fm.__all__)


def test_training_comes_with_the_package():
    code = "import fastmeta; print(fastmeta.training.GraphedStep.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "GraphedStep\n", done.stderr
