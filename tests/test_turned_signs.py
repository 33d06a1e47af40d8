"""Views that stand for minus what is in memory, as `z.conj().imag` is: kernels read memory."""

import pytest
import torch
from torch import nn

import fastmeta as fm

TASKS = [1, 3]


def turned(tensor):
    view = torch._neg_view(-tensor)
    assert view.is_neg() and bool((view == tensor).all())
    return view


def through_a_turned_gradient(losses):
    """A scalar whose gradient reaches `losses` as such a view."""
    seen = []
    losses.register_hook(lambda grad: seen.append(grad.is_neg()))
    twisted = torch.complex(torch.ones_like(losses), losses).conj().resolve_conj().abs().sum()
    return twisted, seen


def largest_difference(found, right):
    return max(float((a - b).detach().abs().max()) for a, b in zip(found, right, strict=True))


def by_both(run):
    found = run()
    with fm.use_backend("reference"):
        return largest_difference(found, run())


def batch(tasks, change=lambda tensor: tensor):
    torch.manual_seed(1)
    return [change(torch.randn(tasks, 5, features)) for features in (2, 1, 2, 1)]


def learner():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    return fm.MAML(network, inner_lr=0.1, inner_steps=2, loss="mse")


@pytest.mark.parametrize("tasks", TASKS)
def test_the_gradient_of_a_meta_loss(tasks):
    meta = learner()

    def run():
        loss, seen = through_a_turned_gradient(meta(fm.TaskBatch(*batch(tasks))).loss)
        gradients = torch.autograd.grad(loss, list(meta.parameters()))
        assert seen == [True]
        return gradients

    assert by_both(run) < 1e-5


@pytest.mark.parametrize("tasks", TASKS)
def test_samples_of_a_meta_step(tasks):
    meta = learner()
    losses = [meta(fm.TaskBatch(*batch(tasks, change))).loss for change in (turned, torch.clone)]
    assert largest_difference(*[[loss] for loss in losses]) == 0
    losses = [meta(fm.TaskBatch(*batch(tasks, change))).loss for change in (torch.clone, turned)]
    assert largest_difference(*[[loss] for loss in losses]) == 0


def prototype_task(tasks, change=lambda tensor: tensor):
    torch.manual_seed(2)
    support, query = torch.randn(tasks, 6, 8), torch.randn(tasks, 9, 8)
    leaves = [change(x).requires_grad_() for x in (support, query)]
    labels = torch.arange(6).repeat(tasks, 1) % 3, torch.arange(9).repeat(tasks, 1) % 3
    return leaves, (leaves[0], labels[0], leaves[1], labels[1])


@pytest.mark.parametrize("tasks", TASKS)
def test_the_gradient_of_a_prototype_loss(tasks):
    leaves, task = prototype_task(tasks)

    def run():
        loss, seen = through_a_turned_gradient(fm.functional.prototype_loss(*task, n_way=3)[0])
        gradients = torch.autograd.grad(loss, leaves)
        assert seen == [True]
        return gradients

    assert by_both(run) < 1e-5


@pytest.mark.parametrize("tasks", TASKS)
def test_what_a_prototype_loss_is_given(tasks):
    def run(change):
        leaves, task = prototype_task(tasks, change)
        loss, logits = fm.functional.prototype_loss(
            *task, n_way=3, temperature=change(torch.tensor(2.0)),
            support_weight=change(torch.ones(tasks, 6)),
            query_weight=change(torch.rand(tasks, 9) + 0.5),
        )  # fmt: skip
        return [loss, logits, *torch.autograd.grad(loss.sum(), leaves)]

    assert largest_difference(run(turned), run(torch.clone)) < 1e-5


@pytest.mark.parametrize(
    "operation",
    [
        lambda x, y: fm.functional.pairwise_distance(x, y),
        lambda x, y: fm.functional.pairwise_distance(x, y, "cosine"),
        lambda x, y: fm.functional.nearest_prototype(x, y, 2)[0],
        lambda x, y: fm.functional.prototypes(x, torch.arange(6).repeat(2, 1) % 3, 3),
        lambda x, y: fm.functional.linear(x, y),
        lambda x, y: fm.functional.conv2d(x.unflatten(2, (2, 2, 2)), y.unflatten(2, (2, 2, 2))),
    ],
)
def test_functional_operations(operation):
    x, y = torch.randn(2, 6, 8), torch.randn(2, 4, 8)
    assert largest_difference([operation(turned(x), turned(y))], [operation(x, y)]) < 1e-5


def test_the_bias_of_a_convolution():
    x, weight, bias = torch.randn(2, 3, 4, 5, 5), torch.randn(2, 6, 4, 3, 3), torch.randn(2, 6)
    found, right = (fm.functional.conv2d(x, weight, b) for b in (turned(bias), bias))
    assert torch.equal(found, right)


def test_the_weights_of_prototypes():
    features, weight = torch.randn(2, 6, 4), torch.rand(2, 6) + 0.1
    labels = (torch.arange(6) % 3).expand(2, 6)
    means = fm.functional.prototypes
    found, right = (means(features, labels, 3, w) for w in (turned(weight), weight))
    assert torch.equal(found, right)
