"""Writes in place that show in another view of a tensor, which for many tasks may be a copy."""

import pytest
import torch
import torch.nn.functional as F
from layered_cases import maml, why_not
from oracle import assert_exact, classification_tasks
from torch import nn

import fastmeta as fm
from fastmeta.functional import forward
from fastmeta.inner_loop.reading.rewrite import Program

SHAPE = (2, 4, 4)


class Net(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.last = nn.Linear(64, 3)
        self.body = body

    def forward(self, x):
        return self.last(self.body(self.conv(x)).flatten(1))  # nobody else holds what body gets


def through_contiguous(h):
    h.contiguous().relu_()
    return h


def through_reshape(h):
    v = h.reshape(-1)
    v.relu_()
    return h


def into_what_was_flattened(h):
    v = torch.flatten(h, 1)
    h.mul_(2)
    return v


def into_what_was_reshaped(h):
    v = h.reshape(-1)
    h.mul_(2)
    return v.view(-1, 64)


def through_a_view_of_a_view(h):
    v = h[:, 1:].flatten(1)
    F.relu(v, inplace=True)
    return h + 0.5


def through_two_reshapes(h):
    v = h.reshape(h.shape[0], 4, -1).reshape(-1, 16)
    v += 1
    return h


def by_a_flag(h):
    F.relu(h.ravel(), True)
    return h


def by_an_index(h):
    h.reshape(-1)[3:50] = 0.0
    return h


def into_out(h):
    v = h.flatten()
    with torch.no_grad():
        torch.mul(v.detach(), 2, out=v.detach())
    return h


def into_a_part_of_the_result(h):
    h[:, :1].sigmoid_()
    return h


SHOWN = (
    through_contiguous, through_reshape, into_what_was_flattened, into_what_was_reshaped,
    through_a_view_of_a_view, through_two_reshapes, by_a_flag, into_a_part_of_the_result,
    by_an_index, into_out,
)  # fmt: skip


@pytest.mark.parametrize("body", SHOWN)
@pytest.mark.parametrize("engine", ["auto", "vmap"])
def test_a_write_through_what_may_be_a_view_shows(body, engine):
    for t in (1, 3):
        meta = fm.MAML(Net(body).double(), inner_lr=0.2, inner_steps=2, engine=engine)
        assert_exact(meta, classification_tasks(SHAPE, t))


@pytest.mark.parametrize("body", SHOWN[:8])
def test_the_layered_engine_refuses_it(body):
    reason = why_not(Net(body), *SHAPE)
    assert "a view of it after" in reason or "has no rule" in reason


def rectified(h):
    h = h.flatten(1)
    return F.relu(h, inplace=True)


def rectified_before(h):
    h += 1
    return F.relu(h, inplace=True).flatten(1)


def of_its_own(h):
    g = (h * 2).reshape(-1, 64)
    g.relu_()
    return h + g.view_as(h)


def counted(h):
    n = h.shape[1]
    m = n
    m += 1
    return h * n + m


@pytest.mark.parametrize("body", [rectified, rectified_before, of_its_own, counted])
def test_what_nobody_else_reads_runs_at_once(body, monkeypatch):
    meta = fm.MAML(Net(body).double(), inner_lr=0.2, inner_steps=2, engine="vmap")
    tasks = classification_tasks(SHAPE)
    with monkeypatch.context() as patch:
        patch.setattr(forward, "task_by_task", None)
        meta(tasks)
    assert_exact(meta, tasks)
    if body in (rectified, rectified_before):  # view_as, and numbers that grow, have no rule
        assert_exact(maml(Net(body)), tasks)


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x):
        h = self.layer(x)
        h[:, :1].sigmoid_()
        return h


def test_a_write_into_a_part_of_what_is_returned():
    meta = fm.MAML(Part().double(), inner_lr=0.2, inner_steps=2)
    assert_exact(meta, classification_tasks((2,)))
    assert "a view of it after" in why_not(Part(), 2)


TRUTHS = {
    "mean": lambda h: h - torch.mean(h, 1, True),
    "amax": lambda h: h - torch.amax(h, 1, True),
    "logsumexp": lambda h: h - torch.logsumexp(h, 1, True),
    "avg_pool2d": lambda h: h - F.avg_pool2d(h, 3, 1, 1, False, True),
    "dropout": lambda h: h + F.dropout(h, 0.0, True),
    "relu": lambda h: F.relu(h, True) + h,
}


@pytest.mark.parametrize("name", TRUTHS)
@pytest.mark.parametrize("engine", ["layered", "vmap"])
def test_a_true_by_its_place_says_what_its_name_says(name, engine):
    model = Net(TRUTHS[name]).double()
    meta = fm.MAML(model, inner_lr=0.2, inner_steps=2, engine=engine)
    assert_exact(meta, classification_tasks(SHAPE))


def test_the_layered_engine_is_tried_against_the_module(monkeypatch):
    def wrong(*args):
        return run(*args) * 1.01

    run = Program.run
    monkeypatch.setattr(Program, "run", wrong)
    assert "computes something else" in why_not(Net(rectified), *SHAPE)


def test_activations_in_place_run_at_once(monkeypatch):
    layers = nn.Conv2d(2, 4, 3), nn.ReLU(True), nn.BatchNorm2d(4), nn.LeakyReLU(0.1, True)
    model = nn.Sequential(*layers, nn.MaxPool2d(2), nn.ReLU(True), nn.Flatten(), nn.Linear(4, 3))
    meta = fm.MAML(model.double(), inner_lr=0.2, inner_steps=2, engine="vmap")
    tasks = classification_tasks(SHAPE)
    with monkeypatch.context() as patch:
        patch.setattr(forward, "task_by_task", None)
        meta(tasks)
    assert_exact(meta, tasks)
