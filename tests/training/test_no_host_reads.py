"""No learner reads a value on the host in a step, so that its steps can be captured."""

import pytest
import torch
from tape import Tape, pretend_to_capture
from torch import nn
from torch.nn import functional as F

import fastmeta as fm
from fastmeta.backends import cpu

T, N, SHOTS, QUERIES = 3, 4, 2, 3


def images(n_way=N):
    x = torch.randn(T, N * (SHOTS + QUERIES), 1, 8, 8)
    y = torch.arange(N)
    support_y, query_y = (y.repeat_interleave(n).repeat(T, 1) for n in (SHOTS, QUERIES))
    cut = N * SHOTS
    return fm.TaskBatch(x[:, :cut], support_y, x[:, cut:], query_y).with_known_ways(n_way)


def weighted():
    x = torch.randn(T, 5, 3)
    weight = torch.tensor([1.0, 1, 1, 0.5, 0]).repeat(T, 1)
    return fm.TaskBatch(x, x.sum(-1, keepdim=True), x, x.sum(-1, keepdim=True), weight, weight)


def conv():
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*layers, nn.Flatten())


def classifier():
    return nn.Sequential(*conv(), nn.Linear(64, N))


LEARNERS = {
    "maml-vmap": lambda: fm.MAML(classifier(), engine="vmap"),
    "maml-layered": lambda: fm.MAML(classifier(), engine="layered", inner_steps=2),
    "fomaml": lambda: fm.MAML(classifier(), engine="layered", order=1),
    "metasgd": lambda: fm.MetaSGD(classifier(), engine="layered"),
    "anil": lambda: fm.ANIL(model := classifier(), model[-1], engine="vmap"),
    "reptile": lambda: fm.Reptile(classifier(), engine="layered", inner_steps=2),
    "protonet": lambda: fm.ProtoNet(conv()),
    "matchingnet": lambda: fm.MatchingNet(conv()),
    "r2d2": lambda: fm.R2D2(conv()),
    "proto-maml": lambda: fm.ProtoMAML(conv(), engine="vmap"),
}


@pytest.fixture(autouse=True)
def plain_operations(monkeypatch):
    # A tape does not see the native kernels.
    monkeypatch.setattr(cpu, "native", None)
    monkeypatch.setattr(cpu, "unavailable", lambda: "off for this test")
    # On a CPU alone this one looks at the labels.
    monkeypatch.setattr(F, "one_hot", lambda y, n: (y[..., None] == torch.arange(n)).long())


def step_on_tape(learner, batch, monkeypatch):
    learner(batch()).loss.mean().backward()  # a step before: what is looked at once
    tasks = batch()
    with monkeypatch.context() as patch, Tape() as tape:
        pretend_to_capture(patch)
        learner(tasks).loss.mean().backward()
    return tape


@pytest.mark.parametrize("name", LEARNERS)
def test_nothing_is_read_in_a_step(name, monkeypatch):
    assert step_on_tape(LEARNERS[name](), images, monkeypatch).calls


def test_nothing_is_read_of_weights(monkeypatch):
    def learner(tasks):
        every = (tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)
        return meta(fm.TaskBatch(*every, tasks.support_weight, tasks.query_weight))

    meta = fm.MAML(nn.Linear(3, 1), loss="mse", engine="vmap")
    assert step_on_tape(learner, weighted, monkeypatch).calls


def test_the_tape_would_tell(monkeypatch):
    maml = LEARNERS["maml-vmap"]()

    def nosy(tasks):
        output = maml(tasks)
        assert output.loss.sum().item() > 0
        return output

    with pytest.raises(RuntimeError, match="waits for the device"):
        step_on_tape(nosy, images, monkeypatch)


def spoil_label(tasks, label):
    query_y = tasks.query_y.clone()
    query_y[1, 2] = label
    return fm.TaskBatch(tasks.support_x, tasks.support_y, tasks.query_x, query_y)


@pytest.mark.parametrize("label", [-1, N, 2**40])
@pytest.mark.parametrize("name", ["maml-layered", "protonet"])
def test_in_a_graph_a_label_outside_stops_the_device_before_it_is_used(name, label, monkeypatch):
    learner = LEARNERS[name]()
    n_way = {} if name == "maml-layered" else {"n_way": N}
    learner(images(), **n_way)
    pretend_to_capture(monkeypatch)
    with pytest.raises(RuntimeError, match="outside its classes"):
        learner(spoil_label(images(), label), **n_way)


def test_in_a_graph_bad_weights_stop_the_device(monkeypatch):
    tasks = weighted()
    tensors = (tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)
    pretend_to_capture(monkeypatch)
    for bad in (-1.0, float("nan"), float("inf")):
        weight = torch.ones(T, 5)
        weight[1, 1] = bad
        with pytest.raises(RuntimeError, match="support_weight is negative, not finite"):
            fm.TaskBatch(*tensors, weight)
    with pytest.raises(RuntimeError, match="0 for all samples"):
        fm.TaskBatch(*tensors, torch.zeros(T, 5))


def test_in_a_graph_the_number_of_classes_must_be_known(monkeypatch):
    tasks = images()
    unknown = fm.TaskBatch(tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)
    pretend_to_capture(monkeypatch)
    with pytest.raises(RuntimeError, match="give n_way"):
        fm.ProtoNet(conv())(unknown)


def test_known_ways_hold_until_labels_change():
    tasks = images()
    assert tasks.known_ways == N
    tasks.check_labels(N + 1)  # inside [0, N) is inside [0, N + 1)
    tasks.query_y[0, 0] = N + 5
    assert tasks.known_ways is None
    with pytest.raises(ValueError, match="query_y has labels from 0 to 9"):
        tasks.check_labels(N + 1)
