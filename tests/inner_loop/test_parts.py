"""Some of an image's channels: chunks, splits, slices and gated linear units, as stages."""

import pytest
import torch
import torch.nn.functional as F
from oracle import DOUBLE, assert_exact
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")


class Of(nn.Module):
    """Six channels of images, and what a function makes of them."""

    def __init__(self, body, outputs):
        super().__init__()
        self.conv, self.body = nn.Conv2d(2, 6, 3, padding=1), body
        self.head = nn.Conv2d(outputs, 1, 2)

    def forward(self, x):
        return self.head(self.body(self.conv(x)))


def gated(h):
    a, b = h.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


def uneven(h):
    a, b = torch.chunk(h, 2, dim=1)[0], h.split([1, 2, 3], 1)[1]
    return torch.cat([a, b.sin()], 1)


def pieces_of_four(h):
    first, last = torch.split(h, 4, dim=1)
    return torch.cat([last, first], -3)


def beside_itself(h):
    return h[:, :3].relu() + h[:, 3:] * h[:, 1:4]


NATIVE = {
    "gated": (gated, 3),
    "uneven": (uneven, 5),
    "pieces of four": (pieces_of_four, 6),
    "beside itself": (beside_itself, 3),
    "from behind": (lambda h: h.chunk(3, 1)[-1].tanh() + h[:, -2:], 2),
    "of pixels too": (lambda h: F.relu(h[:, 2:4, 1:, :-1]), 2),
    "glu": (lambda h: F.glu(h, 1), 3),
    "glu from behind": (lambda h: F.glu(F.pad(h.sin(), (0, 0)), dim=-3), 3),
    "all of them": (lambda h: h[:, :].split(6, 1)[0].tanh(), 6),
    "pooled": (lambda h: F.max_pool2d(h[:, 1:4], 2), 3),
}
OTHERWISE = {
    "one by itself": (lambda h: h[:, 0].unsqueeze(1), 1),
    "every other": (lambda h: h[:, ::2], 3),
    "columns": (lambda h: torch.cat(h.chunk(2, -1), 1), 12),
    "rows gated": (lambda h: F.glu(h, 2), 6),
}


def learner(body, outputs):
    torch.manual_seed(0)
    model = Of(body, outputs).double()
    x = torch.randn(3, 7, 2, 6, 6, dtype=DOUBLE)
    with torch.no_grad():
        y = torch.randn(3, 7, *model(x[0]).shape[1:], dtype=DOUBLE)
    tasks = fm.TaskBatch(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:])
    return fm.MAML(model, inner_lr=0.1, inner_steps=2, loss="mse"), tasks


@pytest.mark.parametrize("name", NATIVE)
def test_natively(name):
    meta, tasks = learner(*NATIVE[name])
    assert fm.explain(meta, tasks).name == "resident"
    tasks.support_x.requires_grad_(), tasks.query_x.requires_grad_()
    assert_exact(meta, tasks, [*meta.parameters(), tasks.support_x, tasks.query_x])


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_is_no_part_of_the_channels(name):
    meta, tasks = learner(*OTHERWISE[name])
    assert fm.explain(meta, tasks).name != "resident"
    assert_exact(meta, tasks)


@pytest.mark.parametrize("unit", [nn.GLU(1), nn.Sequential(nn.GroupNorm(2, 6), nn.GLU(-2))])
def test_gated_linear_units_over_time_as_layers(unit):
    model = nn.Sequential(
        nn.Conv1d(2, 6, 3, padding=2, dilation=2), unit, nn.Conv1d(3, 4, 2), nn.GLU(1),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2, 3),
    ).double()  # fmt: skip
    torch.manual_seed(1)
    x, y = torch.randn(3, 9, 2, 8, dtype=DOUBLE), torch.randint(3, (3, 9))
    tasks = fm.TaskBatch(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:])
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2, learn_inner_lr="element")
    assert fm.explain(meta, tasks).name == "resident"
    assert_exact(meta, tasks)


def test_gates_in_residual_blocks():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.skip = nn.Conv1d(2, 4, 1), nn.Conv1d(2, 2, 1)
            self.dilated = nn.Conv1d(2, 4, 3, padding=2, dilation=2)
            self.head = nn.Linear(2, 3)

        def forward(self, x):
            h = gated(self.conv(x))
            h = h + self.skip(gated(self.dilated(h)))
            return self.head(h.mean(2))

    torch.manual_seed(1)
    x, y = torch.randn(3, 9, 2, 8, dtype=DOUBLE), torch.randint(3, (3, 9))
    tasks = fm.TaskBatch(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:])
    assert_exact(fm.MAML(Block().double(), inner_lr=0.1, inner_steps=2), tasks)
