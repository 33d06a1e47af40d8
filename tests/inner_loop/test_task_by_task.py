"""What vmap cannot run goes task by task in its engine, or is refused; against the reference."""

import contextlib
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import DOUBLE, assert_exact, assert_slope, outer_loss, regression_tasks
from torch import nn

import fastmeta as fm
from fastmeta.functional.forward import task_forward
from fastmeta.models import mlp


def maml(model, **options):
    options = {"engine": "vmap", "inner_steps": 3, "inner_lr": 0.3, "loss": "mse", **options}
    return fm.MAML(model.double(), **options)


class Branching(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y.tanh() if y.sum() > 0 else y.sin()


def test_control_flow_on_values_takes_each_task_its_own_way():
    meta, tasks = maml(Branching(2, 2)), regression_tasks()
    branches = {bool(meta.model.weight.new_tensor(0) < p.sum()) for p in meta(tasks).predictions}
    assert len(branches) == 2
    assert_exact(meta, tasks, [*meta.parameters()])
    assert_slope(lambda: outer_loss(meta, tasks), list(meta.parameters()), step=1e-7)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.head = kind(3, 5, batch_first=True), nn.Linear(5, 1)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


@pytest.mark.parametrize("engine", ["auto", "vmap"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_what_vmap_has_no_rule_for_runs_task_by_task(kind, engine):
    x, y = torch.randn(2, 4, 6, 3, dtype=DOUBLE), torch.randn(2, 4, 1, dtype=DOUBLE)
    meta = maml(Recurrent(kind), engine=engine, inner_steps=2, learn_inner_lr="tensor")
    assert_exact(meta, fm.TaskBatch(x, y, x.flip(1), y), [*meta.parameters()])
    adapted = meta.adapt(x, y)
    with fm.use_backend("reference"):
        torch.testing.assert_close(adapted(x), meta.adapt(x, y)(x))


def test_adapted_modules_that_come_to_draw_random_numbers_are_refused():
    model = Recurrent(lambda *_, **__: nn.LSTM(3, 5, 2, dropout=0.5, batch_first=True)).eval()
    x, y = torch.randn(2, 4, 6, 3, dtype=DOUBLE), torch.randn(2, 4, 1, dtype=DOUBLE)
    adapted = maml(model).adapt(x, y)
    adapted(x)
    model.train()
    with pytest.raises(RuntimeError, match="Recurrent draws random numbers"):
        adapted(x)
    with pytest.raises(RuntimeError, match="Recurrent draws random numbers"):
        task_forward(model, dict(model.named_parameters()), x)


def test_what_vmap_has_no_rule_for_cannot_draw_its_random_numbers():
    x, y = torch.randn(2, 4, 6, 3, dtype=DOUBLE), torch.randn(2, 4, 1, dtype=DOUBLE)
    meta = maml(Recurrent(nn.GRU), engine="vmap", randomness="different")
    with pytest.raises(RuntimeError, match="Recurrent cannot run for many tasks at once"):
        meta(fm.TaskBatch(x, y, x, y))


def test_a_loss_that_vmap_cannot_run_is_taken_task_by_task():
    x, y = torch.randn(2, 5, 3, dtype=DOUBLE), torch.randint(3, (2, 5))
    weighted = torch.ones(3, dtype=DOUBLE)

    def loss(p, y):
        return F.cross_entropy(p, y, weighted, ignore_index=1, label_smoothing=0.1)

    meta = maml(nn.Linear(3, 3), loss=loss)
    assert_exact(meta, fm.TaskBatch(x, y, x.flip(1), y), [*meta.parameters()])


@pytest.mark.parametrize("sides", [(), ("support",), ("query",), ("support", "query")])
def test_a_loss_that_needs_weights_gets_them_where_there_are_none(sides):
    def loss(p, y, weight):
        return (weight * (p - y).abs().mean(-1)).sum() / weight.sum()

    rows = {"support": 5, "query": 4}
    weights = {f"{side}_weight": torch.rand(3, rows[side], dtype=DOUBLE) for side in sides}
    meta, tasks = maml(mlp([2, 4, 2], "tanh"), loss=loss), regression_tasks(**weights)
    assert_exact(meta, tasks, [*meta.parameters()])
    own = meta(tasks).loss
    plain = maml(meta.model, loss=lambda p, y: (p - y).abs().mean())
    if not sides:
        torch.testing.assert_close(own, plain(tasks).loss)


def test_weights_need_a_parameter_of_that_name():
    meta = maml(mlp([2, 4, 2]), loss=lambda p, y, w=1: (w * (p - y).square().mean(-1)).mean())
    tasks = regression_tasks(support_weight=torch.rand(3, 5, dtype=DOUBLE))
    with pytest.raises(ValueError, match="whose third parameter is called weight"):
        meta(tasks)


def test_the_class_of_a_loss_is_no_loss():
    with pytest.raises(TypeError, match=r"the class MSELoss: give an instance of it, MSELoss\(\)"):
        maml(mlp([2, 4, 2]), loss=nn.MSELoss)


def test_random_numbers_of_what_vmap_cannot_run_are_refused():
    layer = nn.LSTM(3, 5, 2, dropout=0.5, batch_first=True)
    meta = maml(Recurrent(lambda *_, **__: layer))
    x, y = torch.randn(2, 4, 6, 3, dtype=DOUBLE), torch.randn(2, 4, 1, dtype=DOUBLE)
    tasks = fm.TaskBatch(x, y, x, y)
    for call in (lambda: meta(tasks), lambda: meta.adapt(x, y)):
        with pytest.raises(ValueError, match=r"dropout in training mode \(layer\)"):
            call()
    with pytest.raises(ValueError, match="dropout in training mode"):
        fm.explain(meta)
    assert_exact(meta.eval(), tasks, [*meta.parameters()])


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_random_numbers_of_others_are_refused(draw):
    meta = maml(nn.Linear(2, 2), loss=lambda p, y: draw() * (p - y).mean())
    with pytest.raises(ValueError, match="the loss draws random numbers of Python or NumPy"):
        meta(regression_tasks())


class Hooked(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        if y.requires_grad:
            y.register_hook(lambda g: 0.5 * g)
        return y.sin()


class HookedAnyway(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        with contextlib.suppress(RuntimeError):
            y.register_hook(lambda g: 0.5 * g)
        return y.sin()


@pytest.mark.parametrize("kind", [Hooked, HookedAnyway])
def test_hooks_of_tensors_are_called(kind):
    assert_exact(maml(nn.Sequential(kind(2, 4), nn.Linear(4, 2))), regression_tasks())


class OfItsOwnGradient(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        z = y.detach().requires_grad_()
        (slope,) = torch.autograd.grad(z.sin().sum(), z)
        return y * slope


class OfItsOwnFunction(nn.Linear):
    def forward(self, x):
        return torch.func.grad(lambda y: y.sin().sum())(super().forward(x))


@pytest.mark.parametrize("kind", [OfItsOwnGradient, OfItsOwnFunction])
def test_forwards_that_differentiate(kind):
    assert_exact(maml(kind(2, 2)), regression_tasks())


def test_weights_changed_in_place_go_to_the_reference():
    model = nn.Sequential(nn.Embedding(7, 3, max_norm=0.5), nn.Flatten(), nn.Linear(6, 2))
    x, y = torch.randint(7, (3, 5, 2)), torch.randint(2, (3, 5))
    meta = maml(model, engine="auto", loss="cross_entropy")
    meta(fm.TaskBatch(x, y, x, y))
    choice = meta.choice()
    assert choice.name == "reference" and "max_norm" in choice.passed_over["vmap"]


class Full(RuntimeError):
    """Of a kind of its own, as torch.OutOfMemoryError is, which others catch."""


def test_errors_of_a_loss_that_are_not_about_vmap_are_as_they_are():
    def fail(*args):
        raise Full("no room")

    x, y = torch.randn(2, 5, 3, dtype=DOUBLE), torch.randn(2, 5, 1, dtype=DOUBLE)
    with pytest.raises(Full, match="no room"):
        maml(nn.Linear(3, 1), loss=fail)(fm.TaskBatch(x, y, x, y))
