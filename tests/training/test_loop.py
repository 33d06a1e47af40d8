import signal

import pytest
import torch

import fastmeta as fm
from fastmeta.episodes import Sinusoid
from fastmeta.models import mlp
from fastmeta.training import Curve, Run, TrainingDiverged, train


def make_run(seed=0, clip=None, lr=1e-2, **options):
    torch.manual_seed(seed)
    meta = fm.MAML(mlp([1, 8, 1]), loss="mse", **({"inner_lr": 0.05, "inner_steps": 2} | options))
    optimizer = torch.optim.Adam(meta.parameters(), lr=lr)
    config = {"seed": seed, "clip": clip}
    source = Sinusoid(shots=4, queries=4, seed=seed)
    return Run(meta, source, optimizer, meta_batch=3, clip=clip, config=config)


def test_the_loss_falls():
    run = make_run()
    unseen = Sinusoid(seed=9).sample(200)
    before = run.meta(unseen).loss.mean()
    for _ in range(300):
        run.advance()
    assert run.step == 300
    assert run.meta(unseen).loss.mean() < 0.93 * before


@pytest.mark.parametrize("learn", [None, "element"])
def test_resume_is_bit_for_bit(tmp_path, learn):
    paths = [tmp_path / name for name in ("straight.safetensors", "resumed.safetensors")]
    train(make_run(learn_inner_lr=learn), steps=20, checkpoint=paths[0])

    train(make_run(learn_inner_lr=learn), steps=10, checkpoint=paths[1])
    again = make_run(learn_inner_lr=learn)
    again.source.sample(5)  # whatever stood there before must not matter
    torch.rand(3)
    again.resume(paths[1])
    assert again.step == 10
    train(again, steps=20, checkpoint=paths[1])
    assert paths[0].read_bytes() == paths[1].read_bytes()


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
        report=lambda step, _: signal.raise_signal(number) if step == 5 else None,
    )
    assert stopped == number and run.step == 5
    resumed = make_run()
    resumed.resume(path)
    assert resumed.step == 5
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_is_not_held_back():
    def twice(step, _):
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


def test_the_curve_continues(tmp_path):
    path = tmp_path / "new" / "curve.csv"
    straight = []
    train(make_run(), steps=6, report=lambda _, loss: straight.append(loss))

    first = make_run()
    train(first, steps=5, curve=Curve(path))
    # As if the run had been killed after step 5, with its last checkpoint at step 3.
    curve = Curve(path, after=3)
    again = make_run()
    for _ in range(3):
        again.advance()
    train(again, steps=6, curve=curve)
    lines = path.read_text().split()
    assert lines[0] == "step,loss"
    assert [float(line.split(",")[1]) for line in lines[1:]] == straight


def test_a_foreign_curve_is_not_overwritten(tmp_path):
    path = tmp_path / "curve.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no training curve"):
        Curve(path, after=1)
