"""Forwards that make one number of a sample, [S], or an array, in the native kernels."""

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_exact
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")

INPUTS, D = 3, 6


class Network(nn.Module):
    def __init__(self, end, outputs=1):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(INPUTS, D), nn.Tanh(), nn.Linear(D, outputs))
        self.end = end

    def forward(self, x):
        return ENDS[self.end](self.layers(x))


ENDS = {
    "squeeze": lambda y: y.squeeze(-1),
    "all squeezed": lambda y: y.squeeze(),
    "select": lambda y: y[:, 0],
    "flatten": lambda y: y.flatten(),
    "view": lambda y: y.view(-1),
    "sum": lambda y: (y * y).sum(1),
    "array": lambda y: y.view(-1, 3, 2).transpose(1, 2),
}


def tasks_of(*target, t=2, s=5, q=4, weighted=False):
    def samples(n, *shape):
        return torch.randn(t, n, *shape, dtype=torch.float64)

    weights = {"support_weight": samples(s).abs(), "query_weight": samples(q).abs()}
    return fm.TaskBatch(
        samples(s, INPUTS), samples(s, *target), samples(q, INPUTS), samples(q, *target),
        **weights if weighted else {},
    )  # fmt: skip


def assert_native(model, tasks, loss):
    meta = fm.MAML(model.double(), loss=loss, inner_steps=2, inner_lr=0.05)
    assert_exact(meta, tasks, [*meta.parameters()])
    engines = {plan.engine.__name__.rpartition(".")[2] for plan in meta._plans.values()}
    assert engines == {"resident", "reference"}
    out = meta(tasks)
    assert out.predictions.shape == tasks.query_y.shape
    adapted = meta.adapt(tasks.support_x, tasks.support_y, tasks.support_weight)
    torch.testing.assert_close(adapted(tasks.query_x), out.predictions)
    for p in meta.parameters():
        p.grad = None
    meta.forward_backward(tasks)
    found = [p.grad for p in meta.parameters()]
    torch.testing.assert_close(
        found, [*torch.autograd.grad(out.loss.mean(), [*meta.parameters()])], rtol=0, atol=0
    )


@pytest.mark.parametrize("loss", ["mse", "bce", F.mse_loss, F.huber_loss])
@pytest.mark.parametrize("end", ["squeeze", "select", "flatten", "view", "sum"])
def test_one_number_of_a_sample(end, loss):
    for t, s in ((2, 5), (33, 1)):
        model = Network(end, outputs=4 if end == "sum" else 1)
        assert_native(model, tasks_of(t=t, s=s), loss)


@pytest.mark.parametrize("loss", ["mse", "bce"])
@pytest.mark.parametrize("end", ["squeeze", "select"])
def test_weights(end, loss):
    assert_native(Network(end), tasks_of(weighted=True), loss)


@pytest.mark.parametrize(("s", "q"), [(2, 2), (7, 3)])
def test_a_forward_that_squeezes_all(s, q):
    assert_native(Network("all squeezed"), tasks_of(s=s, q=q), "mse")


def test_a_forward_that_would_squeeze_a_lone_sample():
    meta = fm.MAML(Network("all squeezed").double(), loss="mse", inner_steps=2, inner_lr=0.05)
    assert meta(tasks_of()).predictions.shape == (2, 4)
    for engine in ("auto", "vmap"):
        alone = fm.MAML(meta.model, loss="mse", inner_steps=2, inner_lr=0.05, engine=engine)
        with pytest.raises(ValueError, match=r"makes \[\] of a task's query_x"):
            alone(tasks_of(q=1))


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_an_array_of_a_sample(loss):
    assert_native(Network("array", outputs=6), tasks_of(2, 3), loss)


class OfNumbers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, D), nn.Tanh(), nn.Linear(D, 1))

    def forward(self, x):
        return self.layers(x[:, None])[:, 0]


def test_samples_that_are_numbers():
    x = torch.randn(4, 3, 5, dtype=torch.float64).unbind()
    tasks = fm.TaskBatch(*(one.requires_grad_(i % 2 == 0) for i, one in enumerate(x)))
    meta = fm.MAML(OfNumbers().double(), loss="mse", inner_steps=2, inner_lr=0.05)
    learned = [*meta.parameters(), tasks.support_x, tasks.query_x]
    assert_exact(meta, tasks, learned)
    engines = {plan.engine.__name__.rpartition(".")[2] for plan in meta._plans.values()}
    assert engines == {"resident", "reference"}


def test_a_loss_that_pairs_samples_is_not_read():
    def between(predictions, targets):
        return (predictions[:, None] - targets[None]).abs().tanh().mean()

    meta = fm.MAML(Network("squeeze").double(), loss=between, inner_steps=2, inner_lr=0.05)
    tasks = tasks_of()
    assert_exact(meta, tasks, [*meta.parameters()])
    engines = {plan.engine.__name__.rpartition(".")[2] for plan in meta._plans.values()}
    assert "resident" not in engines


@pytest.mark.parametrize(("end", "target"), [("squeeze", (1,)), ("array", (6,)), ("array", (3, 2))])
def test_targets_of_another_shape_are_refused(end, target):
    meta = fm.MAML(Network(end, outputs=6 if end == "array" else 1).double(), loss="mse")
    with pytest.raises(ValueError, match="shaped like the predictions"):
        meta(tasks_of(*target))
