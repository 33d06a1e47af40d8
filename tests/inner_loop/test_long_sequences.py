"""Recurrent layers over many steps: many small operations, and gradients that vanish on the way."""

import pytest
import torch
from oracle import assert_exact
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop.arithmetic.forward_rows import MOST_NUMBERS
from fastmeta.inner_loop.arithmetic.written import Written, written_of

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")


class Last(nn.Module):
    """What a recurrent layer has in the end."""

    def __init__(self, kind, units):
        super().__init__()
        self.layer, self.head = kind(2, units, batch_first=True), nn.Linear(units, 1)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


def tasks_of(steps, t=2, s=3, q=2, dtype=torch.float64):
    def draw(n):
        return torch.randn(t, n, steps, 2, dtype=dtype), torch.randn(t, n, 1, dtype=dtype)

    return fm.TaskBatch(*draw(s), *draw(q))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_more_than_a_hundred_steps(kind):
    torch.manual_seed(0)
    meta, tasks = fm.MAML(Last(kind, 3).double(), loss="mse", inner_lr=0.1), tasks_of(150)
    assert len(written_of(meta.model, (150, 2)).steps) > 2048
    assert fm.explain(meta, tasks).name == "resident"
    assert_exact(meta, tasks, tolerance=1e-10)


def test_more_numbers_than_a_few_large_operations_may_make():
    torch.manual_seed(0)
    written = written_of(Last(nn.LSTM, 64), (60, 2))
    assert isinstance(written, Written) and sum(step[6] for step in written.steps) > MOST_NUMBERS
    model = Last(nn.LSTM, 64).double()
    assert_exact(fm.MAML(model, loss="mse", inner_lr=0.1), tasks_of(60, t=3), tolerance=1e-10)
    said = written_of(nn.Sequential(nn.Linear(4, 40_000), nn.Tanh(), nn.Tanh(), nn.Tanh()), (4,))
    assert said == f"it makes more than {MOST_NUMBERS} numbers of a sample"


@pytest.mark.parametrize("tasks", [1, 40])
def test_what_is_smaller_than_any_normal_number_is_zero(variant, tasks):
    """Or gradients of long sequences would take as long as a hundred of others."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 1e-20)
    x, y = torch.full((tasks, 2, 1), 1e-20), torch.zeros(tasks, 2, 1)
    meta = fm.MAML(layer, loss="mse", inner_steps=0)
    assert not meta(fm.TaskBatch(x, y, x, y)).predictions.any()
    assert (x[0, 0] * 1e-20).item() > 0  # PyTorch's arithmetic is as it was
