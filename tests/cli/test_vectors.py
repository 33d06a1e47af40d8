"""`fastmeta train vectors` and its evaluation beside raw vectors."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from command_line import train_until

FILE = "fastmeta-vectors-protonet.safetensors"
SMALL = "--ways 4 --hidden 8 --steps 6 --validate-every 3 --validation-tasks 4".split()
SMALL += "--eval-ways 3 --queries 2".split()


@pytest.fixture
def archive(tmp_path):
    generator = np.random.default_rng(0)
    centres = generator.random((20, 1, 6))
    x = (centres + 0.1 * generator.random((20, 9, 6))).reshape(-1, 6).astype(np.float32)
    np.savez(tmp_path / "v.npz", x=x, labels=np.arange(20).repeat(9), signed=x - 1)
    return tmp_path / "v.npz"


def line_of(archive, *more):
    return ["train", "vectors", archive, "--features", "x", *SMALL, *map(str, more)]


@pytest.mark.parametrize(
    "options",
    ["", "--transform sqrt --algorithm r2d2", "--transform standardise --algorithm matchingnet"],
)
def test_resume_and_evaluation(fastmeta, archive, tmp_path, options):
    line = line_of(archive, *options.split(), "--drop-rows", 0, 5)
    status, out, err = fastmeta(*line, "--checkpoint", "a")
    assert status == 0, err
    assert "classes   9 to learn from, 3 for validation, 8 for test" in out
    train_until(fastmeta, 4, *line, "--checkpoint", "b")
    assert fastmeta(*line, "--checkpoint", "b", "--resume")[0] == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    status, out, err = fastmeta(
        "evaluate", "a.best", "--ways", 5, "--tasks", 20, "--json", "e", "--embedding", "e.png"
    )
    assert status == 0, err
    numbers = json.loads((tmp_path / "e").read_text())
    assert numbers["ways"] == 5 and numbers["accuracy"]["mean"] > 0.5
    assert list(numbers["nearest_mean"]) == ["raw", *options.split()[1:2]]
    assert "raw vectors" in out and (tmp_path / "e.png").exists()


def test_maml_with_a_head(fastmeta, archive):
    line = line_of(archive, "--algorithm", "maml")
    line[line.index("--eval-ways") + 1] = line[line.index("--ways") + 1] = "3"
    status, _, err = fastmeta(*line)
    assert status == 0, err
    status, out, err = fastmeta("evaluate", "fastmeta-vectors.safetensors", "--tasks", 5)
    assert status == 0 and "inner steps" in out, err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--features y", "has no array 'y'; it has x, labels, signed"),
        ("--features signed --transform sqrt", "--transform sqrt: signed has negative values"),
        ("--features labels", "features must be numbers [n, D], not int64 [180]"),
        ("--test-classes 0.6 --validation-classes 0.5", "leave no class to learn from"),
        ("--drop-rows 180", "there is no row 180 among 180"),
        ("--algorithm maml --ways 3 --dropout 0.5", "--dropout: maml adapts"),
        ("--ways 10", "train: 10 ways need 10 classes, and there are 9"),
    ],
)
def test_wrong_use_is_one_line(fastmeta, archive, options, message):
    status, _, err = fastmeta(*line_of(archive, *options.split()))
    assert status == 2 and message in err and err.count("\n") == 1, err


def test_other_vectors_are_refused(fastmeta, archive):
    assert fastmeta(*line_of(archive))[0] == 0
    with np.load(archive) as file:
        arrays = dict(file)
    np.savez(archive, **{**arrays, "x": arrays["x"] + 1})
    status, _, err = fastmeta("evaluate", FILE)
    assert status == 2 and "not the vectors that this checkpoint was trained on" in err


def test_leaves_of_unseen_species_are_told_apart_better(fastmeta, tmp_path):
    folder = os.environ.get("FASTMETA_DATA")
    if folder is None:
        pytest.skip("FASTMETA_DATA does not name the folder of the data")
    file = Path(folder) / "tabular" / "leaves100.npz"
    line = ["train", "vectors", file, "--features", "margin", "--transform", "sqrt"]
    status, out, err = fastmeta(*line, "--steps", 50)
    assert status == 0 and "45 to learn from, 15 for validation, 40 for test" in out, err
    best = "fastmeta-vectors-protonet.best.safetensors"
    assert fastmeta("evaluate", best, "--json", "e")[0] == 0
    numbers = json.loads((tmp_path / "e").read_text())
    assert numbers["accuracy"]["low"] > numbers["nearest_mean"]["raw"]["high"]
