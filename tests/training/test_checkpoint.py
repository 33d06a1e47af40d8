import json
import os

import pytest
import torch
from safetensors.torch import save_file

from fastmeta.training import Checkpoint, load_checkpoint, save_checkpoint
from fastmeta.training.checkpoint import check_same_run


def make_checkpoint(step=7):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(2):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    return Checkpoint(
        step=step,
        config={"source": {"kind": "x", "tasks": ["a", "b"]}, "lr": 0.1},
        meta=model.state_dict(),
        optimizer=optimizer.state_dict(),
        streams={"generator": torch.Generator().get_state()},
        notes={"file": "there.csv"},
        best={"step": 3, "loss": 0.1 + 0.2, "accuracy": None},
    )


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_everything_comes_back(tmp_path):
    saved = make_checkpoint()
    save_checkpoint(tmp_path / "new" / "c.safetensors", saved)
    loaded = load_checkpoint(tmp_path / "new" / "c.safetensors")
    assert (loaded.step, loaded.config, loaded.notes) == (7, saved.config, saved.notes)
    assert loaded.best == saved.best
    assert_same(loaded.meta, saved.meta)
    assert_same(loaded.streams, saved.streams)
    fresh = torch.optim.Adam(torch.nn.Linear(3, 2).parameters(), lr=9.0)
    fresh.load_state_dict(loaded.optimizer)
    assert fresh.state_dict()["param_groups"][0]["lr"] == 0.1
    for index, entry in saved.optimizer["state"].items():
        assert_same(fresh.state_dict()["state"][index], entry)


def test_only_the_file_is_left(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path / "c.safetensors", make_checkpoint(step))
    assert os.listdir(tmp_path) == ["c.safetensors"]
    assert load_checkpoint(tmp_path / "c.safetensors").step == 2


@pytest.mark.parametrize("broken", ["write", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, broken):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, make_checkpoint(1))
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, {"write": "fsync", "replace": "replace"}[broken], full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, make_checkpoint(2))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["c.safetensors"]


def test_damage_is_noticed(tmp_path):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, make_checkpoint())
    good = path.read_bytes()
    for damaged in (b"", b"\0" * 100, good[:50], good[:-1], good[:-3] + b"\x55" + good[-2:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            load_checkpoint(path)


def test_files_of_others(tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_checkpoint(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="not a checkpoint of fastmeta"):
        load_checkpoint(path)
    save_file({"a": torch.ones(1)}, path, {"fastmeta-checkpoint": json.dumps({"version": 99})})
    with pytest.raises(ValueError, match="version 99, this fastmeta reads 2"):
        load_checkpoint(path)


def test_a_best_one_that_is_not_there_yet(tmp_path):
    (tmp_path / "run.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="run.safetensors is there: no validation"):
        load_checkpoint(tmp_path / "run.best.safetensors")


def test_the_setting_that_differs_is_named():
    saved = {"meta": {"lr": 0.1, "sizes": [1, 2]}, "seed": 0}
    check_same_run("c", saved, {"meta": {"lr": 0.1, "sizes": (1, 2)}, "seed": 0})
    with pytest.raises(ValueError, match=r"meta.lr was 0.1, now 0.2; seed was 0, now null"):
        check_same_run("c", saved, {"meta": {"lr": 0.2, "sizes": [1, 2]}})
