"""Losses of users with weights of samples, and with totals of a task's targets and weights."""

import pytest
import torch
import torch.nn.functional as F
from native_losses import assert_native, chain
from oracle import DOUBLE, classification_tasks, regression_tasks
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.functional.loss_programs import read_loss

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")
CLASSES = torch.tensor([1.0, 2.0, 0.5], dtype=DOUBLE)


def weighted(tasks, padding=True):
    """The same tasks with weights of samples, some of them 0."""
    weights = [torch.rand(y.shape[:2], dtype=DOUBLE) for y in (tasks.support_y, tasks.query_y)]
    if padding:
        weights[0][:, 1:3] = 0
        weights[1][0, :2] = 0
    xy = (tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)
    return fm.TaskBatch(*xy, support_weight=weights[0], query_weight=weights[1])


def mean_of(losses, weight):
    return (weight * losses).sum() / weight.sum()


OF_WEIGHTS = {
    "mean": lambda p, y, weight: mean_of((p - y).square().mean(1), weight),
    "at least one": lambda p, y, weight: (
        (weight * F.huber_loss(p, y, reduction="none").mean(1)).sum() / weight.sum().clamp(min=1)
    ),
    "plain mean": lambda p, y, weight: (weight[:, None] * (p - y).abs()).mean(),
    "shares": lambda p, y, weight: ((weight / weight.sum())[:, None] * (p - y).square()).sum(),
    "scaled": lambda p, y, weight: ((p - y).square() * (weight > 0.5)[:, None]).mean(),
    "optional": lambda p, y, weight=None: (
        F.mse_loss(p, y) if weight is None else mean_of((p - y).square().sum(1), weight)
    ),
}
OF_TARGETS = {
    "mask": lambda p, y: ((y > 0) * (p - y).square()).sum() / (y > 0).sum().clamp(min=1),
    "numbers of a mask": lambda p, y: ((y > 0).to(p.dtype) * (p - y)).abs().sum()
    / ((y > 0).to(p.dtype).sum() + 1e-8),
    "masks of each sample": lambda p, y: (
        ((y > 0) * (p - y).square()).sum(1) / (y > 0).sum(1).clamp(min=1)
    ).mean(),
    "what predictions are above": lambda p, y: ((p > y).sum(1) * (p - y).sum(1)).mean(),
    "packed": lambda p, y: mean_of((p[:, 0] - y[:, 0]).square(), y[:, 1].abs()),
    "centred": lambda p, y: (p - (y - y.mean())).square().mean(),
    "centred a column": lambda p, y: (p - (y - y.mean(0))).square().mean(),
    "kept dimension": lambda p, y: (p - y.mean(0, keepdim=True)).abs().mean(),
    "explained variance": lambda p, y: (p - y).square().mean() / (y - y.mean()).square().mean(),
    "explained variances": lambda p, y: (
        (p - y).square() / (y - y.mean(0)).square().mean(0)
    ).mean(),
    "of each sample": lambda p, y: (p * torch.where(y > y.mean(), y, y.mean().exp())).mean(),
}
OF_LABELS = {
    "weights of classes made in it": lambda p, y: F.cross_entropy(
        p, y, weight=torch.tensor([1.0, 2.0, 0.5], dtype=p.dtype)
    ),
    "weights of labels": lambda p, y: mean_of(F.cross_entropy(p, y, reduction="none"), CLASSES[y]),
    "negative log-likelihood": lambda p, y: F.nll_loss(p.log_softmax(1), y, weight=CLASSES),
}


@pytest.mark.parametrize("loss", OF_WEIGHTS.values(), ids=OF_WEIGHTS)
@pytest.mark.parametrize("order", [1, 2])
def test_weights_of_samples(loss, order):
    meta = fm.MAML(chain(2), loss=loss, inner_lr=0.1, inner_steps=2, order=order)
    assert_native(meta, weighted(regression_tasks()))


@pytest.mark.parametrize("loss", OF_TARGETS.values(), ids=OF_TARGETS)
def test_totals_of_targets(loss):
    assert_native(fm.MAML(chain(2), loss=loss, inner_lr=0.1, inner_steps=2), regression_tasks())


@pytest.mark.parametrize("loss", OF_LABELS.values(), ids=OF_LABELS)
def test_totals_of_labels(loss):
    tasks = classification_tasks((2,))
    assert_native(fm.MAML(chain(), loss=loss, inner_lr=0.1, inner_steps=2), tasks)


def test_weights_and_labels():
    def loss(p, y, weight):
        return mean_of(F.cross_entropy(p, y, reduction="none"), weight)

    tasks = weighted(classification_tasks((2,)))
    assert_native(fm.MAML(chain(), loss=loss, inner_lr=0.1, inner_steps=2), tasks)
    with pytest.raises(ValueError, match=r"support_y .*\[0, 3\)"):
        tasks.support_y[0, 0] = 3
        fm.MAML(chain(), loss=loss, inner_lr=0.1)(tasks)


def test_it_is_the_mean_by_weights_that_a_name_stands_for():
    model, tasks = chain(2), weighted(regression_tasks())
    own, named = (
        fm.MAML(model, loss=loss, inner_lr=0.1)(tasks).loss for loss in (OF_WEIGHTS["mean"], "mse")
    )
    torch.testing.assert_close(own, named, rtol=1e-13, atol=0)


@pytest.mark.parametrize("loss", [OF_WEIGHTS["mean"], OF_WEIGHTS["optional"]])
def test_with_weights_and_without_in_turn(loss):
    plain = regression_tasks()
    meta = fm.MAML(chain(2), loss=loss, inner_lr=0.1)
    for tasks in (plain, weighted(plain), plain, weighted(regression_tasks(t=2, s=4, q=6))):
        assert_native(meta, tasks)


def test_weights_of_the_support_alone_where_the_loss_needs_none():
    plain = regression_tasks()
    xy = (plain.support_x, plain.support_y, plain.query_x, plain.query_y)
    tasks = fm.TaskBatch(*xy, support_weight=torch.rand(3, 5, dtype=DOUBLE))
    meta = fm.MAML(chain(2), loss=OF_WEIGHTS["optional"], inner_lr=0.1)
    assert "one has weights of samples and one has none" in str(fm.explain(meta, tasks))
    meta(tasks)
    assert_native(fm.MAML(chain(2), loss=OF_WEIGHTS["mean"], inner_lr=0.1), tasks)


@pytest.mark.parametrize("engine", ["layered", "vmap"])
def test_other_engines_call_the_loss_with_weights_too(engine):
    meta, reference = (
        fm.MAML(chain(2), loss=OF_WEIGHTS["mean"], inner_lr=0.1, engine=name)
        for name in (engine, "reference")
    )
    reference.model.load_state_dict(meta.model.state_dict())
    for tasks in (regression_tasks(), weighted(regression_tasks())):
        torch.testing.assert_close(meta(tasks).loss, reference(tasks).loss, rtol=1e-11, atol=0)


def test_a_task_with_no_weight_at_all_is_not_a_number_as_in_pytorch():
    tasks = weighted(regression_tasks())
    tasks.query_weight[1] = 0
    loss = fm.MAML(chain(2), loss=OF_WEIGHTS["mean"], inner_lr=0.1)(tasks).loss
    assert loss.isnan().tolist() == [False, True, False]


def test_gradients_without_autograd_are_the_same():
    tasks, model = weighted(regression_tasks()), chain(2)
    meta = fm.MAML(model, loss=OF_WEIGHTS["at least one"], inner_lr=0.1, inner_steps=2)
    meta(tasks).loss.mean().backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    meta.forward_backward(tasks)
    for found, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(found.grad, gradient, rtol=1e-12, atol=1e-14)


def test_learned_rates_and_few_steps():
    meta = fm.MetaSGD(chain(2), loss=OF_TARGETS["packed"], inner_steps=3)
    assert_native(meta, regression_tasks())
    assert_native(fm.MAML(chain(2), loss=OF_WEIGHTS["shares"], inner_steps=0), regression_tasks())


def test_weights_that_are_made_of_parameters():
    class Hyper(nn.Module):
        def __init__(self):
            super().__init__()
            self.share = nn.Parameter(torch.randn(1, dtype=DOUBLE))
            self.below = nn.Linear(2, 3).double()

        def forward(self, x):
            return F.linear(x, self.below.weight * self.share, self.below.bias).tanh()

    meta = fm.MAML(Hyper(), loss=OF_WEIGHTS["mean"], inner_lr=0.1, inner_steps=2)
    meta_of_targets = fm.MAML(Hyper(), loss=OF_TARGETS["centred a column"], inner_lr=0.1)
    tasks = regression_tasks(outputs=3)
    for one, batch in ((meta, weighted(tasks)), (meta_of_targets, tasks)):
        reference = fm.MAML(one.model, loss=one.loss, inner_lr=0.1, engine="reference")
        reference.inner_steps = one.inner_steps
        torch.testing.assert_close(one(batch).loss, reference(batch).loss, rtol=1e-12, atol=0)


def test_targets_that_require_grad_are_no_constants():
    tasks = regression_tasks()
    tasks.query_y.requires_grad_()
    loss = fm.MAML(chain(2), loss=OF_TARGETS["explained variance"], inner_lr=0.1)(tasks).loss
    assert torch.autograd.grad(loss.sum(), tasks.query_y)[0].abs().min() > 0


def test_totals_lie_behind_targets_and_weights():
    program = read_loss(
        OF_WEIGHTS["shares"], torch.randn(4, 2), torch.randn(4, 2), weighted=True
    )
    assert (program.targets, program.beside_targets, program.weighted) == (4, 2, True)
    assert [total.adds for total in program.totals] == [True]
    plain = read_loss(lambda p, y: (p - y).abs().mean(), torch.randn(4, 2), torch.randn(4, 2))
    assert (plain.targets, plain.beside_targets, plain.totals) == (2, 0, ())
