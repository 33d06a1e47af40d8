"""Arithmetic on rows at any number of tasks and samples: lanes are tasks, samples, or some of both.

Which of them is chosen depends on both numbers; tests/csrc/test_written.cpp sees that each one is.
"""

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_exact
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")

INPUTS, WIDTH, OUTPUTS = 5, 22, 3
SIZES = [(1, 4, 3), (2, 5, 9), (3, 7, 2), (4, 20, 20), (5, 3, 17), (6, 9, 1), (9, 1, 6)]
SIZES += [(17, 6, 5), (33, 21, 30)]  # (tasks, support, query)


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(INPUTS, 2 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, OUTPUTS)
        self.scale = nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, x):
        h = self.norm(F.glu(self.first(x)))
        return self.head(h + F.glu(self.second(h)) * self.scale.exp())


def labelled(tasks, support, query):
    def samples(n):
        x = torch.randn(tasks, n, INPUTS, dtype=torch.float64)
        return x, torch.randint(OUTPUTS, (tasks, n))

    return fm.TaskBatch(*samples(support), *samples(query))


def measured(tasks, support, query):
    def samples(n):
        x = torch.randn(tasks, n, INPUTS, dtype=torch.float64)
        return x, torch.randn(tasks, n, OUTPUTS, dtype=torch.float64)

    return fm.TaskBatch(*samples(support), *samples(query))


def far_or_near(prediction, target):
    return (prediction - target).square().log1p().mean()


def maml(**options):
    torch.manual_seed(3)
    options = {"inner_steps": 2, "inner_lr": 0.1, "engine": "resident", **options}
    return fm.MAML(Gated().double(), **options)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_any_number_of_tasks_and_samples(sizes):
    assert_exact(maml(loss="cross_entropy"), labelled(*sizes))
    assert_exact(maml(loss="mse", order=1), measured(*sizes))
    assert_exact(maml(loss=far_or_near), measured(*sizes))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_weights_of_samples(sizes):
    batch = measured(*sizes)
    weighted = [torch.rand(len(batch), n, dtype=torch.float64) for n in sizes[1:]]
    weighted[0][0, 1:2] = 0
    four = batch.support_x, batch.support_y, batch.query_x, batch.query_y
    batch = fm.TaskBatch(*four, *weighted)
    assert_exact(maml(loss="mse"), batch)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gradients_through_predictions_adapted_parameters_and_inputs(sizes):
    batch = measured(*sizes)
    x = [batch.support_x.requires_grad_(), batch.query_x.requires_grad_()]

    def of(engine):
        meta = maml(loss="mse", engine=engine)
        out = meta(batch)
        adapted = meta.adapt(batch.support_x, batch.support_y).parameters
        outside = (out.predictions.sin() * out.predictions).sum() + out.loss.square().sum()
        outside = outside + sum(p.cos().sum() for p in adapted.values())
        gradients = torch.autograd.grad(outside, [*meta.parameters(), *x])
        return [out.predictions, out.loss, *adapted.values(), *gradients]

    for got, right in zip(of("resident"), of("reference"), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-11)


def test_padding_never_decides_what_is_finite():
    """Lanes without a sample compute with one that is there: sqrt has no derivative at 0."""

    class Roots(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, OUTPUTS)

        def forward(self, x):
            size = x.square().sum(-1, keepdim=True).sqrt()
            return self.head(torch.tanh(self.first(x / size)) * size.log())

    for sizes in SIZES:
        meta = fm.MAML(
            Roots().double(), loss="mse", inner_steps=2, inner_lr=0.1, engine="resident"
        )
        assert_exact(meta, measured(*sizes))
