"""Labels among floating targets, as policy gradients have them beside advantages."""

import pytest
import torch
import torch.nn.functional as F
from native_losses import assert_native, chain, packed_tasks
from oracle import DOUBLE, assert_exact, regression_tasks
from torch import nn
from torch.distributions import Categorical

import fastmeta as fm
from fastmeta.backends import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")


def reinforce(p, y):
    return -(F.log_softmax(p, -1).gather(1, y[:, :1].long()).squeeze(1) * y[:, 1]).mean()


def by_places(p, y):
    return -(F.log_softmax(p, -1)[torch.arange(len(p)), y[:, 0].long()] * y[:, 1]).mean()


def by_one_hot(p, y):
    actions = F.one_hot(y[..., 0].long(), 3)
    return -((actions * p.log_softmax(-1)).sum(1) * y[:, 1]).mean()


def by_scatter(p, y):
    actions = torch.zeros_like(p).scatter_(1, y[:, 0].long().unsqueeze(1), 1.0)
    return -((actions * p.log_softmax(-1)).sum(1) * y[:, 1]).mean()


def by_cross_entropy(p, y):
    actions, advantages, _ = y.unbind(-1)
    return (F.cross_entropy(p, actions.long(), reduction="none") * advantages).mean()


def by_likelihood(p, y):
    return (F.nll_loss(p.log_softmax(1), y[:, 0].to(torch.int64), reduction="none") * y[:, 1]).sum()


def actor_critic(p, y):
    """Logits [2] and a value."""
    policy = Categorical(logits=p[:, :2])
    advantage = y[:, 1] - p[:, 2].detach()
    loss = -(policy.log_prob(y[:, 0]) * advantage).mean()
    loss += 0.5 * F.mse_loss(p[:, 2], y[:, 1])
    return loss - 0.01 * policy.entropy().mean()


def ppo(p, y):
    policy = Categorical(logits=p)
    ratio = torch.exp(policy.log_prob(y[:, 0].long()) - y[:, 2])
    gain = torch.min(ratio * y[:, 1], ratio.clamp(0.8, 1.2) * y[:, 1])
    return -gain.mean() - 0.01 * policy.entropy().mean()


LOSSES = {
    function.__name__: function
    for function in (
        reinforce, by_places, by_one_hot, by_scatter, by_cross_entropy, by_likelihood, actor_critic,
        ppo,
    )
}  # fmt: skip
LOSSES |= {
    "mean": lambda p, y: F.cross_entropy(p, y[:, 0].long()),
    "smoothing": lambda p, y: F.cross_entropy(p, y[:, 0].long(), label_smoothing=0.1),
    "q-learning": lambda p, y: F.smooth_l1_loss(p.gather(1, y[:, :1].long())[:, 0], y[:, 1]),
    "as a number too": lambda p, y: ((p[:, 0] - y[:, 0].int()) ** 2).mean(),
}


def classes_of(name):
    return 2 if name == "actor_critic" else 3


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_labels_among_targets(name, order):
    meta = fm.MAML(chain(), loss=LOSSES[name], inner_steps=2, inner_lr=0.05, order=order)
    for sizes in ({}, {"t": 1}, {"s": 1, "q": 1}, {"t": 19, "s": 9}):
        assert_native(meta, packed_tasks(classes=classes_of(name), **sizes))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "as a number too"])
@pytest.mark.parametrize("argument", ["support_y", "query_y"])
def test_a_class_that_is_not_there_is_an_error(name, argument):
    classes = classes_of(name)
    for first in (True, False):
        meta = fm.MAML(chain(), loss=LOSSES[name], inner_steps=2, inner_lr=0.05)
        if not first:
            meta(packed_tasks(classes=classes))
        tasks = packed_tasks(classes=classes)
        getattr(tasks, argument)[1, 2, 0] = classes
        for call in (meta, meta.forward_backward):
            with pytest.raises(ValueError, match=rf"{argument} has a label .*sample 2 of task 1"):
                call(tasks)
        assert_native(meta, packed_tasks(classes=classes))


def raised(call):
    try:
        return call().loss.detach()
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("label", [-1.0, -100.0, 0.5, 1.999, -0.5, torch.nan, torch.inf, 2.0**40])
def test_what_is_no_class_is_for_the_loss_as_it_came(name, label):
    """Never another number: what PyTorch does, or an error where PyTorch has one."""
    tasks = packed_tasks(classes=classes_of(name))
    tasks.query_y[2, 1, 0] = label
    meta = fm.MAML(chain(), loss=LOSSES[name], inner_steps=2, inner_lr=0.05)
    found = raised(lambda: meta(tasks))
    with fm.use_backend("reference"):
        right = raised(lambda: meta(tasks))
    if isinstance(right, type):
        assert isinstance(found, type)
    else:
        torch.testing.assert_close(found, right, equal_nan=True)
    assert meta.choice(tasks=packed_tasks(classes=classes_of(name))).name == "resident"


def test_after_a_label_for_the_loss_as_it_came_others_are_checked():
    """PyTorch's own one_hot does not look at labels under vmap."""
    meta, tasks = fm.MAML(chain(), loss=LOSSES["by_one_hot"], inner_lr=0.05), packed_tasks()
    tasks.query_y[1, 1, 0] = 2.9
    meta(tasks)
    tasks.query_y[1, 1, 0] = 3.0
    with pytest.raises(ValueError, match="query_y has a label"):
        meta(tasks)


def test_labels_changed_in_place_are_seen():
    meta, tasks = fm.MAML(chain(), loss=reinforce, inner_lr=0.05), packed_tasks()
    assert_native(meta, tasks)
    assert tasks.knows_labels(next(iter(meta._plans.values())).loop.loss.labels)
    tasks.support_y[0, 0, 0] = 3.0
    with pytest.raises(ValueError, match="support_y has a label"):
        meta(tasks)
    tasks.support_y[0, 0, 0] = 2.0
    assert_native(meta, tasks)


def test_one_number_a_sample_may_be_the_label():
    x, y = torch.randn(3, 5, 2, dtype=DOUBLE), torch.randint(3, (3, 5, 1)).to(DOUBLE)
    meta = fm.MAML(chain(), loss=lambda p, y: F.cross_entropy(p, y.squeeze(1).long()), inner_lr=0.1)
    assert_native(meta, fm.TaskBatch(x, y, x, y))
    meta = fm.MAML(chain(), loss=lambda p, y: F.cross_entropy(p, y.long()), inner_lr=0.1)
    assert_native(meta, fm.TaskBatch(x, y[..., 0], x, y[..., 0]))
    with pytest.raises(ValueError, match="query_y has a label"):
        meta(fm.TaskBatch(x, y[..., 0], x, y[..., 0] + 3))


def test_two_labels_of_a_sample():
    def loss(p, y):
        first = F.cross_entropy(p[:, :2], y[:, 1].long())
        return first + F.cross_entropy(p[:, 1:], y[:, 0].long(), reduction="sum") / len(p)

    tasks = packed_tasks(classes=2)
    tasks.support_y[..., 1] = tasks.query_y[..., 1] = 1.0
    meta = fm.MAML(chain(), loss=loss, inner_lr=0.05)
    assert_native(meta, tasks)
    tasks.support_y[2, 0, 1] = 2.0
    with pytest.raises(ValueError, match="support_y has a label .* at place 1"):
        meta(tasks)


def test_weighted_tasks_may_hold_anything_where_there_is_padding():
    def loss(p, y, weight=None):
        losses = F.cross_entropy(p, y[:, 0].long(), reduction="none")
        return losses.mean() if weight is None else (losses * weight).sum() / weight.sum()

    tasks = packed_tasks()
    weight = torch.ones(3, 5, dtype=DOUBLE)
    weight[1, 3:] = 0
    tasks.support_y[1, 3:] = torch.nan
    padded = fm.TaskBatch(
        tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y, support_weight=weight
    )
    assert_exact(fm.MAML(chain(), loss=loss, inner_lr=0.05), padded)


def test_adapt_and_inner_sgd_check_labels_too():
    model, tasks = chain(), packed_tasks()
    fast = fm.MAML(model, loss=reinforce, inner_lr=0.1).adapt(tasks.support_x, tasks.support_y)
    given = dict(model.named_parameters()), tasks.support_x, tasks.support_y
    found = fm.functional.inner_sgd(model, *given, loss=reinforce, lr=0.1, steps=1)
    for name, value in found.items():
        torch.testing.assert_close(value, fast.parameters[name])
    tasks.support_y[0, 0, 0] = 3.0
    with pytest.raises(ValueError, match="support_y has a label"):
        fm.functional.inner_sgd(model, *given, loss=reinforce, lr=0.1, steps=1)


def test_a_loss_that_nothing_runs_natively_has_the_errors_of_pytorch():
    meta = fm.MAML(chain(), loss=reinforce, inner_lr=0.1, engine="vmap")
    tasks = packed_tasks()
    assert_exact(meta, tasks)
    tasks.query_y[0, 0, 0] = 3.0
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        meta(tasks)


def test_labels_of_networks_that_are_no_chain():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(2, 8), nn.Linear(10, 3)

        def forward(self, x):
            return self.second(torch.cat([x, self.first(x).tanh()], -1))

    assert_native(fm.MAML(Joined().double(), loss=ppo, inner_lr=0.05), packed_tasks())


@pytest.mark.parametrize("order", [1, 2])
def test_gradients_that_a_loss_takes_itself(order):
    """Which are none of a reader's constants; torch.func refuses the hooks that hide a trial."""

    def by_autograd(p, y):
        slope = torch.autograd.grad((p**3).sum(), p, create_graph=True)[0]
        return F.mse_loss(p, y) + 0.01 * slope.square().mean()

    def by_func(p, y):
        slope = torch.func.grad(lambda q: (q**3).sum())(p)
        return F.mse_loss(p, y) + 0.01 * slope.square().mean()

    for loss in (by_autograd, by_func):
        meta = fm.MAML(chain(), loss=loss, inner_steps=2, inner_lr=0.05, order=order)
        assert_exact(meta, regression_tasks(outputs=3))
