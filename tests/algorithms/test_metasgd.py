import pytest
import torch
from oracle import assert_exact, regression_tasks

import fastmeta as fm
from fastmeta.models import mlp


def test_every_element_has_a_rate_that_learns():
    model, tasks = mlp([2, 4, 2], "tanh").double(), regression_tasks()
    meta = fm.MetaSGD(model, loss="mse", inner_lr=0.2)
    assert_exact(meta, tasks)
    meta(tasks).loss.mean().backward()
    for name, parameter in model.named_parameters():
        rate = meta.inner_rates[name.replace(".", "/")]
        assert rate.shape == (1, *parameter.shape)
        assert (rate.grad != 0).all()


def test_the_gradient_of_one_step_is_the_papers():
    model, tasks = mlp([2, 2]).double(), regression_tasks(t=1)
    meta = fm.MetaSGD(model, loss="mse", inner_lr=0.2)
    meta(tasks).loss.sum().backward()
    loss = (model(tasks.support_x[0]) - tasks.support_y[0]).square().mean()
    inner = torch.autograd.grad(loss, list(model.parameters()))
    adapted = fm.Adapted(
        model, {n: (p - 0.2 * g)[None].detach().requires_grad_()
                for (n, p), g in zip(model.named_parameters(), inner, strict=True)}, 1
    )  # fmt: skip
    rates = [meta.inner_rates[name] for name in ("0/weight", "0/bias")]
    query = fm.functional.mse_loss(adapted(tasks.query_x), tasks.query_y).sum()
    outer = torch.autograd.grad(query, list(adapted.parameters.values()))
    for rate, g, o in zip(rates, inner, outer, strict=True):
        torch.testing.assert_close(rate.grad, -g * o)


def test_its_rates_are_not_a_choice():
    with pytest.raises(TypeError, match="MetaSGD is"):
        fm.MetaSGD(mlp([2, 2]), learn_inner_lr="tensor")
