"""PyTorch's losses and common ways to write one's own, in the native kernels."""

import pytest
import torch
import torch.nn.functional as F
from native_losses import assert_native, chain
from oracle import DOUBLE, assert_exact, classification_tasks, regression_tasks
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")

WEIGHTS = torch.tensor([0.5, 1.0, 3.0], dtype=DOUBLE)
PLACES = torch.arange(3)


def by_steps(p, y):
    loss = F.mse_loss(p, y)
    loss += 0.1 * p.abs().mean()
    loss *= 2
    return loss


def from_zero_on(p, y):
    loss = 0.0
    for i in range(3):
        loss = loss + (p[:, i] - y[:, i]).abs().sum()
    return loss / len(p)


def from_a_tensor_of_zero_on(p, y):
    loss = torch.zeros((), dtype=p.dtype)
    for i in range(3):
        loss += F.smooth_l1_loss(p[:, i], y[:, i])
    return loss


def changed_in_place(p, y):
    error = p - y
    error.abs_().clamp_(min=0.2).mul_(p * 2).add_(1).sub_(y).neg_()
    return (error.div_(3) * p).mean()


def likelihood_of_two(p, y):
    mean, scale = p[:, :1], p[:, 1:2]
    return F.gaussian_nll_loss(mean, y[:, :1], F.softplus(scale), full=True)


OF_NUMBERS = {
    function.__name__: function
    for function in (
        by_steps, from_zero_on, from_a_tensor_of_zero_on, changed_in_place, likelihood_of_two
    )
}  # fmt: skip
OF_NUMBERS |= {
    "gaussian": lambda p, y: F.gaussian_nll_loss(p, y, (p * p).mean(1), reduction="sum") / len(p),
    "small variances": lambda p, y: F.gaussian_nll_loss(p, y, (p * p).detach() * p * p, eps=0.1),
    "binary cross-entropy": lambda p, y: F.binary_cross_entropy(p.sigmoid(), y.sigmoid()),
    "nn.BCELoss": lambda p, y: nn.BCELoss()(p.sigmoid(), (y > 0).to(p.dtype)),
    "bce with weights": lambda p, y: F.binary_cross_entropy(
        p.sigmoid(), y.sigmoid(), weight=WEIGHTS, reduction="sum"
    ),
    "kl divergence": lambda p, y: F.kl_div(
        p.log_softmax(1), F.softmax(y, 1), reduction="batchmean"
    ),
    "kl divergence to nothing": lambda p, y: F.kl_div(
        p.log_softmax(1), F.relu(y), reduction="sum"
    ),
    "kl divergence of logarithms": lambda p, y: F.kl_div(
        p.log_softmax(1), y.log_softmax(1), reduction="mean", log_target=True
    ),
    "kl divergence the other way": lambda p, y: F.kl_div(
        y.log_softmax(1), p.softmax(1), reduction="batchmean"
    ),
    "soft margin": lambda p, y: F.soft_margin_loss(p, y.sign()),
    "hinge embedding": lambda p, y: F.hinge_embedding_loss(p, y.sign()),
    "margin ranking": lambda p, y: F.margin_ranking_loss(p[:, 0], p[:, 1], y[:, 0].sign(), 0.3),
    "cosine embedding": lambda p, y: F.cosine_embedding_loss(p, y, y[:, 0].sign(), margin=0.1),
    "poisson": lambda p, y: F.poisson_nll_loss(p, y * y + 1, full=True),
    "poisson of rates": lambda p, y: F.poisson_nll_loss(p.exp(), y * y, log_input=False),
    "many labels": lambda p, y: F.multilabel_soft_margin_loss(p, y.sigmoid()),
    "pairwise distance": lambda p, y: F.pairwise_distance(p, y).mean(),
    "nn.PairwiseDistance": lambda p, y: nn.PairwiseDistance(p=1)(p, y).square().mean(),
    "cosine similarity": lambda p, y: (1 - F.cosine_similarity(p, y)).mean(),
    "cosine similarity of small": lambda p, y: (
        torch.cosine_similarity(p * p, y, dim=-1, eps=2.0) * p[:, 0]
    ).mean(),
    "norm": lambda p, y: torch.norm(p - y, dim=1).mean(),
    "vector norm": lambda p, y: torch.linalg.vector_norm(p - y, dim=-1, keepdim=True).mean(),
    "sum of magnitudes": lambda p, y: (p - y).norm(p=1, dim=-1).square().mean(),
    "normalized": lambda p, y: (F.normalize(p, dim=1) * F.normalize(y, dim=-1)).sum(-1).mean(),
    "logarithm of cosh": lambda p, y: torch.log(torch.cosh(p - y)).mean(),
    "other logarithms": lambda p, y: (torch.log2(1 + p * p) + torch.log10(1 + p.exp())).mean(),
    "stack of totals": lambda p, y: torch.stack(
        [F.mse_loss(p[:, i], y[:, i]) for i in range(3)]
    ).sum(),
    "mean of totals": lambda p, y: torch.stack(
        [w * F.smooth_l1_loss(p[:, i], y[:, i]) for i, w in enumerate((1, 2, 3))]
    ).mean(),
    "stack of samples": lambda p, y: torch.stack(
        [(p[:, i] - y[:, i]).abs() for i in range(3)]
    ).mean(),
    "stack, sums first": lambda p, y: torch.stack(
        [(p[:, i] - y[:, i]).abs() for i in range(3)]
    ).sum(0).square().mean(),
    "stack, totals first": lambda p, y: (
        torch.stack([p[:, 0] * y[:, 0], p[:, 1] ** 2]).mean(1).sum()
    ),
    "one behind another": lambda p, y: torch.cat([(p[:, 0] - y[:, 0]).abs(), p[:, 1] ** 2]).mean(),
    "columns": lambda p, y: sum(
        (a - b).abs() for a, b in zip(p.unbind(1), y.unbind(1), strict=True)
    ).mean(),
    "length": lambda p, y: (p - y).abs().sum() / len(p),
    "length of targets": lambda p, y: (p - y).abs().sum() / (len(y) * y.shape[1]),
    "weighted mean": lambda p, y: ((WEIGHTS * (p - y).abs()).sum(1) / WEIGHTS.sum()).mean(),
    "single weights": lambda p, y: (
        WEIGHTS[0] * (p[:, 0] - y[:, 0]).abs().mean() + WEIGHTS[1:].mean() * p.square().mean()
    ),
    "whole numbers": lambda p, y: ((p.softmax(1) * PLACES).sum(1) - y[:, 0]).abs().mean(),
    "masks": lambda p, y: (p * p * (y > 0).to(p.dtype)).mean() + (p * (y < 0.5)).mean(),
    "truths of numbers": lambda p, y: (p * (y * (y > 0)).bool()).mean(),
    "full": lambda p, y: torch.maximum(p, torch.full_like(p, 0.2)).mean() + (p * y).mean(),
}  # fmt: skip
OF_LABELS = {
    "places": lambda p, y: -F.log_softmax(p, 1)[torch.arange(p.shape[0]), y].mean(),
    "one-hot": lambda p, y: -(F.one_hot(y, 3) * p.log_softmax(-1)).sum(1).mean(),
    "one-hot squares": lambda p, y: F.mse_loss(p.softmax(1), F.one_hot(y, 3).to(p.dtype)),
    "scattered": lambda p, y: (
        -(torch.full_like(p, 0.1 / 3).scatter_(1, y.unsqueeze(1), 0.9) * p.log_softmax(1))
    ).sum(1).mean(),
    "smoothing by hand": lambda p, y: (
        0.9 * F.nll_loss(p.log_softmax(1), y) - 0.1 * p.log_softmax(1).mean(1).mean()
    ),
    "focal": lambda p, y: (
        (1 - torch.exp(-F.cross_entropy(p, y, reduction="none"))) ** 2
        * F.cross_entropy(p, y, reduction="none")
    ).mean(),
    "balanced focal": lambda p, y: (
        WEIGHTS[y] * F.cross_entropy(p, y, reduction="none") * (1 - p.softmax(1)[:, 0])
    ).mean(),
    "sum of weighted classes": nn.CrossEntropyLoss(weight=WEIGHTS, reduction="sum"),
    "weighted classes": lambda p, y: F.cross_entropy(p, y, WEIGHTS, reduction="none").mean(),
    "expected label": lambda p, y: ((p.softmax(1) * torch.arange(3)).sum(1) - y).square().mean(),
    "label as a number": lambda p, y: (p[:, 0] - y.double()).abs().mean(),
    "hinge": lambda p, y: F.relu(
        1 + p - p.gather(1, y[:, None]) - F.one_hot(y, 3)
    ).sum(1).mean(),
}  # fmt: skip


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", OF_NUMBERS)
def test_of_numbers(name, order):
    meta = fm.MAML(chain(), loss=OF_NUMBERS[name], inner_steps=2, inner_lr=0.03, order=order)
    for sizes in ({"t": 19}, {"s": 1, "q": 2}, {"s": 2, "q": 1}):
        assert_native(meta, regression_tasks(outputs=3, **sizes))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", OF_LABELS)
def test_of_labels(name, order):
    meta = fm.MAML(chain(), loss=OF_LABELS[name], inner_steps=2, inner_lr=0.03, order=order)
    for sizes in ({"t": 19}, {"s": 1, "q": 2}, {"s": 2, "q": 1}):
        assert_native(meta, classification_tasks([2], **sizes))


@pytest.mark.parametrize(
    "name", [name for name in OF_LABELS if name not in ("expected label", "label as a number")]
)
@pytest.mark.parametrize("label", [-1, 3, -100])
def test_labels_that_are_none(name, label):
    """An error where PyTorch has one, and else what PyTorch makes of them."""
    meta = fm.MAML(chain(), loss=OF_LABELS[name], inner_lr=0.03)
    tasks = classification_tasks([2])
    tasks.query_y[1, 0] = label
    try:
        with fm.use_backend("reference"):
            right = meta(tasks).loss
    except (ValueError, RuntimeError, IndexError):
        with pytest.raises((ValueError, RuntimeError, IndexError)):
            meta(tasks)
    else:
        torch.testing.assert_close(meta(tasks).loss, right)


def test_fewer_classes_than_outputs():
    def actor_critic(p, y):
        chosen = p[:, :2].log_softmax(1).gather(1, y[:, None])[:, 0]
        return (p[:, 2].detach() * chosen).mean() + p[:, 2].square().mean()

    meta = fm.MAML(chain(), loss=actor_critic, inner_steps=2, inner_lr=0.03)
    tasks = classification_tasks([2], n_way=2)
    assert_native(meta, tasks)
    tasks.support_y[0, 1] = 2
    with pytest.raises(ValueError, match=r"support_y has a label outside \[0, 2\)"):
        meta(tasks)


@pytest.mark.parametrize(
    "name",
    ["gaussian", "kl divergence to nothing", "cosine similarity", "norm",
     "from_zero_on", "changed_in_place", "stack, sums first", "one behind another"],
)  # fmt: skip
@pytest.mark.parametrize("where", ["support_x", "support_y", "query_y"])
def test_what_is_no_number_stays_none(name, where):
    meta = fm.MAML(chain(), loss=OF_NUMBERS[name], inner_lr=0.03)
    tasks = regression_tasks(outputs=3)
    getattr(tasks, where)[1, 1, 0] = torch.nan
    found = meta(tasks).loss
    with fm.use_backend("reference"):
        right = meta(tasks).loss
    torch.testing.assert_close(found, right, equal_nan=True)


@pytest.mark.parametrize("scale", [10.0, 40.0, 800.0])
def test_saturated_probabilities(scale):
    """PyTorch bounds their logarithms and derivatives."""

    def loss(p, y):
        return F.binary_cross_entropy((scale * p).sigmoid(), (y > 0).to(p.dtype))

    model = nn.Linear(2, 3).double()
    meta = fm.MAML(model, loss=loss, inner_lr=1e-5, order=1)
    assert_native(meta, regression_tasks(outputs=3))


def test_probabilities_that_are_none_show_as_nan():
    meta = fm.MAML(chain(), loss=lambda p, y: F.binary_cross_entropy(p.sigmoid(), y))
    tasks = regression_tasks(outputs=3)
    tasks.support_y.clamp_(0.1, 0.9), tasks.query_y.clamp_(0.1, 0.9)
    assert_native(meta, tasks)
    tasks.query_y[1, 0, 0] = 1.1
    assert meta(tasks).loss.isnan().tolist() == [False, True, False]


def test_negative_variances_show_as_nan():
    meta = fm.MAML(chain(), loss=lambda p, y: F.gaussian_nll_loss(p[:, :1], y[:, :1], y[:, 1:2]))
    tasks = regression_tasks(outputs=3)
    tasks.support_y.abs_(), tasks.query_y.abs_()
    assert_native(meta, tasks)
    tasks.query_y[1, 0, 1] = -1e-9
    assert meta(tasks).loss.isnan().tolist() == [False, True, False]


def test_a_norm_of_nothing_has_the_slope_0():
    model = nn.Linear(2, 3, bias=False).double()
    tasks = regression_tasks(outputs=3)
    tasks.support_x[:, 0] = tasks.query_x[:, 1] = 0
    tasks.support_y[:, 0] = tasks.query_y[:, 1] = 0
    for loss in (OF_NUMBERS["norm"], OF_NUMBERS["normalized"], OF_NUMBERS["cosine similarity"]):
        # Of second order PyTorch has NaN there.
        assert_native(fm.MAML(model, loss=loss, inner_lr=0.1, order=1), tasks)


def test_double_precision_is_for_pytorch():
    """Whoever computes in float64 wants its digits."""

    def loss(p, y):
        return (p.double() - y.double()).square().mean().float()

    meta = fm.MAML(chain().float(), loss=loss, inner_lr=0.05)
    tasks = regression_tasks(outputs=3).to(dtype=torch.float32)
    assert_exact(meta, tasks, tolerance=1e-5)
    assert "resident" not in {plan.choice.name for plan in meta._plans.values()}
