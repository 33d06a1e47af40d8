import pytest
import torch
from oracle import regression_tasks

import fastmeta as fm
from fastmeta.models import mlp


def setup(**options):
    model, tasks = mlp([2, 4, 2], "tanh").double(), regression_tasks()
    return fm.Reptile(model, loss="mse", inner_lr=0.3, inner_steps=4, **options), tasks


@pytest.mark.parametrize("engine", ["auto", "vmap", "reference"])
def test_the_gradient_is_theta_minus_the_mean_of_the_adapted(engine):
    meta, tasks = setup(engine=engine)
    meta(tasks).loss.mean().backward()
    fast = meta.adapt(tasks.support_x, tasks.support_y).parameters
    for name, theta in meta.model.named_parameters():
        torch.testing.assert_close(theta.grad, (theta - fast[name].mean(0)).detach())


def test_the_loss_has_the_value_of_the_query_loss():
    meta, tasks = setup()
    maml = fm.MAML(meta.model, loss="mse", inner_lr=0.3, inner_steps=4)
    torch.testing.assert_close(meta(tasks).loss, maml(tasks).loss)
    torch.testing.assert_close(meta(tasks).predictions, maml(tasks).predictions)


def test_sgd_moves_towards_the_adapted():
    meta, tasks = setup()
    theta = {name: p.detach().clone() for name, p in meta.model.named_parameters()}
    fast = meta.adapt(tasks.support_x, tasks.support_y).parameters
    optimizer = torch.optim.SGD(meta.parameters(), lr=0.5)
    meta(tasks).loss.mean().backward()
    optimizer.step()
    for name, p in meta.model.named_parameters():
        torch.testing.assert_close(p, theta[name] + 0.5 * (fast[name].mean(0) - theta[name]))


def test_what_does_not_adapt_does_not_move():
    meta, tasks = setup(adapt_parameters=["2.weight"])
    meta(tasks).loss.mean().backward()
    assert meta.model[2].weight.grad.abs().sum() > 0
    assert meta.model[0].weight.grad is None


def test_no_steps_give_no_gradient():
    meta, tasks = setup()
    meta(tasks, inner_steps=0).loss.mean().backward()
    assert all((p.grad == 0).all() for p in meta.model.parameters())


def test_nothing_is_kept_without_grad():
    meta, tasks = setup()
    with torch.no_grad():
        assert not meta(tasks).loss.requires_grad


def test_a_graph_of_the_backward_is_refused():
    meta, tasks = setup()
    learned = list(meta.parameters())
    loss = meta(tasks).loss.mean() + sum(p.square().sum() for p in learned)
    with pytest.raises(RuntimeError, match="theta - theta_K by construction"):
        torch.autograd.grad(loss, learned, create_graph=True)


def test_something_else_than_tasks_is_refused():
    meta, _ = setup()
    with pytest.raises(TypeError, match="must be a TaskBatch.*, not Tensor"):
        meta(torch.zeros(1))
