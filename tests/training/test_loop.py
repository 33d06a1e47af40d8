import os
import signal
from types import SimpleNamespace

import pytest
import torch

import fastmeta as fm
from fastmeta.episodes import Sinusoid
from fastmeta.models import mlp
from fastmeta.training import (
    Curve,
    Run,
    Schedule,
    TrainingDiverged,
    Validation,
    best_checkpoint,
    load_checkpoint,
    read_curve,
    train,
)


def make_run(seed=0, clip=None, lr=1e-2, schedule=None, every=None, **options):
    torch.manual_seed(seed)
    meta = fm.MAML(mlp([1, 8, 1]), loss="mse", **({"inner_lr": 0.05, "inner_steps": 2} | options))
    return Run(
        meta,
        Sinusoid(shots=4, queries=4, seed=seed),
        torch.optim.Adam(meta.parameters(), lr=lr),
        meta_batch=3,
        clip=clip,
        schedule=schedule,
        validation=every and Validation(Sinusoid(seed=99), every=every, tasks=5),
        config={"seed": seed, "clip": clip},
    )


def test_the_loss_falls():
    run = make_run()
    unseen = Sinusoid(seed=9).sample(200)
    before = run.meta(unseen).loss.mean()
    for _ in range(300):
        run.advance()
    assert run.step == 300
    assert run.meta(unseen).loss.mean() < 0.93 * before


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"learn_inner_lr": "element"},
        {"every": 3},
        {"every": 7, "schedule": Schedule("cosine", 20)},
        {"schedule": Schedule("halving", 4)},
    ],
)
def test_resume_is_bit_for_bit(tmp_path, options):
    paths = [tmp_path / name for name in ("straight.safetensors", "resumed.safetensors")]
    train(make_run(**options), steps=20, checkpoint=paths[0])

    first, again = make_run(**options), make_run(**options)
    train(first, steps=10, checkpoint=paths[1])
    again.source.sample(5)  # whatever stood there before must not matter
    torch.rand(3)
    again.resume(paths[1])
    assert again.step == 10 and again.best == first.best
    train(again, steps=20, checkpoint=paths[1])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    if "every" in options:
        best = [best_checkpoint(path) for path in paths]
        assert best[0].read_bytes() == best[1].read_bytes()


def test_another_run_is_not_resumed(tmp_path):
    path = tmp_path / "c.safetensors"
    make_run(seed=0).save(path)
    with pytest.raises(ValueError, match="seed was 0, now 1"):
        make_run(seed=1).resume(path)


def test_saves_now_and_then(tmp_path):
    steps = []

    class Noting(Run):
        def save(self, path):
            steps.append(self.step)

    run = make_run()
    run.__class__ = Noting
    train(run, steps=10, checkpoint=tmp_path / "c", save_every=4)
    assert steps == [4, 8, 10]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_and_saves(tmp_path, number):
    path = tmp_path / "c.safetensors"
    before = signal.getsignal(number)
    run = make_run()
    stopped = train(
        run,
        steps=100,
        checkpoint=path,
        report=lambda step, *_: signal.raise_signal(number) if step == 5 else None,
    )
    assert stopped == number and run.step == 5
    resumed = make_run()
    resumed.resume(path)
    assert resumed.step == 5
    assert signal.getsignal(number) is before


@pytest.fixture
def heeded_ctrl_c():
    """A shell that runs the tests in its background lets them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_is_not_held_back(heeded_ctrl_c):
    def twice(*_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(make_run(), steps=5, report=twice)


def test_divergence_stops_before_the_update(tmp_path):
    run = make_run(inner_lr=1e30)
    before = [p.clone() for p in run.meta.parameters()]
    with pytest.raises(TrainingDiverged, match="step 1"):
        train(run, steps=5, checkpoint=tmp_path / "c.safetensors")
    assert run.step == 0 and not (tmp_path / "c.safetensors").exists()
    assert all(torch.equal(a, b) for a, b in zip(before, run.meta.parameters(), strict=True))


def test_clipping_bounds_the_gradient():
    free, clipped = make_run(), make_run(clip=1e-3)
    for run in (free, clipped):
        run.advance()
    norms = [
        torch.cat([p.grad.flatten() for p in run.meta.parameters()]).norm().item()
        for run in (free, clipped)
    ]
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(1e-3, rel=1e-2)


# ---- schedule, validation, time ----------------------------------------------------------------


def test_the_schedule_sets_the_rate():
    run = make_run(lr=0.1, schedule=Schedule("halving", 2))
    rates = []
    for _ in range(5):
        run.advance()
        rates.append(run.optimizer.param_groups[0]["lr"])
    assert rates == [0.1, 0.1, 0.05, 0.05, 0.025]


def test_without_a_schedule_the_rate_is_the_callers():
    run = make_run(lr=0.1)
    run.optimizer.param_groups[0]["lr"] = 0.3
    run.advance()
    assert run.optimizer.param_groups[0]["lr"] == 0.3


def test_the_best_checkpoint_is_of_the_best_score(tmp_path):
    path = tmp_path / "run.safetensors"
    scores = []
    # So large a rate that the loss goes up and down.
    run = make_run(lr=0.3, every=2)
    train(
        run,
        steps=21,
        checkpoint=path,
        report=lambda *seen: scores.append(seen[2]) if seen[2] else None,
    )
    assert [score.step for score in scores] == list(range(2, 21, 2))
    best = min(scores, key=lambda score: score.loss)
    assert best.step != 20 and run.best == best
    kept = load_checkpoint(tmp_path / "run.best.safetensors")
    assert kept.step == best.step and kept.best == vars(best)
    assert load_checkpoint(path).best == vars(best)
    # The parameters kept are those that were judged.
    fresh = make_run(lr=0.3, every=2)
    fresh.meta.load_state_dict(kept.meta)
    assert fresh.validation.score(fresh.meta, best.step) == best


def test_training_is_the_same_with_and_without_validation(tmp_path):
    one, other = make_run(), make_run(every=1)
    for run in (one, other):
        train(run, steps=6)
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.meta.parameters(), other.meta.parameters(), strict=True)
    )


def test_the_best_of_an_earlier_run_goes_with_it(tmp_path):
    path = tmp_path / "c.safetensors"
    train(make_run(every=2), steps=2, checkpoint=path)
    assert best_checkpoint(path).exists()
    train(make_run(every=50), steps=2, checkpoint=path)
    assert os.listdir(tmp_path) == ["c.safetensors"]


def test_training_stops_in_time_and_saves(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    now = 0.0

    def slow(step, *_):
        nonlocal now
        now += 2 if step == 3 else 1

    monkeypatch.setattr("fastmeta.training.loop.time", SimpleNamespace(monotonic=lambda: now))
    run = make_run()
    # After step 6, at 7 seconds, the longest step so far would end at 9.
    assert train(run, steps=1000, checkpoint=path, report=slow, deadline=8.5) == "time"
    assert run.step == 6 and load_checkpoint(path).step == 6
    assert train(run, steps=1000, checkpoint=path, deadline=5.0) == "time"
    assert run.step == 6
    assert train(run, steps=6, deadline=5.0) is None


# ---- the curve ----------------------------------------------------------------------------------


def test_the_curve_continues(tmp_path):
    path = tmp_path / "new" / "curve.csv"
    straight = []
    train(make_run(every=2), steps=6, report=lambda *row: straight.append(row))

    first = make_run(every=2)
    train(first, steps=5, logs=[Curve(path)])
    # As if the run had been killed after step 5, with its last checkpoint at step 3.
    curve = Curve(path, after=3)
    again = make_run(every=2)
    for _ in range(3):
        again.advance()
    train(again, steps=6, logs=[curve], save_every=2)
    assert read_curve(path) == [
        (step, loss, score.loss if score else None, None) for step, loss, score in straight
    ]


def test_the_curve_is_never_behind_the_checkpoint(tmp_path):
    path, curve = tmp_path / "c.safetensors", tmp_path / "c.csv"

    class Reading(Run):
        def save(self, path):
            assert [row[0] for row in read_curve(curve)] == list(range(1, self.step + 1))
            saved.append(self.step)

    run = make_run()
    run.__class__ = Reading
    saved = []
    train(run, steps=9, checkpoint=path, save_every=4, logs=[Curve(curve)])
    assert saved == [4, 8, 9]


class Lines:
    """Two classes of images that differ in the direction of a line."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def sample(self, n_tasks):
        x = 0.3 * torch.randn(n_tasks, 4, 2, 4, 4, generator=self.generator)
        x[:, ::2, :, 1] += 1
        x[:, 1::2, :, :, 1] += 1
        y = torch.tensor([0, 1]).expand(n_tasks, 2)
        return fm.TaskBatch(x[:, :2], y, x[:, 2:], y)

    def state_dict(self):
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])


def make_proto_run():
    """Channels last, so that parameters are not contiguous; norms with running statistics."""
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Dropout(), torch.nn.Flatten()
    )
    meta = fm.ProtoNet(encoder.to(memory_format=torch.channels_last))
    optimizer = torch.optim.AdamW(meta.parameters(), lr=1e-2, fused=True)
    validation = Validation(Lines(), every=3, tasks=2)
    return Run(meta, Lines(), optimizer, meta_batch=2, validation=validation)


def test_a_metric_learner_resumes_bit_for_bit(tmp_path):
    train(make_proto_run(), steps=12, checkpoint=tmp_path / "straight")
    train(make_proto_run(), steps=5, checkpoint=tmp_path / "resumed")
    run = make_proto_run()
    run.resume(tmp_path / "resumed")
    train(run, steps=12, checkpoint=tmp_path / "resumed")
    assert (tmp_path / "straight").read_bytes() == (tmp_path / "resumed").read_bytes()
    assert run.meta.training and run.meta.encoder[1].num_batches_tracked == 12


def test_validation_is_in_eval_mode():
    run = make_proto_run()
    run.advance()
    statistics = run.meta.encoder[1].running_mean.clone()
    scores = {run.validation.score(run.meta, 1) for _ in range(2)}
    assert len(scores) == 1  # dropout would make two
    assert torch.equal(run.meta.encoder[1].running_mean, statistics)
