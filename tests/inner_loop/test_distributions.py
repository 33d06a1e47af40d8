"""Losses by torch.distributions, which validate what they are given unless told otherwise."""

import pytest
import torch
import torch.nn.functional as F
from native_losses import assert_native, chain, packed_tasks
from oracle import DOUBLE, assert_exact, classification_tasks, regression_tasks
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Exponential,
    Independent,
    Laplace,
    Normal,
    kl_divergence,
)

import fastmeta as fm
from fastmeta.backends import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")


@pytest.fixture(autouse=True)
def validating():
    """As it is by default; torch.compile, which other tests use, switches it off for good."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(True)
    yield
    Distribution.set_default_validate_args(before)


def gaussian(p):
    return Normal(p[:, :1], p[:, 1:2].exp())


OF_NUMBERS = {
    "normal": lambda p, y: -gaussian(p).log_prob(y[:, :1]).mean(),
    "normal of one scale": lambda p, y: -Normal(p, 0.5).log_prob(y).sum(-1).mean(),
    "normal of scales": lambda p, y: -Normal(p, SCALES).log_prob(y).mean(),
    "independent": lambda p, y: (
        -(Independent(Normal(p, F.softplus(p) + 0.1), 1).log_prob(y) * y[:, 0]).mean()
    ),
    "entropy": lambda p, y: -(gaussian(p).entropy() * y[:, :1]).mean(),
    "laplace": lambda p, y: -Laplace(p[:, 0], p[:, 1].exp()).log_prob(y[:, 0]).mean(),
    "exponential": lambda p, y: -Exponential(p.exp()).log_prob(y.exp()).mean(),
    "divergence": lambda p, y: kl_divergence(gaussian(p), Normal(0.0, 1.0)).mean(),
    "divergence of two": lambda p, y: kl_divergence(gaussian(p), gaussian(y)).mean(),
    "told not to validate": lambda p, y: (
        -Normal(p, p.exp(), validate_args=False).log_prob(y).mean()
    ),
}  # fmt: skip
OF_BITS = {
    "bernoulli": lambda p, y: -Bernoulli(logits=p).log_prob(y).mean(),
    "bernoulli of probabilities": lambda p, y: -Bernoulli(p.sigmoid()).log_prob(y).sum(1).mean(),
    "bernoulli entropy": lambda p, y: (Bernoulli(logits=p).entropy() * y).mean(),
}
OF_LABELS = {
    "categorical": lambda p, y: -Categorical(logits=p).log_prob(y).mean(),
    "categorical of probabilities": lambda p, y: (
        -Categorical(p.softmax(-1)).log_prob(y).mean()
    ),
    "with entropy": lambda p, y: (
        -Categorical(logits=p).log_prob(y).mean() - 0.1 * Categorical(logits=p).entropy().mean()
    ),
}  # fmt: skip
SCALES = torch.tensor([0.3, 1.0, 2.0], dtype=DOUBLE)


def bits():
    tasks = regression_tasks(outputs=3)
    y, z = (tasks.support_y > 0).to(DOUBLE), (tasks.query_y > 0).to(DOUBLE)
    return fm.TaskBatch(tasks.support_x, y, tasks.query_x, z)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", [*OF_NUMBERS, *OF_BITS, *OF_LABELS])
def test_distributions(name, order):
    loss = {**OF_NUMBERS, **OF_BITS, **OF_LABELS}[name]
    meta = fm.MAML(chain(), loss=loss, inner_steps=2, inner_lr=0.05, order=order)
    if name in OF_LABELS:
        kinds = [classification_tasks([2]), classification_tasks([2], s=1, q=1, t=17)]
    else:
        kinds = [bits()] if name in OF_BITS else [regression_tasks(s=n, outputs=3) for n in (5, 1)]
    for tasks in kinds:
        assert_native(meta, tasks)


INVALID = {
    "a scale": (lambda p, y: -Normal(p, y).log_prob(p.detach() + 1).mean(), -1.0),
    "no bit": (OF_BITS["bernoulli"], 0.3),
    "no probability": (
        lambda p, y: -(Bernoulli(0.4 * y + 0.3).log_prob((y > 0.5).to(p.dtype)) * p).mean(), 2.0
    ),
    "negative": (lambda p, y: -(Categorical(y).entropy() * p[:, 0]).mean(), -0.5),
}


@pytest.mark.parametrize("argument", ["support_y", "query_y"])
@pytest.mark.parametrize("name", INVALID)
def test_what_pytorch_refuses_shows_as_nan(name, argument):
    """In the task where it is: in its loss, and by way of the adapted weights from the support."""
    loss, wrong = INVALID[name]
    meta = fm.MAML(chain(), loss=loss, inner_steps=2, inner_lr=0.05)
    tasks = bits()
    getattr(tasks, argument).clamp_(min=0.0)
    if name in ("a scale", "negative"):
        tasks.support_y.add_(1), tasks.query_y.add_(1)
    assert_native(meta, tasks)
    getattr(tasks, argument)[1, 2, 0] = wrong
    found = meta(tasks).loss
    assert found.isnan().tolist() == [False, True, False]
    with fm.use_backend("reference"), pytest.raises(ValueError, match="Expected"):
        meta(tasks)
    gradients = torch.autograd.grad(found[1], [*meta.parameters()])
    assert all(gradient.isnan().any() for gradient in gradients)


def test_samples_are_checked_as_labels_are():
    meta = fm.MAML(chain(), loss=lambda p, y: -Categorical(logits=p).log_prob(y[:, 0]).mean())
    tasks = packed_tasks()
    assert_native(meta, tasks)
    tasks.query_y[0, 0, 0] = 3.0
    with pytest.raises(ValueError, match="query_y has a label"):
        meta(tasks)
    tasks.query_y[0, 0, 0] = 1.5
    with pytest.raises(ValueError, match="support"):
        meta(tasks)


def test_whether_distributions_validate_may_change():
    """Without, 0.3 is a sample like any other."""
    meta, tasks = fm.MAML(chain(), loss=OF_BITS["bernoulli"], inner_lr=0.05), bits()
    tasks.query_y[1] = 0.3
    assert meta(tasks).loss.isnan().tolist() == [False, True, False]
    Distribution.set_default_validate_args(False)
    try:
        assert_native(meta, tasks)
    finally:
        Distribution.set_default_validate_args(True)
    assert meta(tasks).loss.isnan().tolist() == [False, True, False]


def test_what_draws_is_run_as_it_came():
    meta = fm.MAML(chain(), loss=lambda p, y: Normal(p, 1.0).rsample().mean(), inner_lr=0.05)
    with pytest.raises(RuntimeError, match="random"):
        meta(regression_tasks(outputs=3))


def test_a_broadcast_by_mistake_is_run_as_it_came():
    def loss(p, y):
        return -Normal(p[:, :1], 1.0).log_prob(y[:, 0]).mean()

    meta = fm.MAML(chain(), loss=loss, inner_lr=0.05)
    assert_exact(meta, regression_tasks(outputs=3))


def test_probabilities_add_up_as_far_as_float32_can_tell():
    """PyTorch wants their sum within 1e-6: of many classes, a matter of how it is taken."""
    meta = fm.MAML(chain(), loss=OF_LABELS["categorical of probabilities"], inner_lr=0.1)
    assert_native(meta, classification_tasks([2]))
    steps = next(iter(meta._plans.values())).loop.loss.steps
    numbers = {step[4] for step in steps if step[0] == "constant"}
    assert 1e-6 not in numbers and 1e-4 in numbers
