"""What a forward reads from Python changes between two calls: seen, or not read at all."""

import contextlib

import numpy as np
import pytest
import stale_cases
import torch
from stale_cases import CASES, Bent, Options, assert_as_the_reference, namespace, tasks_of, write
from torch import nn

import fastmeta as fm


@pytest.fixture(autouse=True)
def as_before(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTMETA_TEST_RATE", "2.0")
    monkeypatch.chdir(tmp_path)
    write("rate", "2.0")
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = benchmark


@pytest.mark.parametrize("engine", ["auto", "layered"])
@pytest.mark.parametrize("name", CASES)
def test_nothing_is_stale(name, engine, monkeypatch):
    make, bend, change = CASES[name]
    monkeypatch.setattr(stale_cases, "STATE", make())
    meta, tasks = fm.MAML(Bent(bend), loss="mse", inner_lr=0.1, engine=engine), tasks_of()
    with contextlib.ExitStack() as stack:
        if engine == "layered":  # which may say that it cannot
            stack.enter_context(contextlib.suppress(ValueError))
        before = assert_as_the_reference(meta, tasks)
        change(stale_cases.STATE)
        after = assert_as_the_reference(meta, tasks)
        assert not torch.allclose(before, after.to(before))


READ = [
    "a module", "one of one's own", "one in another", "an ordered dict", "a dict of attributes",
    "a deque", "an array", "an object in a list", "a slot", "an operator", "what is computed once",
    "a name made up", "deep attributes", "an option", "a dataclass", "a choice", "a partial's",
]  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_what_is_watched_runs_natively(name, monkeypatch):
    make, bend, _ = CASES[name]
    monkeypatch.setattr(stale_cases, "STATE", make())
    assert fm.explain(fm.MAML(Bent(bend), loss="mse"), tasks_of()).name == "resident"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a large array", "the global variable STATE is a ndarray, of which a later change"),
        ("a weak reference", "the global variable STATE.seen is a ReferenceType"),
        ("an iterator", "STATE is a chain"),
        ("the number of threads", "reads get_num_threads, which nobody watches"),
        ("globals", "of_globals reads globals"),
    ],
)
def test_what_cannot_be_watched_is_said(name, said, monkeypatch):
    make, bend, _ = CASES[name]
    monkeypatch.setattr(stale_cases, "STATE", make())
    passed_over = fm.explain(fm.MAML(Bent(bend), loss="mse"), tasks_of()).passed_over
    assert said in passed_over["resident"] and said in passed_over["layered"]


@pytest.mark.parametrize("value", [namespace(a=2.0), Options(), {"a": 2.0}, np.float64(2.0)])
def test_attributes_of_the_module(value):
    def forward(x):
        scale = model.scale
        return float(getattr(scale, "a", scale["a"] if type(scale) is dict else scale)) * x.tanh()

    model = Bent(forward)
    model.scale = value
    meta, tasks = fm.MAML(model, loss="mse", inner_lr=0.1), tasks_of()
    before = assert_as_the_reference(meta, tasks)
    model.scale = type(value)(0.5) if isinstance(value, float) else {"a": 0.5}
    assert not torch.allclose(before, assert_as_the_reference(meta, tasks))


def test_attributes_of_layers():
    model = nn.Sequential(nn.Linear(3, 4), nn.Softplus(np.float64(2.0)), nn.Linear(4, 2))
    meta, tasks = fm.MAML(model, loss="mse", inner_lr=0.1), tasks_of()
    before = assert_as_the_reference(meta, tasks)
    model[1].beta = np.float64(0.5)
    assert not torch.allclose(before, assert_as_the_reference(meta, tasks))


def test_private_attributes_of_layers():
    model = Bent(lambda x: model.layer._scales[0] * x.tanh())
    model.layer._scales = [2.0]
    meta, tasks = fm.MAML(model, loss="mse", inner_lr=0.1), tasks_of()
    before = assert_as_the_reference(meta, tasks)
    model.layer._scales[0] = 0.5
    assert not torch.allclose(before, assert_as_the_reference(meta, tasks))


class Counting(Bent):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x if self.calls < 100 else 2 * x)


def test_a_forward_that_changes_what_it_reads():
    meta, tasks = fm.MAML(Counting(torch.tanh), loss="mse"), tasks_of()
    assert "changes what it reads" in fm.explain(meta, tasks).passed_over["resident"]


@pytest.mark.parametrize("engine", ["auto", "layered"])
def test_a_buffer_that_comes_and_goes(engine):
    model = Bent(lambda x: x.tanh() if model.scale is None else model.scale * x.tanh())
    model.register_buffer("scale", torch.full((4,), 2.0))
    meta, tasks = fm.MAML(model, loss="mse", inner_lr=0.1, engine=engine), tasks_of()
    for scale in (torch.full((4,), 2.0), None, torch.full((4,), 3.0)):
        model.scale = scale
        assert_as_the_reference(meta, tasks)
