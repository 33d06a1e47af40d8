"""A backward that computes steps again does so with the attributes that the forward had."""

import pytest
import torch
import torch.nn.functional as F
from oracle import regression_tasks
from torch import nn

import fastmeta as fm
from fastmeta.inner_loop import recursion

ENGINES = ["layered", "vmap"]


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.lower, self.upper = nn.Linear(2, 6), nn.Linear(6, 2)
        self.act, self.turns, self.scale = nn.Tanh(), torch.sin, 2.0

    def forward(self, x):
        return self.upper(self.act(self.turns(self.lower(x)) * self.scale))


class Penalty(nn.Module):
    weight = 1.0

    def forward(self, predictions, targets):
        return self.weight * F.mse_loss(predictions, targets)


def scale(meta):
    meta.model.scale = 5.0


def swap(meta):
    meta.model.act = nn.ReLU()


def turn(meta):
    meta.model.turns = torch.exp


def hide_forward(meta):
    meta.model.lower.forward = torch.neg


def weigh(meta):
    meta.loss.weight = 3.0


def gradient(meta, change):
    tasks = regression_tasks()
    loss = meta(tasks).loss.mean()
    change(meta)
    left = plain(meta.model)
    loss.backward()
    assert plain(meta.model) == left
    return torch.cat([p.grad.flatten() for p in meta.model.parameters()])


def plain(model):
    return {name: value for name, value in vars(model).items() if type(value) is not dict}


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(recursion, "steps_to_keep", lambda *_: 0)


def scaled(engine):
    torch.manual_seed(2)
    model = Scaled().double()
    return fm.MAML(model, inner_lr=0.1, inner_steps=2, engine=engine, loss=Penalty())


@pytest.mark.parametrize("change", [scale, swap, turn, hide_forward, weigh])
@pytest.mark.parametrize("engine", ENGINES)
def test_what_changes_after_the_forward_does_not_count(engine, change):
    wanted = gradient(scaled(engine), lambda _: None)
    assert torch.equal(gradient(scaled(engine), change), wanted)


def test_dropout_draws_the_same_after_eval():
    def of(change):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(2, 32), nn.Dropout(0.5), nn.Linear(32, 2)).double()
        meta = fm.MAML(model, inner_lr=0.1, engine="vmap", loss="mse", randomness="different")
        torch.manual_seed(4)
        return gradient(meta, change)

    assert torch.equal(of(lambda meta: None), of(lambda meta: meta.model.eval()))


class Alternating(Scaled):
    """Of which each step's forward differs from that before."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1 + self.calls % 3)


def test_a_counter_is_what_it_was_in_each_step(monkeypatch):
    def of(kept):
        monkeypatch.setattr(recursion, "steps_to_keep", lambda *_: kept)
        torch.manual_seed(2)
        model = Alternating().double()
        meta = fm.MAML(model, inner_lr=0.1, inner_steps=3, engine="vmap", loss="mse")
        meta(regression_tasks())  # looks at the model besides
        model.calls = 0
        return gradient(meta, lambda meta: None)

    torch.testing.assert_close(of(kept=0), of(kept=3))


class Failing(Scaled):
    def __init__(self):
        super().__init__()
        self.fails = []

    def forward(self, x):
        if self.fails:
            raise ValueError(f"scale is {self.scale}")
        return super().forward(x)


def test_attributes_are_left_as_they_are_where_a_backward_fails():
    meta = fm.MAML(Failing().double(), inner_lr=0.1, engine="vmap", loss="mse")
    loss = meta(regression_tasks()).loss.mean()
    meta.model.scale = 5.0
    meta.model.fails.append(True)
    with pytest.raises(ValueError, match=r"scale is 2\.0"):
        loss.backward()
    assert meta.model.scale == 5.0
