"""Learners of any ways on the command line: `train npz --algorithm protonet` and its like."""

import json

import pytest
import torch
from command_line import pictures, train_until, write_npz

import fastmeta as fm
from fastmeta.cli.options import build_parser
from fastmeta.cli.setup import load_meta
from fastmeta.training import load_checkpoint, read_curve

FILE = "fastmeta-npz-protonet.safetensors"  # each algorithm but MAML has files of its own
SMALL = "--model conv4-stride --filters 4 --queries 2 --shots 1 --ways 4 --eval-ways 3".split()
SMALL += "--validation-tasks 4 --validate-every 3".split()


@pytest.fixture
def archive(tmp_path):
    return write_npz(tmp_path / "squares.npz", pictures())


def line_of(archive, algorithm, *more):
    return ["train", "npz", archive, "--algorithm", algorithm, *SMALL, *map(str, more)]


def options_of(*line):
    return build_parser().parse_args(["train", *line])


@pytest.mark.parametrize(
    "algorithm",
    [
        "protonet --learn-temperature --normalize",
        "matchingnet --full-context",
        "r2d2 --schedule halving --halve-every 2",
        "protomaml --meta-batch 2",
    ],
)
def test_resume_writes_the_same_bytes_and_any_ways_are_evaluated(
    fastmeta, archive, tmp_path, algorithm
):
    line = line_of(archive, *algorithm.split(), "--steps", 6)
    status, out, err = fastmeta(*line, "--checkpoint", "a")
    assert status == 0, err
    train_until(fastmeta, 4, *line, "--checkpoint", "b")
    assert load_checkpoint(tmp_path / "b").step == 4
    assert fastmeta(*line, "--checkpoint", "b", "--resume")[0] == 0
    for kind in ("{}", "{}.best", "{}.curve.csv"):
        one, other = (tmp_path / kind.format(name) for name in "ab")
        assert one.read_bytes() == other.read_bytes()
    for asked, ways, shots in (("", 3, 1), ("--ways 2 --shots 3", 2, 3)):
        more = ["--tasks", 5, "--json", "e.json", *asked.split()]
        status, out, err = fastmeta("evaluate", "a.best", *more)
        assert status == 0, err
        numbers = json.loads((tmp_path / "e.json").read_text())
        assert (numbers["ways"], numbers["shots"], numbers["tasks"]) == (ways, shots, 5)
        assert ("accuracy_by_step" in numbers) == ("protomaml" in algorithm)
        assert f"{ways} ways, {shots} shot" in out


def test_it_learns(fastmeta, tmp_path):
    many = write_npz(tmp_path / "many.npz", pictures(40))
    line = ["train", "npz", many, "--algorithm", "protonet", "--model", "conv4-stride"]
    line += "--filters 16 --ways 10 --shots 1 --queries 4 --lr 0.01 --validate-every 0".split()
    assert fastmeta(*line, "--steps", 60)[0] == 0
    losses = [row[1] for row in read_curve("fastmeta-npz-protonet.curve.csv")]
    assert sum(losses[-10:]) / 10 < losses[0] / 3
    assert fastmeta("evaluate", FILE, "--tasks", 100, "--json", "e.json")[0] == 0
    assert json.loads((tmp_path / "e.json").read_text())["accuracy"]["low"] > 0.9


def test_the_mode_and_the_features_of_evaluation(fastmeta, archive, tmp_path):
    assert fastmeta(*line_of(archive, "protonet", "--steps", 3))[0] == 0
    told = {}
    for kind in ("un", "l2n", "cl2n"):
        line = ["evaluate", FILE, "--tasks", 30, "--json", "e.json", "--features", kind]
        assert fastmeta(*line)[0] == 0
        told[kind] = json.loads((tmp_path / "e.json").read_text())["accuracy"]["mean"]
    assert len(set(told.values())) > 1
    meta = load_meta(load_checkpoint(tmp_path / FILE), "auto")
    norm = next(m for m in meta.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert norm.num_batches_tracked == 3 and not torch.equal(norm.running_var, torch.ones(4))


def test_a_picture_of_the_embedding(fastmeta, archive, tmp_path):
    fastmeta(*line_of(archive, "r2d2", "--steps", 1))
    status, out, err = fastmeta(
        "evaluate", "fastmeta-npz-r2d2.safetensors", "--tasks", 2, "--embedding", "tasks.png"
    )
    assert status == 0, err
    assert (tmp_path / "tasks.png").read_bytes()[:4] == b"\x89PNG" and "tasks.png" in out


def test_defaults_depend_on_the_algorithm():
    proto, maml = (options_of("omniglot", *x.split()) for x in ("--algorithm protonet", ""))
    assert (proto.ways, proto.eval_ways, proto.metric, proto.inner_lr) == (
        60, 20, "sqeuclidean", None,
    )  # fmt: skip
    assert (maml.ways, maml.eval_ways, maml.metric, maml.inner_lr) == (5, None, None, 0.4)
    assert options_of("omniglot", "--algorithm=matchingnet").metric == "cosine"
    assert options_of("omniglot", "--algorithm", "protonet", "--ways", "7").ways == 7
    assert options_of("npz", "x", "--algorithm", "protomaml").learn_inner_lr is None


@pytest.mark.parametrize(
    ("algorithm", "options", "message"),
    [
        ("protonet", "--inner-lr 1", "--inner-lr: protonet has no such setting"),
        ("r2d2", "--metric dot", "--metric: r2d2 has no such setting"),
        ("maml", "--eval-ways 4 --temperature 2", "--temperature: maml has no such setting"),
        ("maml", "", "--eval-ways 3: the head of maml has 4 outputs"),
        ("matchingnet", "--normalize", "--normalize: matchingnet has no such setting"),
        ("protonet", "--engine vmap", "--engine: protonet has no inner loop"),
        ("protonet", "--ways 14", "train: 14 ways need 14 classes, and there are 13"),
        ("protonet", "--eval-ways 4", "validation: 4 ways need 4 classes, and there are 3"),
        ("protonets", "", "invalid choice: 'protonets'"),
        ("protonet", "--ways 1", "--ways: must be a whole number of at least 2, not '1'"),
        ("r2d2", "--eval-ways 1", "--eval-ways: must be a whole number of at least 2, not '1'"),
        ("protomaml", "--shots 30", "30 shots and 2 queries need 32"),
        ("matchingnet", "--temperature nan", "--temperature: must be a number above 0"),
    ],
)
def test_what_an_algorithm_has_not_is_refused(fastmeta, archive, algorithm, options, message):
    line = line_of(archive, algorithm, "--steps", 1, *options.split())
    status, _, err = fastmeta(*line)
    assert status == 2 and message in err and err.count("\n") == 1, err


def test_what_an_evaluation_cannot_do_is_refused(fastmeta, archive):
    line = line_of(archive, "maml", "--steps", 1)
    del line[line.index("--eval-ways") : line.index("--eval-ways") + 2]
    line[line.index("--ways") + 1] = "3"
    assert fastmeta(*line)[0] == 0
    maml = "fastmeta-npz.safetensors"
    for options, message in (
        ("--ways 2", "--ways 2: the head of maml has 3 outputs"),
        ("--embedding a.png", "--embedding: this network has no features that tasks share"),
        ("--features l2n", "--features: only protonet"),
    ):
        status, _, err = fastmeta("evaluate", maml, "--tasks", 2, *options.split())
        assert status == 2 and message in err and err.count("\n") == 1
    assert fastmeta("evaluate", maml, "--tasks", 2, "--shots", 2)[0] == 0
    fastmeta(*line_of(archive, "protonet", "--steps", 1))
    status, _, err = fastmeta("evaluate", FILE, "--inner-steps", 2)
    assert status == 2 and "--inner-steps: this network has no inner loop" in err
    status, _, err = fastmeta("evaluate", FILE, "--embedding", "a.nonsense")
    assert status == 2 and "a.nonsense is no picture" in err


def test_a_result_that_cannot_be_written_is_told_in_a_line(
    fastmeta, archive, tmp_path, monkeypatch
):
    fastmeta(*line_of(archive, "protonet", "--steps", 1))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    for path, message in (("folder.png", "is a folder"), ("file/e.png", "file")):
        status, out, err = fastmeta("evaluate", FILE, "--embedding", path, "--tasks", 2)
        assert status == 2 and message in err and err.count("\n") == 1
        assert "accuracy" not in out  # told before the work is done
    status, _, err = fastmeta(
        "evaluate", FILE, "--tasks", 2, "--ways", 2, "--embedding", "new/folder/e.png"
    )
    assert status == 0 and (tmp_path / "new/folder/e.png").exists(), err

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastmeta.cli.few_shot.plot_embedding", full)
    monkeypatch.setattr("pathlib.Path.write_text", full)
    for option, path in (("--embedding", "e.png"), ("--json", "e.json")):
        status, _, err = fastmeta("evaluate", FILE, "--tasks", 2, "--ways", 2, option, path)
        assert status == 2 and f"{path} was not written: No space left" in err
        assert err.count("\n") == 1


def test_what_is_no_checkpoint_of_this_run_is_refused(fastmeta, archive, tmp_path):
    assert fastmeta(*line_of(archive, "protonet", "--steps", 1))[0] == 0
    good = (tmp_path / FILE).read_bytes()
    last = bytes([good[-1] ^ 0xFF])
    for name, damaged, message in (
        ("cut", good[: len(good) // 2], "is not a checkpoint, or is damaged"),
        ("noise", bytes(range(256)) * 9, "is not a checkpoint, or is damaged"),
        ("empty", b"", "is not a checkpoint, or is damaged"),
        ("flipped", good[:-1] + last, "do not match its checksum"),
    ):
        (tmp_path / name).write_bytes(damaged)
        for line in (["evaluate", name], line_of(archive, "protonet", "--steps", 2, "--resume")):
            more = [] if line[0] == "evaluate" else ["--checkpoint", name]
            status, _, err = fastmeta(*line, *more)
            assert status == 2 and message in err and err.count("\n") == 1, err
        assert (tmp_path / name).read_bytes() == damaged  # what is refused is not written over
    other = line_of(archive, "r2d2", "--steps", 2, "--resume", "--checkpoint", FILE)
    status, _, err = fastmeta(*other)
    assert status == 2 and 'meta.algorithm was "protonet", now "r2d2"' in err
    status, _, err = fastmeta("evaluate", FILE, "--ways", 1)
    assert status == 2 and "--ways: must be a whole number of at least 2" in err
    assert (tmp_path / FILE).read_bytes() == good


def test_each_algorithm_is_what_its_name_says(fastmeta, archive):
    kinds = {"protonet": fm.ProtoNet, "matchingnet": fm.MatchingNet, "r2d2": fm.R2D2}
    for algorithm, kind in kinds.items():
        fastmeta(*line_of(archive, algorithm, "--steps", 1, "--validate-every", 0))
        meta = load_meta(load_checkpoint(f"fastmeta-npz-{algorithm}.safetensors"), "auto")
        assert type(meta) is kind
        assert meta.encoder[0][0].weight.shape == (4, 1, 3, 3)
