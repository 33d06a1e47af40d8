import pytest
import torch

from fastmeta import MAML
from fastmeta.cli import demo
from fastmeta.episodes import Sinusoid
from fastmeta.models import mlp


def test_demo_plots_and_measures(fastmeta, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "TIMED_SECONDS", 0.05)
    status, out, _ = fastmeta("demo", "--steps", "30", "--plot", "new/p.png")
    assert status == 0
    assert (tmp_path / "new/p.png").read_bytes().startswith(b"\x89PNG")
    for line in ("before adaptation", "after 1 step ", "after 5 steps", "plain PyTorch loop"):
        assert line in out


@pytest.mark.parametrize(
    ("plot", "said"),
    [("p.xyz", "p.xyz is no picture"), ("/proc/p.png", "/proc/p.png"), (".", "is no picture")],
)
def test_a_plot_that_cannot_be_written_fails_at_the_start(fastmeta, plot, said):
    status, out, err = fastmeta("demo", "--steps", "30", "--plot", plot)
    assert status == 2 and said in err and err.count("\n") == 1 and not out


def test_demo_ends_in_time(fastmeta, monkeypatch):
    monkeypatch.setattr(demo, "TIMED_SECONDS", 0.01)
    monkeypatch.setattr(demo, "LEARNING_SECONDS", 0.2)
    status, out, _ = fastmeta("demo", "--steps", "1000000")
    assert status == 0 and 0 < int(out.split(" meta-steps in")[0].split()[-1]) < 10_000


def test_demo_says_if_the_numbers_differ(monkeypatch):
    meta = MAML(mlp([1, 40, 40, 1]), inner_lr=0.02, inner_steps=5, loss="mse")
    monkeypatch.setattr(demo, "TIMED_SECONDS", 0.01)
    with pytest.raises(RuntimeError, match="disagree"):
        demo._print_speed(meta, seed=0)  # the plain loop takes steps of 0.01


def test_the_plain_loop_is_exact_maml():
    torch.manual_seed(0)
    model = mlp([1, 6, 6, 1]).double()
    tasks = Sinusoid(shots=5, queries=5, dtype=torch.float64).sample(3)
    meta = MAML(model, inner_lr=0.1, inner_steps=2, loss="mse", engine="reference")
    losses = meta(tasks).loss.mean(), demo.plain_maml(list(model.parameters()), tasks, 2, 0.1)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    torch.testing.assert_close(*gradients)
