"""Losses of users in the native kernels: as the reference has them, whatever the network."""

import argparse
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from native_losses import assert_native, chain
from oracle import DOUBLE, assert_exact, classification_tasks, outer_loss, regression_tasks
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")
SCALE = 1.0


def focal(p, y):
    chosen = F.softmax(p, 1).gather(1, y[:, None]).squeeze(1)
    return ((1 - chosen) ** 2 * F.cross_entropy(p, y, reduction="none")).mean()


def policy_gradient(p, y):
    """Actions [2] and an advantage; means and a logarithmic scale."""
    normal = torch.distributions.Normal(p[:, :2], p[:, 2:].exp(), validate_args=False)
    return -(normal.log_prob(y[:, :2]).sum(-1) * y[:, 2]).mean()


QUANTILES = torch.tensor([0.1, 0.5, 0.9], dtype=DOUBLE)


def quantile_of_each(p, y):
    losses = []
    for i, share in enumerate((0.1, 0.5, 0.9)):
        error = y[:, 0] - p[:, i]
        losses.append(torch.max((share - 1) * error, share * error).unsqueeze(1))
    return torch.cat(losses, dim=1).sum(dim=1).mean()


def quantile_of_all(p, y):
    error = y - p
    shares = torch.tensor([0.1, 0.5, 0.9], dtype=p.dtype)
    return torch.maximum(shares * error, (shares - 1) * error).mean()


OF_NUMBERS = {
    "cosines with one number": lambda p, y: F.cosine_similarity(p, y[:, :1]).mean(),
    "cosines": lambda p, y: 1 - F.cosine_similarity(p, y, dim=-1).mean(),
    "quantiles, one by one": quantile_of_each,
    "quantiles at once": quantile_of_all,
    "quantiles of a tensor": lambda p, y: (
        torch.where(y > p, QUANTILES * (y - p), (1 - QUANTILES) * (p - y)).mean()
    ),
    "quantiles in a row": lambda p, y: torch.stack(
        [(share * (y - p)[:, i]).abs() for i, share in enumerate((0.1, 0.5, 0.9))], dim=-1
    ).sum(1).mean(),
    "shares of weighted classes": lambda p, y: (
        F.cross_entropy(p, y.softmax(1), weight=QUANTILES)
    ),
    "bce of rare ones": nn.BCEWithLogitsLoss(pos_weight=3 * QUANTILES),
    "bce with weights": nn.BCEWithLogitsLoss(weight=QUANTILES, pos_weight=2 * QUANTILES),
    "huber": F.huber_loss,
    "huber of another width": nn.HuberLoss(delta=0.3),
    "smooth l1": nn.SmoothL1Loss(beta=0.2),
    "smooth l1 without a width": nn.SmoothL1Loss(beta=0),
    "l1": F.l1_loss,
    "sum of squares": nn.MSELoss(reduction="sum"),
    "half of the squares": lambda p, y: 0.5 * ((p - y) ** 2).sum(-1).mean(),
    "bce of shares": lambda p, y: F.binary_cross_entropy_with_logits(p, y.sigmoid()) * 2,
    "log cosh": lambda p, y: (p - y + F.softplus(2 * (y - p))).mean(),
    "poisson": F.poisson_nll_loss,
    "policy gradient": policy_gradient,
    "parts": lambda p, y: (
        F.logsigmoid(p).mean() + F.relu(p * y).mean() + torch.where(p > y, p * p, 0.0).mean()
        + p.clamp(0, 1).mean() + p.chunk(3, 1)[1].mean() + F.softplus(3 * p).mean()
    ),
    "the larger and the smaller": lambda p, y: (
        torch.maximum(p, y) * torch.minimum(p, 0.3 * y)
    ).mean(),
    "functions": lambda p, y: (
        torch.sin(p) * torch.cos(p * y) + torch.tanh(p) * torch.sigmoid(y * p) / (1 + p * p)
        + torch.rsqrt(1 + p * p) * torch.log1p(y * y + p * p) + torch.sqrt(1 + p.exp())
    ).mean(),
    "log sum exp": lambda p, y: (torch.logsumexp(p, 1) - (p * y.softmax(1)).sum(1)).mean(),
    "softmax": lambda p, y: (F.softmax(p / 2, -1) * y).sum() / p.shape[0],
    "a logarithm of targets": lambda p, y: (p * torch.log(y * y)).mean(),
    "detached": lambda p, y: (p.detach() * (p - y)).abs().mean(),
    "logic": lambda p, y: (p * p * ((p > 0) & ~(y > 0) | (y >= 1)).to(p.dtype)).mean(),
    "a mean a column": lambda p, y: ((p - y).abs() * p).mean(0).sum(),
}  # fmt: skip
OF_NUMBERS |= {
    "ties": lambda p, y: torch.maximum((p - y).abs(), (p - y).abs().detach()).pow(2).mean(),
    "ties of the smaller": lambda p, y: (torch.minimum(p, p.detach()).pow(2) + p * y).mean(),
}
OF_LABELS = {
    "no label is ignored": lambda p, y: (
        torch.where(y.unsqueeze(1) == -100, p, p.logsumexp(1, keepdim=True)).sum(1).mean()
    ),
    "smoothing": nn.CrossEntropyLoss(label_smoothing=0.1),
    "a sum": nn.CrossEntropyLoss(reduction="sum"),
    "temperature": lambda p, y: F.cross_entropy(p / 2.0, y),
    "focal": focal,
    "likelihood": lambda p, y: -2 * p.log_softmax(-1).gather(1, y.unsqueeze(1)).mean(),
    "ordinal": lambda p, y: (p.softmax(1)[:, 1] - y.to(p.dtype)).abs().mean(),
}


def images(outputs=3):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, track_running_stats=False),
        nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, outputs),
    ).double()  # fmt: skip


@pytest.mark.parametrize("tasks", [1, 3, 19])
@pytest.mark.parametrize("name", OF_NUMBERS)
def test_of_numbers(name, tasks):
    meta = fm.MAML(chain(), loss=OF_NUMBERS[name], inner_steps=2, inner_lr=0.05)
    assert fm.explain(meta).name == "resident"
    assert_native(meta, regression_tasks(t=tasks, outputs=3))


@pytest.mark.parametrize("tasks", [1, 19])
@pytest.mark.parametrize("name", OF_LABELS)
def test_of_labels(name, tasks):
    meta = fm.MAML(chain(), loss=OF_LABELS[name], inner_steps=2, inner_lr=0.05)
    assert fm.explain(meta).name == "resident"
    assert_native(meta, classification_tasks([2], t=tasks))


@pytest.mark.parametrize("name", ["smoothing", "focal", "a sum"])
def test_of_networks_of_images(name):
    meta = fm.MAML(images(), loss=OF_LABELS[name], inner_steps=2, inner_lr=0.05)
    assert_native(meta, classification_tasks([1, 4, 4], s=7))


@pytest.mark.parametrize("width", [40, 700])
def test_of_wide_networks_with_few_outputs(width):
    model = fm.models.mlp([width, 64, 1]).double()
    meta = fm.MAML(model, loss=F.smooth_l1_loss, inner_steps=2, inner_lr=0.01)
    assert_native(meta, regression_tasks(t=2, s=9, q=21, inputs=width, outputs=1))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("rates", [None, "tensor", "element"])
def test_rates_orders_and_gradients_into_inputs(rates, order):
    meta = fm.MAML(
        chain(), loss=policy_gradient, inner_steps=2, inner_lr=0.05, learn_inner_lr=rates,
        order=order,
    )  # fmt: skip
    tasks = regression_tasks(t=4, outputs=3)
    tasks.support_x.requires_grad_(), tasks.query_x.requires_grad_()
    assert_native(meta, tasks, [*meta.parameters(), tasks.support_x, tasks.query_x])


def test_targets_of_another_width_than_the_predictions():
    def loss(p, y):
        return (0.5 * ((y[:, 0] - p[:, 0]) ** 2) * torch.exp(-p[:, 1]) + 0.5 * p[:, 1]).mean()

    meta = fm.MAML(chain(2), loss=loss, inner_steps=2, inner_lr=0.05)
    assert_native(meta, regression_tasks(t=5, outputs=1))
    assert_native(meta, regression_tasks(t=5, outputs=7))
    x, y = torch.randn(3, 5, 2, dtype=DOUBLE), torch.randn(3, 5, dtype=DOUBLE)
    flat = fm.MAML(chain(1), loss=lambda p, y: (p.squeeze(1) - y).abs().mean(), inner_lr=0.05)
    assert_native(flat, fm.TaskBatch(x, y, x, y))


def test_other_sizes_of_the_same_plan():
    meta = fm.MAML(chain(), loss=OF_NUMBERS["sum of squares"], inner_lr=0.01)
    for s, q in [(5, 4), (1, 1), (17, 2)]:
        assert_native(meta, regression_tasks(s=s, q=q, outputs=3))


def test_adapt_and_forward_backward():
    meta = fm.MAML(chain(), loss=F.huber_loss, inner_steps=2, inner_lr=0.05)
    tasks = regression_tasks(t=4, outputs=3)
    meta(tasks).loss.mean().backward()
    expected = [p.grad.clone() for p in meta.parameters()]
    meta.zero_grad()
    meta.forward_backward(tasks)
    assert all(torch.equal(p.grad, e) for p, e in zip(meta.parameters(), expected, strict=True))
    fast = meta.adapt(tasks.support_x, tasks.support_y)
    torch.testing.assert_close(fast(tasks.query_x), meta(tasks).predictions)


def test_inner_sgd():
    model, tasks = chain(), regression_tasks(t=4, outputs=3)
    parameters = dict(model.named_parameters())
    given = parameters, tasks.support_x, tasks.support_y
    found = fm.functional.inner_sgd(model, *given, loss=F.huber_loss, lr=0.1, steps=2)
    with fm.use_backend("reference"):
        right = fm.functional.inner_sgd(model, *given, loss=F.huber_loss, lr=0.1, steps=2)
    for name in parameters:
        torch.testing.assert_close(found[name], right[name], rtol=1e-12, atol=1e-13)


def test_what_a_loss_reads_may_change(monkeypatch):
    meta = fm.MAML(chain(), loss=lambda p, y: SCALE * (p - y).abs().mean(), inner_lr=0.05)
    tasks = regression_tasks(outputs=3)
    for scale in (1.0, 3.0, 1.0):
        monkeypatch.setitem(globals(), "SCALE", scale)
        assert_native(meta, tasks)
    module = nn.SmoothL1Loss(beta=0.5)
    meta = fm.MAML(chain(), loss=module, inner_lr=0.05)
    for beta in (0.5, 1.5):
        module.beta = beta
        assert_native(meta, tasks)


class Balanced(nn.Module):
    """A loss with a state, as users write them."""

    def __init__(self, options):
        super().__init__()
        self.options = options
        self.register_buffer("weights", torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE))

    def forward(self, p, y):
        return self.options["power"] * self._distances(p - y).mean()

    def _distances(self, error):
        return self.weights * F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none")


class Agent:
    def __init__(self):
        self.options, self.net = argparse.Namespace(bonus=0.1), chain()

    def loss(self, p, y):
        return self.distance(p, y) + self.options.bonus * p.square().mean()

    @staticmethod
    def distance(p, y):
        return (p - y).abs().mean()


def test_what_objects_hold_may_change():
    options, tasks = {"power": 1.0}, regression_tasks(outputs=3)
    loss, agent = Balanced(options), Agent()
    meta, other = (fm.MAML(chain(), loss=own, inner_lr=0.05) for own in (loss, agent.loss))
    for value in (1.0, 2.5):
        options["power"] = agent.options.bonus = value
        assert_native(meta, tasks)
        assert_native(other, tasks)
    loss.weights[1] = 7.0
    assert_native(meta, tasks)
    agent.distance = lambda p, y: (p * y).square().mean()
    assert_native(other, tasks)


def test_labels_to_ignore_are_for_the_loss_as_it_came():
    meta = fm.MAML(chain(), loss=OF_LABELS["smoothing"], inner_lr=0.05)
    tasks = classification_tasks([2])
    assert_native(meta, tasks)
    tasks.support_y[0, 0] = tasks.query_y[1, 1] = -100
    assert_exact(meta, tasks)
    assert_exact(meta, classification_tasks([2]))
    again = fm.MAML(chain(), loss=OF_LABELS["smoothing"], inner_lr=0.05)
    assert_exact(again, tasks)


def test_weighted_tasks_are_for_the_loss_as_it_came():
    def loss(p, y, weight=None):
        each = (p - y).abs().mean(1)
        return each.mean() if weight is None else (each * weight).sum() / weight.sum()

    meta = fm.MAML(chain(), loss=loss, inner_lr=0.05)
    assert_native(meta, regression_tasks(outputs=3))
    weight = torch.ones(3, 5, dtype=DOUBLE)
    weight[1, 3:] = 0
    assert_exact(meta, regression_tasks(outputs=3, support_weight=weight))


@pytest.mark.parametrize("name", ["the larger and the smaller", "parts", "huber", "logic"])
def test_what_is_no_number_stays_none(name):
    meta = fm.MAML(chain(), loss=OF_NUMBERS[name], inner_lr=0.05)
    tasks = regression_tasks(t=3, outputs=3)
    tasks.support_x[1, 2, 0] = torch.nan
    loss = meta(tasks).loss
    with fm.use_backend("reference"):
        right = meta(tasks).loss
    torch.testing.assert_close(loss, right, equal_nan=True)
    assert right.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("name", ["huber", "smooth l1"])
def test_an_infinite_target_has_a_slope(name):
    meta = fm.MAML(chain(), loss=OF_NUMBERS[name], inner_lr=0.05)
    tasks = regression_tasks(t=3, outputs=3)
    tasks.support_y[1, 2, 0] = torch.inf
    assert_native(meta, tasks)


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_losses_that_depend_on_the_number_of_samples_are_run_as_they_came(samples):
    def few(p, y):
        return F.l1_loss(p, y) * min(1.0, len(p) / 3)

    def other(p, y):
        return F.l1_loss(p, y) if p.shape[0] == samples else F.smooth_l1_loss(p, y)

    def lone(p, y):
        return (p.squeeze() - y.squeeze()).abs().mean(0).sum()

    def first(p, y):
        return F.mse_loss(p[:256], y[:256])

    def through_an_int(p, y):
        return F.l1_loss(p, y) * min(int(p.shape[0]), 4)

    def through_mathematics(p, y):
        return F.l1_loss(p, y) * math.gcd(p.shape[0], 4)

    def squeezed(p, y):
        return (p.squeeze(0) - y.squeeze(0)).abs().mean(0).sum()

    meta = fm.MAML(chain(), loss=first, inner_lr=0.05)
    assert_exact(meta, regression_tasks(t=2, s=300, q=290, outputs=3))
    for loss in (few, other, lone, through_an_int, through_mathematics, squeezed):
        meta = fm.MAML(chain(), loss=loss, inner_lr=0.05)
        assert_exact(meta, regression_tasks(s=samples, q=4, outputs=3))
        assert_exact(meta, regression_tasks(s=4, q=samples, outputs=3))


def test_the_same_bits_for_any_number_of_threads():
    meta = fm.MAML(images(), loss=OF_LABELS["smoothing"], inner_steps=2, inner_lr=0.05)
    tasks, found = classification_tasks([1, 4, 4], t=5), []
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            loss = outer_loss(meta, tasks)
            found.append(torch.autograd.grad(loss, [*meta.parameters()]))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


# float32: no worse than PyTorch at the same, by the median of draws.
@pytest.mark.parametrize("name", ["huber", "policy gradient", "functions", "softmax"])
def test_errors_in_float32(name):
    ratios = []
    for _ in range(7):
        model, tasks = chain(), regression_tasks(t=4, outputs=3)

        def gradient(model, tasks, engine, name=name):
            meta = fm.MAML(model, loss=OF_NUMBERS[name], inner_lr=0.05, engine=engine)
            found = torch.autograd.grad(meta(tasks).loss.sum(), [*model.parameters()])
            return torch.cat([g.flatten() for g in found]).double()

        right = gradient(model, tasks, "reference")
        single, few = model.float(), tasks.to(dtype=torch.float32)
        errors = [(gradient(single, few, e) - right).norm() for e in ("resident", "reference")]
        ratios.append(errors[0] / errors[1])
    assert torch.stack(ratios).median() < 2


# ---- losses that nobody has thought of -----------------------------------------------------------

UNARY = [
    torch.tanh, torch.sin, torch.cos, torch.sigmoid, F.softplus, torch.neg,
    lambda x: (x * x + 0.3).sqrt(), lambda x: torch.log1p(x * x), lambda x: x.clamp(-0.7, 0.9),
    lambda x: 0.5 * x.abs(), lambda x: torch.exp(-x * x), lambda x: F.relu(x),
    lambda x: x.log_softmax(1) / 3, lambda x: x.softmax(1), lambda x: x - x.mean(1, keepdim=True),
    lambda x: x.logsumexp(1, keepdim=True).expand(-1, 3) * 0.3, lambda x: (1 + x * x).reciprocal(),
]  # fmt: skip
BINARY = [
    torch.add, torch.sub, torch.mul, torch.maximum, torch.minimum,
    lambda x, y: x / (1 + y * y), lambda x, y: torch.where(x > y, x, 0.5 * y),
    lambda x, y: x * (y >= 0).to(x.dtype), lambda x, y: x[:, 1:2] * y, lambda x, y: x.detach() * y,
]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_of_random_expressions(data):
    drawn = [
        data.draw(st.tuples(st.integers(0, 26), st.integers(0, 9), st.integers(0, 9)))
        for _ in range(data.draw(st.integers(1, 6)))
    ]
    adds = data.draw(st.booleans())

    def build(p, y):
        values = [p, y]
        for which, i, j in drawn:
            x, z = values[i % len(values)], values[j % len(values)]
            last = UNARY[which](x) if which < 17 else BINARY[which - 17](x, z)
            values.append(last)
        total = values[-1] * p
        return total.sum() * 0.1 if adds else total.mean()

    # By way of a program alone: what a closure like this one holds, nobody can tell.
    from fastmeta.functional import loss_programs

    model, tasks = chain(), regression_tasks(t=3, outputs=3)
    look = loss_programs._Look((5,), torch.Size([3]), torch.Size([3]), DOUBLE, False)
    program = loss_programs._program(build, look)
    found = []
    for engine in ("resident", "reference"):
        loop = fm.MAML(model, loss=program, inner_steps=2, inner_lr=0.05, engine=engine)
        found.append(torch.autograd.grad(outer_loss(loop, tasks), [*model.parameters()]))
    scale = torch.cat([g.flatten() for g in found[1]]).norm()
    for ours, right in zip(*found, strict=True):
        assert (ours - right).norm() <= 1e-10 * (scale + 1e-3)


# ---- losses that go by a name --------------------------------------------------------------------


def squares(p, y):
    return ((p - y) ** 2).mean()


def test_what_is_a_named_loss_runs_as_that():
    meta = fm.MAML(chain(), loss=squares, inner_steps=2, inner_lr=0.05)
    assert_native(meta, regression_tasks(outputs=3))
    assert "mse" in {plan.loop.loss for plan in meta._plans.values()}


def test_what_broadcasts_is_run_as_it_came():
    x, y = torch.randn(3, 4, 2, dtype=DOUBLE), torch.randn(3, 4, dtype=DOUBLE)
    meta = fm.MAML(nn.Linear(2, 1).double(), loss=squares, inner_lr=0.1)
    assert_exact(meta, fm.TaskBatch(x, y, x, y))


def test_code_replaced_between_calls_is_seen():
    def loss(p, y):
        return ((p - y) ** 2).mean()

    meta, tasks = fm.MAML(chain(), loss=loss, inner_lr=0.05), regression_tasks(outputs=3)
    assert_native(meta, tasks)
    loss.__code__ = (lambda p, y: (p - y).abs().mean()).__code__
    assert_native(meta, tasks)


def test_a_loss_may_be_met_first_where_gradients_are_off():
    tasks = regression_tasks()
    for loss in (nn.L1Loss(), F.smooth_l1_loss):
        meta = fm.MAML(chain(2), loss=loss)
        with torch.no_grad():
            assert fm.explain(meta, tasks).name == "resident"
            found = meta(tasks).loss
        torch.testing.assert_close(found, meta(tasks).loss.detach())
