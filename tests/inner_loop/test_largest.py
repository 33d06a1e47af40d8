"""The largest of pixels, as `x.max(dim)` gives it: a pool over all of them."""

import pytest
import torch
import torch.nn.functional as F
from oracle import DOUBLE, assert_exact
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")


class Of(nn.Module):
    def __init__(self, pooled, sequence):
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3) if sequence else nn.Conv2d(2, 4, 3)
        self.head, self.pooled = nn.Linear(4, 3), pooled

    def forward(self, x):
        return self.head(self.pooled(F.relu(self.conv(x))))


def both(x):
    values, places = x.max(-1)
    return values


def places_too(x):
    values, places = x.max(-1)
    return values * (1 + places)


OF_SEQUENCES = {
    "an item": lambda x: x.max(-1)[0],
    "values": lambda x: x.max(dim=2).values,
    "torch.max": lambda x: torch.max(x, 2, keepdim=True)[0].squeeze(2),
    "unpacked": both,
}
OF_IMAGES = {
    "flattened": lambda x: x.flatten(2).max(2)[0],
    "side by side": lambda x: x.max(3)[0].max(2)[0],
    "rows, then a mean": lambda x: x.max(-1, keepdim=True).values.mean((2, 3)),
}
OTHERWISE = {
    "places": places_too,
    "channels": lambda x: x.max(1, keepdim=True)[0].mean(2) + x[..., 0],
}


def learner(pooled, sequence):
    torch.manual_seed(0)
    x = torch.randn(3, 9, 2, *[7] if sequence else [6, 5], dtype=DOUBLE)
    y = torch.randint(3, (3, 9))
    meta = fm.MAML(Of(pooled, sequence).double(), inner_lr=0.2, inner_steps=2)
    return meta, fm.TaskBatch(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:])


@pytest.mark.parametrize("name", [*OF_SEQUENCES, *OF_IMAGES])
def test_natively(name):
    sequence = name in OF_SEQUENCES
    meta, tasks = learner({**OF_SEQUENCES, **OF_IMAGES}[name], sequence)
    assert fm.explain(meta, tasks).name == "resident"
    tasks.support_x.requires_grad_()
    assert_exact(meta, tasks, [*meta.parameters(), tasks.support_x])


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_is_no_such_pool(name):
    assert_exact(*learner(OTHERWISE[name], True))


def test_of_equal_ones_the_first_gets_the_gradient():
    meta, tasks = learner(OF_SEQUENCES["an item"], True)
    tasks.support_x[:, :, :, 3:] = tasks.support_x[:, :, :, :1]  # constant from here on
    tasks.support_x.requires_grad_()
    assert_exact(meta, tasks, [*meta.parameters(), tasks.support_x])


def test_convolutions_of_several_widths_over_time():
    class TextCNN(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList([nn.Conv1d(2, 4, k) for k in (2, 3, 4)])
            self.head = nn.Linear(12, 3)

        def forward(self, x):
            return self.head(torch.cat([F.relu(c(x)).max(-1)[0] for c in self.convs], 1))

    _, tasks = learner(OF_SEQUENCES["an item"], True)
    meta = fm.MAML(TextCNN().double(), inner_lr=0.2, inner_steps=2)
    assert fm.explain(meta, tasks).name == "resident"
    assert_exact(meta, tasks)
