"""`fastmeta train` and `fastmeta evaluate` on images."""

import json
import os
from pathlib import Path

import pytest
import torch
from command_line import pictures, train_until, write_npz
from PIL import Image

import fastmeta as fm
from fastmeta.cli import image_data, one_shot
from fastmeta.cli.one_shot import grouped_scores
from fastmeta.episodes import ImageClasses, ImageSplits
from fastmeta.training import load_checkpoint

SMALL = "--model conv4-stride --filters 4 --meta-batch 2 --queries 2 --inner-lr 0.4".split()
SMALL += "--ways 3 --validation-tasks 4 --validate-every 3".split()
FILE, BEST = "fastmeta-npz.safetensors", "fastmeta-npz.best.safetensors"


@pytest.fixture
def archive(tmp_path):
    return write_npz(tmp_path / "squares.npz", pictures())


def npz_line(archive, *more):
    return ["train", "npz", archive, *SMALL, "--shots", 1, *more]


# ---- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--algorithm fomaml --schedule halving --halve-every 2",
        "--algorithm anil --clip 1 --rotations random",
        "--algorithm metasgd --rotations classes",
        "--algorithm reptile --inner-steps 2",
        "--learn-inner-lr tensor --weight-decay 1 --schedule constant",
        "--model omniglot-fc --inner-steps 2 --per-step-lr --learn-inner-lr tensor",
    ],
)
def test_resume_writes_the_same_bytes(fastmeta, archive, tmp_path, options):
    line = npz_line(archive, *options.split())
    if "omniglot-fc" in options:
        where = line.index("--filters")
        del line[where : where + 2]
    assert fastmeta(*line, "--checkpoint", "a", "--steps", 8)[0] == 0
    # Cosine would know how many steps there are to be; Ctrl-C and the time do not change that.
    train_until(fastmeta, 5, *line, "--checkpoint", "b", "--steps", 8)
    assert load_checkpoint(tmp_path / "b").step == 5
    assert fastmeta(*line, "--checkpoint", "b", "--steps", 8, "--resume")[0] == 0
    for kind in ("{}", "{}.best", "{}.curve.csv"):
        one, other = (tmp_path / kind.format(name) for name in "ab")
        assert one.read_bytes() == other.read_bytes()


def test_what_is_trained_on_is_printed(fastmeta, archive):
    status, out, err = fastmeta(*npz_line(archive, "--steps", 6))
    assert status == 0
    for line in (
        "images    78 to learn from, 1x12x12",
        "classes   13 to learn from, 3 for validation, 4 for test",
        "tasks     3 ways, 1 shot, 2 queries a class",
        "engine    ",
        f"now       fastmeta evaluate {BEST}",
    ):
        assert line in out
    assert "in validation accuracy" in err


def test_the_network_and_the_episodes_are_those_asked_for(fastmeta, archive, tmp_path):
    fastmeta(*npz_line(archive, "--steps", 1, "--rotations", "classes"))
    config = load_checkpoint(tmp_path / FILE).config
    assert config["model"] == {
        "kind": "conv4-stride", "ways": 3, "channels": 1, "image_size": 12, "filters": 4,
    }  # fmt: skip
    assert config["source"]["rotations"] == "classes" and config["source"]["queries"] == 2
    assert config["source"]["scale"] == {"mean": [0.0], "std": [1.0]}
    assert config["training"]["schedule"] == {"kind": "cosine", "steps": 1}
    assert "2 tasks of 16 classes" in fastmeta("evaluate", FILE, "--tasks", 2)[1]


def test_colours_are_standardised(fastmeta, tmp_path):
    archive = write_npz(tmp_path / "c.npz", pictures(channels=3))
    assert fastmeta(*npz_line(archive, "--steps", 1))[0] == 0
    scale = load_checkpoint(tmp_path / FILE).config["source"]["scale"]
    assert len(scale["mean"]) == len(scale["std"]) == 3
    assert all(0.1 < value < 0.4 for value in scale["mean"] + scale["std"])


@pytest.mark.parametrize("sides", [False, True])
def test_a_folder_a_class(fastmeta, tmp_path, sides):
    names = ("train", "val", "test")
    for c, images in enumerate(pictures(12)):
        folder = tmp_path / "data" / (names[c // 4] if sides else "") / f"c{c}"
        folder.mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image[..., 0]).save(folder / f"{i}.png")
    line = ["train", "images", "data", "--channels", 1, *SMALL, "--shots", 1, "--steps", 2]
    more = [] if sides else ["--split", split_file(tmp_path)]
    status, out, err = fastmeta(*line, *more)
    assert status == 0, err
    assert "classes   4 to learn from, 4 for validation, 4 for test" in out
    assert fastmeta("evaluate", "fastmeta-images.safetensors", "--tasks", 3)[0] == 0


def split_file(folder):
    split = {s: [f"c{4 * i + c}" for c in range(4)] for i, s in enumerate(("train", "val", "test"))}
    (folder / "split.json").write_text(json.dumps(split))
    return folder / "split.json"


def test_the_published_sources_are_read_where_data_says(fastmeta, tmp_path, monkeypatch):
    classes = ImageClasses.of(
        {f"c{i}": torch.from_numpy(p).permute(0, 3, 1, 2) for i, p in enumerate(pictures(9))}
    )
    read = []

    def reader(path):
        read.append(path)
        return ImageSplits(*(classes.select([f"c{3 * i + c}" for c in range(3)]) for i in range(3)))

    for name in ("cifar_fs", "fc100", "mini_imagenet"):
        monkeypatch.setattr(image_data, name, reader)
        source = name.replace("_", "-")
        line = ["train", source, "--data", "there", *SMALL, "--shots", 1, "--steps", 3]
        status, _, err = fastmeta(*line)
        assert status == 0, err
        assert read.pop() == str(tmp_path / "there")
        assert fastmeta("evaluate", f"fastmeta-{source}.best.safetensors", "--tasks", 2)[0] == 0
        assert read.pop() == str(tmp_path / "there")


def test_without_validation_classes_there_is_no_validation(fastmeta, archive, tmp_path):
    (tmp_path / "s.json").write_text(
        json.dumps({"train": ["c00", "c01", "c02"], "test": ["c03", "c04", "c05"]})
    )
    status, out, _ = fastmeta(*npz_line(archive, "--steps", 4, "--split", "s.json"))
    assert status == 0 and "0 for validation" in out and "best" not in out
    assert f"now       fastmeta evaluate {FILE}" in out


# ---- evaluation ---------------------------------------------------------------------------------


def test_it_learns_and_evaluation_shows_it(fastmeta, tmp_path):
    line = npz_line(write_npz(tmp_path / "many.npz", pictures(40)), "--validation-tasks", 50)
    line += "--steps 150 --validate-every 50 --learn-inner-lr tensor --lr 0.01".split()
    assert fastmeta(*line, "--filters", 16, "--meta-batch", 4)[0] == 0
    status, out, err = fastmeta("evaluate", BEST, "--tasks", 90, "--json", "e.json")
    assert status == 0 and not err
    numbers = json.loads((tmp_path / "e.json").read_text())
    rows = numbers["accuracy_by_step"]
    assert len(rows) == 4 and numbers["tasks"] == 90 and numbers["queries"] == 5
    assert all(row["low"] < row["mean"] < row["high"] for row in rows[1:])
    assert rows[0]["mean"] == pytest.approx(1 / 3, abs=0.1)
    assert rows[1]["low"] > 0.6
    assert f"{100 * rows[1]['mean']:.2f} %" in out and "as in training" in out
    assert "s a task (20 tasks at once)" in out
    assert numbers["meta_steps"] in (50, 100, 150)
    # Another engine and number of steps, the same numbers.
    line = ["evaluate", BEST, "--tasks", 90, "--json", "f.json"]
    fastmeta(*line, "--inner-steps", 2, "--engine", "vmap")
    again = json.loads((tmp_path / "f.json").read_text())["accuracy_by_step"]
    assert len(again) == 3 and again[2]["mean"] == pytest.approx(rows[2]["mean"], abs=2e-3)


def test_moved_and_changed_images(fastmeta, archive, tmp_path):
    fastmeta(*npz_line(archive, "--steps", 1))
    moved = archive.rename(tmp_path / "moved.npz")
    status, _, err = fastmeta("evaluate", FILE, "--tasks", 2)
    assert status == 2 and "squares.npz" in err and err.count("\n") == 1
    assert fastmeta("evaluate", FILE, "--tasks", 2, "--data", moved)[0] == 0
    write_npz(moved, pictures(seed=1))
    status, _, err = fastmeta("evaluate", FILE, "--tasks", 2, "--data", moved)
    assert status == 2 and "moved.npz is not what this checkpoint was trained on" in err


def test_resume_wants_the_same_images(fastmeta, archive):
    fastmeta(*npz_line(archive, "--steps", 1))
    write_npz(archive, pictures(seed=1))
    status, _, err = fastmeta(*npz_line(archive, "--steps", 1, "--resume"))
    assert status == 2 and "source.fingerprint was" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--ways 14", "train: 14 ways need 14 classes, and there are 13"),
        ("--ways 4", "validation: 4 ways need 4 classes, and there are 3"),
        ("--shots 5", "has 6 images, but 5 shots and 2 queries"),
        ("--model omniglot-fc", "--filters: omniglot-fc has none"),
        ("--model conv4", "leave nothing of an image of 12x12"),
        ("--model vgg", "invalid choice: 'vgg'"),
        ("--split none.json", "none.json: No such file"),
    ],
)
def test_wrong_use_is_one_line(fastmeta, archive, options, message):
    status, _, err = fastmeta(*npz_line(archive, "--steps", 1, *options.split()))
    assert status == 2 and message in err and err.count("\n") == 1


def test_images_that_are_not_there_or_not_square(fastmeta, tmp_path):
    for line in ("npz none.npz", "images none", "cifar-fs --data none", "omniglot --data none"):
        status, _, err = fastmeta("train", *line.split())
        assert status == 2 and "none" in err and err.count("\n") == 1, line
    wide = write_npz(tmp_path / "w.npz", pictures()[:, :, :, :10])
    status, _, err = fastmeta(*npz_line(wide))
    assert status == 2 and "must be square, not 12x10" in err


# ---- one-shot runs ------------------------------------------------------------------------------


class Nearest:
    """Answers like a network of a few ways that adapted to numbers: the nearest is the class."""

    def __init__(self, ways):
        self.ways = ways

    def __call__(self, tasks):
        assert tasks.support_y.tolist() == [list(range(self.ways))] * len(tasks)
        distance = (tasks.query_x - tasks.support_x.transpose(1, 2)).abs()
        return fm.MetaOutput(torch.zeros(len(tasks)), -9 * distance, tasks.query_y)


@pytest.mark.parametrize("ways", [2, 3, 5, 6])
def test_more_classes_than_ways_are_dealt_into_groups(ways):
    numbers = torch.tensor([[0.0, 3, 7, 8, 2, 5], [1.0, 2, 3, 4, 5, 6]])[..., None]
    labels = torch.arange(6).repeat(2, 1)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    tasks = fm.TaskBatch(numbers, labels, numbers[:, order] + 0.1, labels[:, order])
    scores = grouped_scores(Nearest(ways), tasks, ways, rounds=20)
    assert scores.shape == (2, 6, 6)
    assert torch.equal(scores.argmax(-1), tasks.query_y)
    assert scores.max() <= 0 and scores.min() > -9 * 9  # a mean, however often they were dealt
    if ways == 6:  # as it is
        outputs = Nearest(6)(tasks).predictions
        torch.testing.assert_close(scores, outputs.log_softmax(-1))


def data_folder():
    folder = os.environ.get("FASTMETA_DATA")
    if folder is None:
        pytest.skip("FASTMETA_DATA does not name the folder of the data")
    return Path(folder)


@pytest.mark.parametrize("split", ["vinyals", "background"])
def test_omniglot_and_its_one_shot_runs(fastmeta, tmp_path, monkeypatch, split):
    monkeypatch.setattr(one_shot, "ROUNDS", 2)
    line = ["train", "omniglot", "--data", data_folder(), "--split", split, "--steps", 30]
    status, out, err = fastmeta(*line, "--validate-every", 30, "--validation-tasks", 10)
    assert status == 0, err
    assert "1x28x28" in out
    best = "fastmeta-omniglot.best.safetensors"
    status, out, err = fastmeta("evaluate", best, "--tasks", 20, "--json", "e.json")
    assert status == 0, err
    numbers = json.loads((tmp_path / "e.json").read_text())
    assert numbers["accuracy_by_step"][1]["mean"] > 0.3
    runs = numbers["one_shot_runs"]
    assert len(runs) == 20 and all(run["alphabet"] in out for run in runs)
    learned = sum(run["classes_learned_from"] for run in runs)
    assert learned == (0 if split == "background" else 156)


def test_caltech_by_its_split(fastmeta):
    folder = data_folder()
    line = ["train", "npz", folder / "caltech101_32.npz", "--steps", 2, "--validate-every", 0]
    split = folder / "splits" / "caltech101_64_16_20.json"
    status, out, err = fastmeta(*line, "--split", split)
    assert status == 0, err
    assert "classes   64 to learn from, 16 for validation, 20 for test" in out
