import pytest
import torch

import fastmeta as fm
from fastmeta.episodes import Sinusoid
from fastmeta.models import mlp
from fastmeta.training import Score, Validation


def regression():
    return fm.MAML(mlp([1, 8, 1]), loss="mse", inner_lr=0.05)


def test_the_tasks_are_the_same_each_time_whatever_the_batch():
    meta = regression()
    expected = meta(Sinusoid(seed=3).sample(7)).loss.mean().item()
    for batch in (None, 7, 1, 3):
        validation = Validation(Sinusoid(seed=3), tasks=7, batch=batch)
        scores = [validation.score(meta, step) for step in (1, 2)]
        assert [score.step for score in scores] == [1, 2]
        assert scores[0].loss == scores[1].loss
        if batch in (None, 7):  # in parts, the stream gives other tasks
            assert scores[0].loss == pytest.approx(expected)
        assert scores[0].accuracy is None


def test_the_source_may_stand_anywhere():
    one, other = Sinusoid(seed=3), Sinusoid(seed=3)
    one.sample(4), other.sample(4)
    meta = regression()
    score = Validation(one, tasks=5).score(meta, 0)
    assert score.loss == pytest.approx(meta(other.sample(5)).loss.mean().item())


class Points:
    """Two classes on a line, always the same."""

    def sample(self, n_tasks):
        x = torch.tensor([[-1.0], [1.0]]).expand(n_tasks, 2, 1)
        y = torch.tensor([0, 1]).expand(n_tasks, 2)
        return fm.TaskBatch(x, y, x, y)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        assert state == {}


def test_labels_give_an_accuracy():
    model = torch.nn.Linear(1, 2)
    meta = fm.MAML(model, inner_steps=0)
    with torch.no_grad():
        model.bias.zero_()
        model.weight.copy_(torch.tensor([[-1.0], [1.0]]))
    validation = Validation(Points(), tasks=5, batch=2)
    assert validation.score(meta, 1).accuracy == 1
    with torch.no_grad():
        model.bias.copy_(torch.tensor([9.0, 0.0]))
    assert validation.score(meta, 1).accuracy == 0.5


def test_no_graph_is_kept_and_nothing_learned():
    meta = regression()
    Validation(Sinusoid(), tasks=2).score(meta, 1)
    assert all(p.grad is None for p in meta.parameters())


@pytest.mark.parametrize(
    ("one", "other", "better"),
    [
        (Score(1, 0.5), None, True),
        (Score(1, 0.4), Score(0, 0.5), True),
        (Score(1, 0.5), Score(0, 0.5), False),
        (Score(1, float("nan")), Score(0, 0.5), False),
        (Score(1, 0.9, 0.8), Score(0, 0.1, 0.7), True),
        (Score(1, 0.1, 0.8), Score(0, 0.9, 0.8), False),
    ],
)
def test_which_is_better(one, other, better):
    assert one.beats(other) is better


@pytest.mark.parametrize("wrong", ["every", "tasks", "batch"])
def test_numbers_below_1(wrong):
    with pytest.raises(ValueError, match=f"{wrong} must be a whole number of at least 1, not 0"):
        Validation(Sinusoid(), **{wrong: 0})
