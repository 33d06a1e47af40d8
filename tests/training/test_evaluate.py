import math

import pytest
import torch

import fastmeta as fm
from fastmeta.episodes import Sinusoid
from fastmeta.models import mlp
from fastmeta.training import (
    accuracy_by_step,
    adaptation_seconds,
    cross_validated_error,
    error_by_step,
    interval,
    student_t,
)


@pytest.mark.parametrize(
    ("degrees", "confidence", "expected"),
    [  # from printed tables of Student's distribution
        (1, 0.95, 12.7062),
        (2, 0.95, 4.30265),
        (9, 0.95, 2.26216),
        (9, 0.99, 3.24984),
        (30, 0.95, 2.04227),
        (1000, 0.95, 1.96234),
        (10**7, 0.95, 1.95996),
    ],
)
def test_student_t(degrees, confidence, expected):
    assert student_t(degrees, confidence) == pytest.approx(expected, rel=2e-5)


def test_interval_holds_the_mean_as_often_as_it_says():
    values = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
    found = [interval(row) for row in values]
    share = sum(row.low <= 1 <= row.high for row in found) / len(found)
    assert abs(share - 0.95) < 0.012


def test_interval_of_few():
    single = interval(torch.tensor([2.0]))
    assert (single.mean, single.low, single.high) == (2.0, -math.inf, math.inf)
    root = interval(torch.tensor([0.0, 8.0])).sqrt()
    assert root.mean == 2.0 and root.low == 0.0 and root.high > 2.0


def test_error_by_step_is_the_loss_after_that_many_steps():
    tasks = Sinusoid().sample(6)
    meta = fm.MAML(mlp([1, 8, 1]), inner_lr=0.05, inner_steps=3, loss="mse")
    errors = error_by_step(meta, tasks, 3)
    assert errors.shape == (4, 6)
    for k in range(4):
        adapted = meta.adapt(tasks.support_x, tasks.support_y, inner_steps=k)
        expected = (adapted(tasks.query_x) - tasks.query_y).square().mean((1, 2))
        torch.testing.assert_close(errors[k], expected.detach())
    assert adaptation_seconds(meta, tasks) > 0


def test_accuracy_by_step_counts_the_queries_that_are_right():
    x, y = torch.randn(6, 4, 3), torch.randint(2, (6, 4))
    tasks = fm.TaskBatch(x, y, x, y)
    meta = fm.MAML(mlp([3, 2]), inner_lr=1.0, inner_steps=1)
    rows = accuracy_by_step(meta, tasks, 3)
    assert rows.shape == (4, 6)
    for k in range(4):
        guesses = meta.adapt(x, y, inner_steps=k)(x).argmax(-1)
        torch.testing.assert_close(rows[k], (guesses == y).float().mean(1))
    assert rows[3].mean() > rows[0].mean()


class Level:
    """A meta-learner that predicts a constant, and a source with targets 0..n-1 by task."""

    def __init__(self, tasks):
        self.tasks = tasks

    def __call__(self, batch):
        level = sum(self.tasks) / len(self.tasks)
        return type("Output", (), {"predictions": torch.full_like(batch.query_y, level)})

    def sample(self):
        y = torch.tensor(self.tasks, dtype=torch.float32)[:, None, None]
        return fm.TaskBatch(y, y, y, y)


def test_cross_validation_judges_on_what_was_left_out():
    error = cross_validated_error((0, 1, 2, 3), Level, Level, folds=2)
    # Fold {0, 2} is judged with level 2, fold {1, 3} with level 1.
    assert error == pytest.approx((4 + 0 + 0 + 4) / 4)
    assert cross_validated_error((0, 2), Level, Level, folds=9) == pytest.approx(4)
