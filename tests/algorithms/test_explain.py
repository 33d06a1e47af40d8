"""fm.explain names the engine that runs."""

import re

import pytest
import torch
import torch.nn.functional as F
from oracle import DOUBLE, classification_tasks, regression_tasks
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.models import mlp


class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp([2, 4, 1])

    def forward(self, x):
        return self.net(x).squeeze(-1)


class Derivative(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp([2, 4, 2], "tanh")

    def forward(self, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.net(x).square().sum(), x, create_graph=True)[0]


def squeezed():
    tasks = regression_tasks(outputs=1)
    y = (tasks.support_y.squeeze(-1), tasks.query_y.squeeze(-1))
    return Squeezed(), fm.TaskBatch(tasks.support_x, y[0], tasks.query_x, y[1]), "mse"


def segmentation():
    x, y = torch.randn(3, 4, 1, 6, 6, dtype=DOUBLE), torch.randint(3, (3, 4, 6, 6))
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)]
    return nn.Sequential(*layers), fm.TaskBatch(x, y, x, y), smoothed


def smoothed(p, y):
    return F.cross_entropy(p, y, label_smoothing=0.1)


CASES = {
    "a chain": lambda: (mlp([2, 4, 3]), classification_tasks([2]), "cross_entropy"),
    "squeezed": squeezed,
    "segmentation": segmentation,
    "derivative": lambda: (Derivative(), regression_tasks(), "mse"),
}


def ran(meta):
    return next(iter(meta._plans.values())).engine


@pytest.mark.parametrize("name", CASES)
def test_the_engine_that_runs_is_named(name):
    model, tasks, loss = CASES[name]()
    meta = fm.MAML(model.double(), loss=loss)
    before = fm.explain(meta)
    assert before.depends and str(before).endswith("fastmeta.explain(meta, tasks) looks at them")
    told = fm.explain(fm.MAML(model, loss=loss), tasks)
    meta(tasks)
    after = fm.explain(meta)
    assert told.engine is after.engine is ran(meta)
    assert not told.depends and not after.depends and "without tasks" not in str(after)
    assert fm.explain(meta, tasks).engine is ran(meta)
    assert fm.explain(model, tasks, loss=loss).engine is ran(meta)


def test_some_calls_would_have_been_named_wrongly():
    guessed = {name: fm.explain(CASES[name]()[0].double(), loss=CASES[name]()[2]) for name in CASES}
    model, tasks, loss = segmentation()
    assert guessed["segmentation"].engine is not fm.explain(model.double(), tasks, loss=loss).engine


def test_a_call_under_other_settings_explains_nothing():
    model, tasks, loss = squeezed()
    meta = fm.MAML(model.double(), loss=loss)
    meta(tasks)
    assert not fm.explain(meta).depends
    meta.loss = "bce"
    assert fm.explain(meta).depends
    meta.loss = loss
    assert not fm.explain(meta).depends
    model.net = mlp([2, 5, 1]).double()
    assert fm.explain(meta).depends


def test_a_demand_does_not_depend_on_tasks():
    assert not fm.explain(fm.MAML(mlp([2, 1]), loss="mse", engine="vmap")).depends
    with fm.use_backend("reference"):
        assert not fm.explain(mlp([2, 1])).depends


def test_tasks_that_a_call_would_refuse_are_refused():
    with pytest.raises(TypeError, match="tasks must be a TaskBatch.*, not Tensor"):
        fm.explain(mlp([2, 1]).double(), torch.randn(2, 3))
    with pytest.raises(ValueError, match="the module cannot take a task's support_x"):
        fm.explain(mlp([3, 1]).double(), regression_tasks(), loss="mse")
    with pytest.raises(ValueError, match="give one of the two"):
        fm.explain(mlp([2, 2]).double(), regression_tasks(), loss="mse", device="cpu")


CFG = {"net": nn.Linear(2, 2), "b": 1.0}


@pytest.mark.parametrize(
    "loss, words",
    [
        (lambda p, y: torch.erf(p - y).mean(), "it calls erf"),
        (lambda p, y: (p - y).square().mean().sqrt(), "not a mean or a sum over the samples"),
        (lambda p, y: CFG["b"] * p.mean(), r"CFG.\['net'\], .*Linear with parameters"),
        (lambda p, y: p.mean() * min(1.0, len(p) / 8), "number of samples"),
        (lambda p, y: (p.double() - y.double()).mean().to(p.dtype), "computes in torch.float64"),
    ],
)
def test_what_keeps_a_loss_from_being_read_is_named(loss, words):
    meta = fm.MAML(mlp([2, 4, 3]), loss=loss)
    tasks = regression_tasks(outputs=3).to(dtype=torch.float32)
    for choice in (fm.explain(meta), fm.explain(meta, tasks), fm.explain(meta)):
        assert choice.name != "resident"
        assert re.search(words, choice.passed_over["resident"])


def test_labels_that_keep_a_loss_from_being_read_are_named():
    meta = fm.MAML(mlp([2, 4, 3]).double(), loss=lambda p, y: 2 * F.cross_entropy(p, y))
    tasks = classification_tasks([2])
    assert fm.explain(meta, tasks).name == "resident"
    tasks.support_y[0, 0] = -100
    assert "labels below 0" in fm.explain(meta, tasks).passed_over["resident"]
    assert fm.explain(meta, classification_tasks([2])).name == "resident"


def test_what_runs_an_encoder():
    tasks = classification_tasks([1, 8, 8]).to(dtype=torch.float32)
    meta = fm.ProtoNet(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten()))
    with pytest.raises(TypeError, match="with tasks"):
        fm.explain(meta)
    if cpu.unavailable() is None:
        assert fm.explain(meta, tasks).name == "resident"
    for options in ({"loss": "mse"}, {"device": "cpu"}):
        with pytest.raises(ValueError, match="|".join(options)):
            fm.explain(meta, tasks, **options)
    meta.encoder.append(nn.LogSigmoid())
    meta.encoder[1].register_forward_hook(lambda *_: None)
    chosen = fm.explain(meta, tasks)
    assert chosen.name == "reference" and "hooks" in chosen.passed_over["resident"]


def test_proto_maml_is_explained_with_tasks():
    meta = fm.ProtoMAML(mlp([2, 5, 3]).double(), engine="vmap")
    tasks = classification_tasks([2], n_way=1)
    assert fm.explain(meta, tasks).name == "vmap"
    with pytest.raises(TypeError, match="needs tasks"):
        fm.explain(meta)
