import json

import pytest
import torch

from fastmeta.episodes import (
    ONE_SHOT_RUNS,
    PixelScale,
    omniglot_characters,
    one_shot_runs,
    split_omniglot,
)


def test_the_published_runs(data_folder):
    written = json.loads((data_folder / "splits" / "omniglot_oneshot_runs.json").read_text())
    assert len(ONE_SHOT_RUNS) == len(written) == 20
    for run, other in zip(ONE_SHOT_RUNS, written, strict=True):
        assert run.alphabet == other["alphabet"] and list(run.classes) == other["classes"]
        assert run.support_drawer == other["support_drawer"]
        assert run.query_drawer == other["query_drawer"]


def test_runs_as_tasks(data_folder):
    characters = omniglot_characters(data_folder)
    scale = PixelScale(invert=True, dtype=torch.float64)
    batch = one_shot_runs(characters, scale)
    assert batch.support_x.shape == batch.query_x.shape == (20, 20, 1, 28, 28)
    assert batch.support_x.dtype == torch.float64
    assert batch.query_y.tolist() == batch.support_y.tolist() == [list(range(20))] * 20
    for index, run in enumerate(ONE_SHOT_RUNS):
        for label, name in enumerate(run.classes):
            drawings = scale(characters[name])
            assert torch.equal(batch.support_x[index, label], drawings[run.support_drawer - 1])
            assert torch.equal(batch.query_x[index, label], drawings[run.query_drawer - 1])


def test_only_the_background_split_learns_from_none_of_them(data_folder):
    characters = omniglot_characters(data_folder)
    wanted = {name for run in ONE_SHOT_RUNS for name in run.classes}
    learned = {
        split: len(wanted.intersection(split_omniglot(characters, split).train.names))
        for split in ("vinyals", "first-1200", "background")
    }
    assert learned == {"vinyals": 78, "first-1200": 78, "background": 0}


def test_characters_that_are_missing(make_classes):
    with pytest.raises(ValueError, match="no class 'Atlantean/character01'"):
        one_shot_runs(make_classes([3]))
    few = make_classes([2])
    object.__setattr__(few, "names", ("Atlantean/character01",))
    with pytest.raises(ValueError, match="Atlantean/character01 has 2 drawings, and number 5"):
        one_shot_runs(few)
