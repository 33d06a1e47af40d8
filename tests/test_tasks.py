import pickle

import numpy as np
import pytest
import torch

import fastmeta as fm

NAN = float("nan")


def batch(t=3, s=4, q=2, **changes):
    parts = {
        "support_x": torch.randn(t, s, 5),
        "support_y": torch.randint(3, (t, s)),
        "query_x": torch.randn(t, q, 5),
        "query_y": torch.randint(3, (t, q)),
    }
    return fm.TaskBatch(**{**parts, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"support_x": torch.zeros(3)}, ValueError, "support_x must be"),
        ({"support_y": torch.zeros(3, dtype=torch.int64)}, ValueError, "support_y"),
        ({"support_y": torch.zeros(3, 5, dtype=torch.int64)}, ValueError, r"\[3, 5\]"),
        ({"query_y": torch.zeros(2, 2, dtype=torch.int64)}, ValueError, "query_y"),
        ({"support_x": [[1.0]]}, TypeError, "support_x must be a tensor, not list"),
        ({"query_x": (torch.zeros(3, 2, 5),) * 2}, TypeError, "not tuple: .*are joined in one"),
        ({"support_x": torch.zeros(3, 4, 5).to_sparse()}, TypeError, "support_x must be a dense"),
        ({"query_y": torch.zeros(3, 2, 1).to_sparse()}, TypeError, "query_y must be a dense"),
        (
            {"query_x": torch.zeros(2, 2, 5), "query_y": torch.zeros(2, 2, dtype=torch.int64)},
            ValueError,
            "3 tasks, query_x 2",
        ),
        ({"query_x": torch.zeros(3, 2, 6)}, ValueError, r"\[5\], of query_x \[6\]"),
        ({"query_x": torch.zeros(3, 2, 5, dtype=torch.float64)}, TypeError, "float64"),
        ({"query_y": torch.zeros(3, 2)}, TypeError, "query_y"),
        ({"support_y": torch.zeros(3, 4, dtype=torch.int32)}, TypeError, "int32"),
        ({"support_y": torch.zeros(3, 4, dtype=torch.float64)}, TypeError, "share a dtype"),
        ({"support_x": torch.zeros(3, 4, 5, device="meta")}, TypeError, "meta"),
        ({"support_weight": torch.ones(3, 5)}, ValueError, r"must be \[3, 4\]"),
        ({"support_weight": torch.ones(3, 4, dtype=torch.int64)}, TypeError, r"give .*\.to\("),
        ({"support_weight": torch.ones(3, 4, dtype=torch.float64)}, TypeError, "float64"),
        ({"support_weight": -torch.ones(3, 4)}, ValueError, "not negative"),
        ({"support_weight": torch.full((3, 4), NAN)}, ValueError, "finite"),
        ({"support_weight": torch.full((3, 4), float("inf"))}, ValueError, "finite"),
        ({"query_weight": torch.tensor([[1.0, 0], [0, 0], [0, 0]])}, ValueError, r"\[1, 2\]"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, error, said):
    with pytest.raises(error, match=said):
        batch(**changes)


@pytest.mark.parametrize(("t", "s", "q"), [(0, 4, 2), (3, 0, 2), (3, 4, 0)])
def test_empty_batches_are_refused(t, s, q):
    with pytest.raises(ValueError, match="empty"):
        batch(t, s, q)


def test_indexing_gives_batches():
    tasks = batch(support_weight=torch.rand(3, 4) + 0.1)
    assert len(tasks) == 3
    assert [len(task) for task in tasks] == [1, 1, 1]
    assert len(tasks[1:]) == 2
    assert torch.equal(tasks[-1].support_x, tasks.support_x[2:])
    assert torch.equal(tasks[torch.tensor([2, 0])].support_weight, tasks.support_weight[[2, 0]])
    assert tasks[0].query_weight is None
    with pytest.raises(IndexError):
        tasks[3]
    with pytest.raises(ValueError, match="none of the 3 tasks"):
        tasks[3:]


def test_to_casts_what_is_floating_and_leaves_labels():
    tasks = batch(query_weight=torch.ones(3, 2)).to(dtype=torch.float64)
    assert tasks.support_x.dtype is tasks.query_weight.dtype is torch.float64
    assert tasks.support_y.dtype is torch.int64
    assert batch().to("meta").query_y.device.type == "meta"


def test_pin_memory_reaches_every_tensor(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    tasks = batch()
    pinned = tasks.pin_memory()
    assert torch.equal(pinned.query_y, tasks.query_y + 1)
    assert pinned.support_weight is None


def test_a_batch_survives_pickle_and_a_data_loader():
    tasks = batch()
    assert torch.equal(pickle.loads(pickle.dumps(tasks)).query_x, tasks.query_x)
    loader = torch.utils.data.DataLoader([tasks, tasks], batch_size=None)
    assert sum(len(loaded) for loaded in loader) == 6


def test_padding_becomes_a_copy_of_a_real_sample():
    weight = torch.tensor([[0.0, 2, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    x, y = torch.randn(3, 4, 5), torch.randint(3, (3, 4))
    dirty_x = torch.where(weight.unsqueeze(-1) > 0, x, NAN)
    dirty_y = torch.where(weight > 0, y, -1)
    tasks = batch(support_x=dirty_x, support_y=dirty_y, support_weight=weight)
    assert torch.equal(tasks.support_x[0], x[0, [1, 1, 2, 1]])
    assert torch.equal(tasks.support_y[2], y[2, [0, 0, 0, 0]])
    assert torch.equal(tasks.support_x[1], x[1])


def test_check_finite_names_tensor_and_tasks():
    x = torch.zeros(3, 2, 5)
    assert batch(query_x=x).check_finite() is not None
    x[1, 0, 3] = NAN
    with pytest.raises(ValueError, match=r"query_x is not finite in tasks \[1\]"):
        batch(query_x=x).check_finite()


def test_labels_outside_the_classes_are_refused():
    tasks = batch(support_y=torch.tensor([[0, 1, 2, 0]] * 3))
    tasks.check_labels(3)
    with pytest.raises(ValueError, match=r"support_y has labels from 0 to 2, .*\[0, 2\)"):
        tasks.check_labels(2)
    with pytest.raises(ValueError, match="query_y has labels from -1"):
        batch(query_y=torch.full((3, 2), -1)).check_labels(3)


def test_repr_shows_shapes():
    assert "support_x=[3, 4, 5]" in repr(batch())


def test_accuracy_counts_hits_with_their_weight():
    predictions = torch.tensor([[[0.0, 1], [0, 1], [1, 0]]])
    labels = torch.tensor([[1, 0, 0]])
    loss = torch.zeros(1)
    assert fm.MetaOutput(loss, predictions, labels).accuracy.tolist() == [pytest.approx(2 / 3)]
    weight = torch.tensor([[1.0, 3, 0]])
    assert fm.MetaOutput(loss, predictions, labels, weight).accuracy.tolist() == [0.25]


def test_accuracy_of_a_regression_is_an_error():
    with pytest.raises(TypeError, match="integer class labels"):
        fm.MetaOutput(torch.zeros(1), torch.zeros(1, 2, 1), torch.zeros(1, 2, 1)).accuracy  # noqa: B018


def test_adapted_refuses_another_number_of_tasks():
    model = fm.models.mlp([5, 3])
    adapted = fm.MAML(model).adapt(torch.randn(3, 4, 5), torch.randint(3, (3, 4)))
    assert len(adapted) == 3
    with pytest.raises(ValueError, match="T = 3"):
        adapted(torch.randn(2, 4, 5))


@pytest.mark.parametrize("index", [1, np.int64(1), torch.tensor(1), -2])
def test_one_task_stays_a_batch(index):
    tasks = batch()
    assert torch.equal(tasks[index].support_x, tasks.support_x[1:2])


@pytest.mark.parametrize("index", [[0, 2], np.array([0, 2]), torch.tensor([True, False, True])])
def test_several_tasks_by_their_indices(index):
    tasks = batch()
    assert torch.equal(tasks[index].query_y, tasks.query_y[[0, 2]])


@pytest.mark.parametrize(
    "index", [None, (0, 1), 1.0, torch.tensor([1.0]), torch.zeros(2, 2, dtype=torch.int64)]
)
def test_what_is_no_index_of_tasks_is_refused(index):
    with pytest.raises(TypeError, match="tasks"):
        batch()[index]


def test_what_comes_out_prints_its_shapes():
    out = fm.tasks.MetaOutput(torch.zeros(3), torch.zeros(3, 2, 4), torch.zeros(3, 2).long())
    assert repr(out) == "MetaOutput(loss=[3], predictions=[3, 2, 4], targets=[3, 2], torch.float32)"
