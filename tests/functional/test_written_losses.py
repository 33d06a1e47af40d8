"""Losses that functions write out, and what only looks like one."""

import pytest
import torch
import torch.nn.functional as F
from oracle import DOUBLE, assert_exact, classification_tasks, regression_tasks
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.functional.written_losses import written_out

FACTOR = 1.0


def in_lines(p, y):
    gap = p - y
    return (gap * gap).mean()


def with_an_import_of_its_own():
    import torch.nn.functional as own

    return lambda p, y: own.mse_loss(p, y)


def bound_late():
    """A loss, and what makes it another one."""
    function = F.mse_loss

    def change():
        nonlocal function
        function = F.l1_loss

    return lambda p, y: function(p, y), change


MSE = [
    lambda p, y: ((p - y) ** 2).mean(),
    lambda p, y: (y - p).pow(2.0).mean(),
    lambda p, y: (p - y).square().mean(),
    lambda p, y: torch.mean(torch.square(torch.sub(p, y))),
    lambda p, y: F.mse_loss(p, y),
    lambda p, y: F.mse_loss(y, p, reduction="mean"),
    lambda p, y: nn.functional.mse_loss(p, y),
    in_lines,
    with_an_import_of_its_own(),
]
OTHERS = [
    lambda p, y: ((p - y) ** 3).mean(),
    lambda p, y: (p - y).abs().mean(),
    lambda p, y: FACTOR * ((p - y) ** 2).mean(),
    lambda p, y: 2 * ((p - y) ** 2).mean(),
    lambda p, y: ((p - y) ** 2).sum(),
    lambda p, y: ((p - y) ** 2).mean(0).mean(),
    lambda p, y: (p - y).mean() ** 2,
    lambda p, y: ((p - p) ** 2).mean(),
    lambda p, y: torch.sub(p, y, alpha=2).square().mean(),
    lambda p, y: F.mse_loss(p, y, reduction="sum"),
    lambda p, y: F.mse_loss(p, y, None, None, "sum"),
    lambda p, y: F.binary_cross_entropy_with_logits(y, p),
    lambda p, y, w=None: ((p - y) ** 2).mean(),
    lambda *a: F.mse_loss(*a),
    lambda p, y: torch.pow(2, p - y).mean(),
    lambda p, y: 0.0,
    lambda p, y: p.shape and ((p - y) ** 2).mean(),
    F.l1_loss,
    nn.MSELoss(),
    "mse",
]


@pytest.mark.parametrize("loss", MSE)
def test_a_mean_squared_error(loss):
    assert written_out(loss) == written_out(loss) == "mse"


def test_a_cross_entropy():
    assert written_out(lambda p, y: F.cross_entropy(p, y)) == "cross_entropy"
    assert written_out(lambda p, y: F.cross_entropy(y, p)) is None
    assert written_out(lambda p, y: F.cross_entropy(p, y, label_smoothing=0.1)) is None
    assert written_out(lambda p, y: F.cross_entropy(p, y, None, None, 2)) is None


def test_a_binary_cross_entropy():
    assert written_out(lambda p, y: F.binary_cross_entropy_with_logits(p, y)) == "bce"


@pytest.mark.parametrize("loss", OTHERS)
def test_what_is_something_else(loss):
    assert written_out(loss) is None


def test_a_function_that_might_do_more_is_not_run():
    calls = []
    assert written_out(lambda p, y: calls.append(p) or ((p - y) ** 2).mean()) is None
    assert not calls


def test_what_a_closure_holds_may_change_and_is_not_read():
    loss, change = bound_late()
    assert written_out(loss) is None
    meta, tasks = fm.MAML(nn.Linear(2, 2).double(), loss=loss), regression_tasks()
    assert_exact(meta, tasks, [*meta.parameters()])
    change()
    assert_exact(meta, tasks, [*meta.parameters()])


def test_new_code_of_the_same_function_is_read():
    def loss(p, y):
        return ((p - y) ** 2).mean()

    assert written_out(loss) == "mse"
    loss.__code__ = (lambda p, y: (p - y).abs().mean()).__code__
    assert written_out(loss) is None


@pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")
def test_they_run_in_the_native_kernels():
    model = fm.models.mlp([2, 4, 2], "silu").double()
    meta = fm.MAML(model, loss=MSE[0], inner_steps=2, inner_lr=0.1)
    assert fm.explain(meta).name == "resident"
    assert_exact(meta, regression_tasks(), [*model.parameters()])
    assert {plan.loop.loss for plan in meta._plans.values()} == {"mse", MSE[0]}  # the reference's


def test_what_broadcasts_is_run_as_it_came():
    x, y = torch.randn(3, 4, 2, dtype=DOUBLE), torch.randn(3, 4, dtype=DOUBLE)
    meta = fm.MAML(nn.Linear(2, 1).double(), loss=MSE[0], inner_lr=0.1)
    assert_exact(meta, fm.TaskBatch(x, y, x, y), [*meta.parameters()])


def test_code_replaced_between_calls_is_seen():
    def loss(p, y):
        return ((p - y) ** 2).mean()

    meta, tasks = fm.MAML(fm.models.mlp([2, 4, 2]).double(), loss=loss), regression_tasks()
    meta(tasks)
    loss.__code__ = (lambda p, y: (p - y).abs().mean()).__code__
    assert_exact(meta, tasks, [*meta.parameters()])


@pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")
def test_a_cross_entropy_may_ignore_labels():
    model = fm.models.mlp([2, 4, 3]).double()
    meta = fm.MAML(model, loss=lambda p, y: F.cross_entropy(p, y), inner_lr=0.1)
    tasks = classification_tasks([2])
    assert fm.explain(meta).name == "resident"
    assert_exact(meta, tasks, [*model.parameters()])
    tasks.support_y[0, 0] = tasks.query_y[1, 1] = -100
    assert_exact(meta, tasks, [*model.parameters()])
    assert_exact(meta, classification_tasks([2]), [*model.parameters()])
