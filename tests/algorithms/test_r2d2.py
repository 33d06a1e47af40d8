import pytest
import torch
from few_shot import assert_like_the_loop, episodes
from oracle import DOUBLE
from torch import nn
from torch.nn import functional as F

import fastmeta as fm
from fastmeta.models import mlp


def one_task(net):
    """The normal equations, by an inverse."""

    def predict(support_x, support_y, query_x):
        x, query = (F.pad(net.encoder(x), (0, 1), value=1.0) for x in (support_x, query_x))
        y = F.one_hot(support_y).to(x.dtype)
        ridge = net.ridge.log.exp() * torch.eye(x.shape[1], dtype=x.dtype)
        w = (x.T @ x / len(x) + ridge).inverse() @ (x.T @ y / len(x))
        return net.scale * (query @ w) + net.shift

    return predict


@pytest.mark.parametrize("width", [3, 6, 7, 20])
def test_equals_the_loop_on_either_side_of_woodbury(width):
    net = fm.R2D2(mlp([2, 5, width], "tanh"), ridge=0.1, scale=3.0).double()
    nn.init.constant_(net.shift, 0.2)
    assert_like_the_loop(net, episodes(s=7), one_task(net), tolerance=1e-10)


@pytest.mark.parametrize(("width", "size"), [(3, 4), (6, 7), (7, 7), (20, 7)])
def test_the_smaller_system_is_solved(width, size, monkeypatch):
    solved, solve = [], torch.linalg.solve_ex

    def watched(a, b):
        solved.append(a.shape)
        return solve(a, b)

    monkeypatch.setattr(torch.linalg, "solve_ex", watched)
    fm.R2D2(mlp([2, width])).double()(episodes(s=7))
    assert solved == [(3, size, size)]


@pytest.mark.parametrize("width", [3, 20])
def test_it_is_the_minimum(width):
    net, tasks = fm.R2D2(mlp([2, width]), ridge=0.3).double(), episodes(s=7)
    head = net.adapt(tasks.support_x, tasks.support_y).head
    w = torch.cat([head.weight, head.bias], 1).detach().requires_grad_()
    x = F.pad(net.encoder(tasks.support_x), (0, 1), value=1.0).detach()
    errors = (x @ w - F.one_hot(tasks.support_y)).square().sum((1, 2)) / 7
    cost = errors + net.ridge.log.exp() * w.square().sum((1, 2))
    (slope,) = torch.autograd.grad(cost.sum(), w)
    assert slope.abs().max() < 1e-12


def test_what_is_learned():
    net, tasks = fm.R2D2(mlp([2, 3]), ridge=0.5, scale=2.0).double(), episodes()
    assert {"ridge.log", "scale", "shift"} <= {name for name, _ in net.named_parameters()}
    net(tasks).loss.sum().backward()
    assert net.ridge.log.grad.abs() > 0 and net.scale.grad.abs() > 0
    # The same for all classes, so the cross-entropy does not see it.
    assert net.shift.grad.abs() < 1e-12


def test_single_precision_of_wide_features_with_an_offset():
    tasks = episodes(t=4, s=25, q=25, n_way=5, shape=(256,))
    net = fm.R2D2(nn.Identity())
    right = net.double()(tasks).predictions
    ours = net.float()(tasks.to(dtype=torch.float32)).predictions
    assert (ours.double() - right).abs().max() < 1e-4 * right.abs().max()


def test_values_that_are_not_finite_stay_so():
    """And raise nothing: training says at which step it diverged."""
    tasks = episodes()
    tasks.support_x[0, 0, 0] = torch.nan
    loss = fm.R2D2(nn.Identity()).double()(tasks).loss
    assert torch.isnan(loss[0]) and torch.isfinite(loss[1:]).all()


@pytest.mark.parametrize("ridge", [0.0, -1.0])
def test_a_ridge_that_is_not_above_0_is_refused(ridge):
    with pytest.raises(ValueError, match="ridge must be above 0"):
        fm.R2D2(mlp([2, 3]), ridge=ridge)


def test_gradients_into_the_ridge():
    net, tasks = fm.R2D2(nn.Identity(), ridge=0.2).double(), episodes(t=2)

    def loss(log_ridge, scale):
        learned = {"ridge.log": log_ridge, "scale": scale}
        return torch.func.functional_call(net, learned, (tasks,)).loss

    inputs = [torch.tensor(v, dtype=DOUBLE, requires_grad=True) for v in (-1.0, 2.0)]
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)
