"""The oracle itself, against finite differences and autograd's own checks."""

import pytest
import torch
from oracle import DOUBLE, assert_slope, classification_tasks, outer_loss, regression_tasks

import fastmeta as fm
from fastmeta.models import mlp


@pytest.fixture(autouse=True)
def _reference():
    with fm.use_backend("reference"):
        yield


def leaves(meta, tasks):
    tasks.support_x.requires_grad_()
    tasks.query_x.requires_grad_()
    return [*meta.parameters(), tasks.support_x, tasks.query_x]


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_meta_gradient_agrees_with_finite_differences(loss):
    tasks = regression_tasks()
    tasks.support_y.sigmoid_(), tasks.query_y.sigmoid_()
    meta = fm.MetaSGD(
        mlp([2, 4, 2], "tanh").double(), inner_lr=0.5, inner_steps=3, loss=loss, per_step_lr=True
    )
    assert_slope(lambda: outer_loss(meta, tasks), leaves(meta, tasks))


def test_classification_with_norms_agrees_with_finite_differences():
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 6), torch.nn.BatchNorm1d(6), torch.nn.Tanh(), torch.nn.Linear(6, 3)
    )
    meta, tasks = fm.MAML(model.double(), inner_lr=0.5, inner_steps=2), classification_tasks([2])
    assert_slope(lambda: outer_loss(meta, tasks), leaves(meta, tasks))


def test_differentiable_twice():
    model = mlp([2, 3, 2], "tanh").double()
    meta, tasks = fm.MAML(model, inner_lr=0.5, inner_steps=2, loss="mse"), regression_tasks(t=2)
    weight = model[0].weight.detach().clone().requires_grad_()

    def loss(value):
        parameters = {**dict(model.named_parameters()), "0.weight": value}
        fast = fm.functional.inner_sgd(
            model, parameters, tasks.support_x, tasks.support_y, lr=0.5, steps=2, loss="mse"
        )
        return sum(w.square().sum() for w in fast.values())

    assert torch.autograd.gradgradcheck(loss, (weight,))
    (first,) = torch.autograd.grad(outer_loss(meta, tasks), model[0].weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), model[0].weight)
    assert second.abs().sum() > 0


def test_order_one_takes_inner_gradients_as_constants():
    model, tasks = mlp([2, 3, 2], "tanh").double(), regression_tasks()
    meta = fm.MAML(model, inner_lr=0.5, inner_steps=2, loss="mse", order=1)
    grads = torch.autograd.grad(meta(tasks).loss.sum(), list(model.parameters()))
    fast = meta.adapt(tasks.support_x, tasks.support_y).parameters
    fast = {name: p.detach().requires_grad_() for name, p in fast.items()}
    adapted = fm.Adapted(model, fast, len(tasks))
    loss = fm.functional.mse_loss(adapted(tasks.query_x), tasks.query_y).sum()
    direct = torch.autograd.grad(loss, list(fast.values()))
    for ours, theirs in zip(grads, direct, strict=True):
        torch.testing.assert_close(ours, theirs.sum(0))


def test_nothing_is_kept_without_grad():
    model, tasks = mlp([2, 3, 2], "tanh").double(), regression_tasks()
    meta = fm.MAML(model, inner_steps=2, loss="mse")
    with torch.no_grad():
        adapted = meta.adapt(tasks.support_x, tasks.support_y)
        out = meta(tasks)
    assert not out.loss.requires_grad
    assert not any(p.requires_grad for p in adapted.parameters.values())
    assert adapted.parameters["0.weight"].dtype is DOUBLE
