"""`fastmeta train` and `fastmeta evaluate`, on small jobs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, variance

import pytest

import fastmeta as fm
from fastmeta.training import load_checkpoint, read_curve

CODE = Path(fm.__file__).parents[1]
SMALL = "train sinusoid --hidden 8 --meta-batch 4".split()
FILE = "fastmeta-sinusoid.safetensors"


def table_line(clinic, *more):
    line = ["train", "table", clinic, "--task", "patient", "--target", "first_score"]
    return [*line, "--steps", "40", *more]


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--algorithm fomaml --activation tanh",
        "--algorithm anil --clip 1",
        "--algorithm metasgd --per-step-lr",
        "--algorithm reptile --inner-steps 3",
        "--learn-inner-lr tensor --engine vmap --weight-decay 1",
    ],
)
def test_resume_writes_the_same_bytes(fastmeta, tmp_path, options):
    line = [*SMALL, *options.split(), "--curve"]
    assert fastmeta(*line, "a.csv", "--checkpoint", "a", "--steps", 20)[0] == 0
    assert fastmeta(*line, "b.csv", "--checkpoint", "b", "--steps", 10)[0] == 0
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()
    status, out, _ = fastmeta(*line, "b.csv", "--checkpoint", "b", "--steps", 20, "--resume")
    assert status == 0 and "from step 10 to 20" in out
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_resume_of_a_table_chooses_nothing_anew(fastmeta, clinic, tmp_path):
    fastmeta(*table_line(clinic, "--checkpoint", "a"))
    fastmeta(*table_line(clinic, "--checkpoint", "b", "--steps", "40"))
    straight, begun = (load_checkpoint(tmp_path / name) for name in "ab")
    assert straight.config == begun.config
    status, out, err = fastmeta(
        *table_line(clinic, "--checkpoint", "b", "--steps", "50", "--resume")
    )
    assert status == 0 and "from step 40 to 50" in out and "cross-validation:" not in err
    assert load_checkpoint(tmp_path / "b").config == begun.config


def test_validation_is_resumed_bit_for_bit(fastmeta, tmp_path):
    line = [*SMALL, "--validate-every", 4, "--validation-tasks", 9, "--lr", 0.3]
    line += ["--schedule", "halving", "--halve-every", 7]
    for name, steps in (("a", 20), ("b", 5), ("b", 13), ("b", 20)):
        more = ["--resume"] if name == "b" and steps > 5 else []
        assert fastmeta(*line, "--checkpoint", name, "--steps", steps, *more)[0] == 0
    for kind in ("{}", "{}.best", "{}.curve.csv"):
        one, other = (tmp_path / kind.format(name) for name in "ab")
        assert one.read_bytes() == other.read_bytes()


def test_best_curve_and_plot_lie_beside_the_checkpoint(fastmeta, tmp_path):
    line = [*SMALL, "--validate-every", 5, "--validation-tasks", 4, "--steps", 12]
    status, out, err = fastmeta(*line, "--checkpoint", "runs/x.safetensors", "--plot", "p.svg")
    assert status == 0
    best = load_checkpoint(tmp_path / "runs/x.best.safetensors").best
    assert best["step"] in (5, 10)
    assert f"best      loss {best['loss']:.4g} at step {best['step']}" in out
    assert "evaluate runs/x.best.safetensors" in out
    assert err.count("in validation loss") >= 2
    rows = read_curve(tmp_path / "runs/x.curve.csv")
    assert [row[0] for row in rows if row[2] is not None] == [5, 10]
    assert "<svg" in (tmp_path / "p.svg").read_text()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "x.best.safetensors",
        "x.curve.csv",
        "x.safetensors",
    ]
    _, out, _ = fastmeta(*line, "--checkpoint", "runs/x.safetensors", "--validate-every", 0)
    assert "best" not in out and not (tmp_path / "runs/x.best.safetensors").exists()


def test_data_is_not_taken_for_a_curve(fastmeta, clinic):
    before = clinic.read_bytes()
    status, _, err = fastmeta(*SMALL, "--steps", 3, "--curve", clinic)
    assert status == 2 and "clinic.csv is no training curve" in err
    assert clinic.read_bytes() == before


def test_the_time_limit(fastmeta, tmp_path):
    start = time.monotonic()
    line = [*SMALL, "--steps", 10**9, "--time-limit", 0.02]
    status, out, _ = fastmeta(*line)
    assert time.monotonic() - start < 30
    step = load_checkpoint(tmp_path / FILE).step
    assert status == 0 and 0 < step < 10**9
    assert f"stopped after step {step} as the time is over" in out
    _, out, _ = fastmeta(*line, "--resume")
    assert load_checkpoint(tmp_path / FILE).step > step


def test_cosine_is_over_at_its_last_step(fastmeta):
    line = [*SMALL, "--schedule", "cosine"]
    fastmeta(*line, "--steps", 10)
    status, _, err = fastmeta(*line, "--steps", 20, "--resume")
    assert status == 2 and "training.schedule.steps was 10, now 20" in err


def test_tensorboard_that_is_missing_is_one_line(fastmeta, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    status, _, err = fastmeta(*SMALL, "--steps", 3, "--tensorboard", "tb")
    assert status == 2 and err.count("\n") == 1
    assert "--tensorboard: tensorboard is not installed: pip install tensorboard" in err


def test_a_plot_that_cannot_be_written_is_told_in_one_line(fastmeta, monkeypatch):
    status, _, err = fastmeta(*SMALL, "--steps", 3, "--plot", "/proc/p.png")
    assert status == 2 and "/proc/p.png" in err and err.count("\n") == 1

    def full(rows, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastmeta.cli.train.plot_curve", full)
    status, _, err = fastmeta(*SMALL, "--steps", 3, "--plot", "p.png")
    assert status == 2 and "p.png was not written: No space left on device" in err


def test_divergence_leaves_its_curve(fastmeta, tmp_path):
    line = [*SMALL, "--steps", 300, "--lr", "1e30", "--plot", "p.png"]
    assert fastmeta(*line)[0] == 1
    rows = read_curve(tmp_path / "fastmeta-sinusoid.curve.csv")
    assert rows and [row[0] for row in rows] == list(range(1, len(rows) + 1))
    assert (tmp_path / "p.png").exists() and not (tmp_path / FILE).exists()


def test_the_seed_decides(fastmeta, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fastmeta(*SMALL, "--steps", 3, "--checkpoint", name, "--seed", seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_resume_refuses_what_is_not_the_same_run(fastmeta, clinic, tmp_path):
    fastmeta(*SMALL, "--steps", 3)
    for more, message in (
        (["--lr", "0.5"], "training.lr was 0.001, now 0.5"),
        (["--shots", "3"], "source.shots was 10, now 3"),
        (["--algorithm", "anil"], 'meta.algorithm was "maml", now "anil"'),
        (["--steps", "2"], "is at step 3, past --steps"),
    ):
        status, _, err = fastmeta(*SMALL, "--steps", 3, "--resume", *more)
        assert status == 2 and message in err and err.count("\n") == 1
    status, _, err = fastmeta(*table_line(clinic, "--resume", "--checkpoint", FILE))
    assert status == 2 and "was trained on sinusoid, not table" in err
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-9])
    status, _, err = fastmeta(*SMALL, "--steps", 3, "--resume")
    assert status == 2 and "damaged" in err


def test_divergence_is_told_in_one_line(fastmeta):
    status, _, err = fastmeta(*SMALL, "--steps", 3, "--inner-lr", "1e30")
    assert status == 1 and err.count("\n") == 1 and "--inner-lr" in err


def test_no_bar_without_a_terminal(fastmeta):
    _, out, err = fastmeta(*SMALL, "--steps", 50)
    assert "\r" not in out + err and "\x1b" not in out + err
    assert err.count("\n") == 5 and "step 50 of 50, loss" in err


def test_evaluate_waves(fastmeta, tmp_path):
    fastmeta(*SMALL, "--steps", 200, "--lr", "0.01")
    line = ["evaluate", FILE, "--tasks", 200, "--json", "e.json"]
    status, out, err = fastmeta(*line)
    assert status == 0 and not err and "s a task (" in out
    rows = json.loads((tmp_path / "e.json").read_text())["mse_by_step"]
    assert len(rows) == 6
    assert rows[5]["mean"] < rows[0]["mean"]
    assert all(row["low"] < row["mean"] < row["high"] for row in rows)
    # Another engine and number of steps, the same numbers.
    fastmeta(*line, "--inner-steps", 2, "--engine", "reference")
    again = json.loads((tmp_path / "e.json").read_text())["mse_by_step"]
    assert len(again) == 3 and again[2]["mean"] == pytest.approx(rows[2]["mean"], rel=1e-4)


# ---- tables -------------------------------------------------------------------------------------


def test_what_is_used_is_printed(fastmeta, clinic):
    status, out, _ = fastmeta(*table_line(clinic, "--weight-decay", "1", "--support-norm", "2"))
    assert status == 0
    for line in (
        "inputs    2: x, noise",
        "left out  patient: names the task",
        "left out  visit_time: its name says 'time'",
        "left out  second_score: its name ends in 'score' as the target's does",
        "left out  constant: is constant over the tasks to learn from",
        "tasks     9 to learn from, 3 held out:",
        "engine    resident",
    ):
        assert line in out


def test_evaluation_stands_beside_baselines(fastmeta, clinic, tmp_path):
    more = "--steps 400 --lr 0.01 --weight-decay 0.01 --hidden --inner-lr 0.1".split()
    assert fastmeta(*table_line(clinic, *more, "--support-norm", "2"))[0] == 0
    line = ["evaluate", "fastmeta-table.safetensors", "--draws", 200, "--json", "e.json"]
    status, out, _ = fastmeta(*line)
    assert status == 0 and "3 tasks held out, 5 support rows" in out
    numbers = json.loads((tmp_path / "e.json").read_text())
    rmse = {row["name"]: row["rmse"]["mean"] for row in numbers["rows"]}
    # The slope is common to all, so it can be learned; the level only from the support rows.
    assert rmse["after 5 steps"] < 1.0
    assert rmse["before adaptation"] > 3 and rmse["one network, not adapted"] > 3
    level, rows = by_hand(clinic, numbers["held_out"])
    assert rmse["mean of the training tasks"] == pytest.approx(level, rel=0.01)
    assert rmse["mean of the 5 support rows"] == pytest.approx(rows, rel=0.03)
    fastmeta(*line)
    assert json.loads((tmp_path / "e.json").read_text())["rows"] == numbers["rows"]


def by_hand(clinic, held_out):
    """RMSE expected of the mean of the train tasks' means, and of the mean of 5 random rows."""
    scores: dict[str, list[float]] = {}
    for row in clinic.read_text().splitlines()[1:]:
        cells = row.split(",")
        scores.setdefault(cells[0], []).append(float(cells[5]))
    level = mean([mean(s) for name, s in scores.items() if name not in held_out])
    unseen = [scores[name] for name in held_out]
    return (
        mean([mean([(s - level) ** 2 for s in task]) for task in unseen]) ** 0.5,
        mean([variance(task) * (1 + 1 / 5) for task in unseen]) ** 0.5,
    )


def test_a_moved_or_changed_table(fastmeta, clinic, tmp_path):
    fastmeta(*table_line(clinic, "--weight-decay", "1"))
    line = ["evaluate", "fastmeta-table.safetensors", "--draws", 2]
    moved = clinic.rename(tmp_path / "moved.csv")
    status, _, err = fastmeta(*line)
    assert status == 2 and "clinic.csv: No such file" in err
    assert fastmeta(*line, "--data", moved)[0] == 0
    moved.write_text(moved.read_text().replace(",7,", ",8,", 1))
    status, _, err = fastmeta(*line, "--data", moved)
    assert status == 2 and "does not hold the rows that this checkpoint was trained on" in err


def test_small_tasks_stop_or_are_skipped(fastmeta, clinic):
    with clinic.open("a") as file:
        file.write("tiny,0,1,1,7,50,51\n")
    line = table_line(clinic, "--weight-decay", "1")
    status, _, err = fastmeta(*line)
    assert status == 2 and "task 'tiny' (from line" in err and "has 1 row(s)" in err
    status, out, _ = fastmeta(*line, "--skip-small-tasks")
    assert status == 0 and "skipped   1 task with fewer than 6 rows" in out


# ---- Ctrl-C -------------------------------------------------------------------------------------


def test_ctrl_c_saves_and_the_run_goes_on(fastmeta, tmp_path):
    command = [sys.executable, "-m", "fastmeta", *SMALL, "--steps", "1000000000"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CODE)},
    )
    try:
        assert any(line.startswith("engine") for line in iter(process.stdout.readline, ""))
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.7)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in err
    step = load_checkpoint(tmp_path / FILE).step
    assert 0 < step < 1000000000
    assert f"stopped after step {step}" in out

    fastmeta(*SMALL, "--steps", step + 3, "--resume", "--threads", 1)
    resumed = (tmp_path / FILE).read_bytes()
    fastmeta(*SMALL, "--steps", step + 3, "--checkpoint", "straight")
    assert resumed == (tmp_path / "straight").read_bytes()
