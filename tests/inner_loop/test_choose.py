import importlib

import pytest
import torch
from oracle import regression_tasks
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop import InnerLoop, choose
from fastmeta.inner_loop.engines import networks, resident
from fastmeta.models import mlp


def arguments(model=None, loss="mse"):
    model = (model or mlp([2, 4, 2])).double()
    parameters = dict(model.named_parameters())
    return InnerLoop(model, loss, 1, 2, tuple(parameters)), regression_tasks(), parameters, 0.1


@pytest.fixture
def no_native(monkeypatch):
    monkeypatch.setattr(cpu, "unavailable", lambda: "no compiler was found")


def test_why_not_the_resident_engine(no_native):
    choice = choose(*arguments())
    assert choice.name == "layered"
    assert choice.passed_over == {
        "resident": "no compiler was found",
        "stepwise": "no weight is made of parameters, and no layer runs twice",
        "vmap": "not asked: layered comes first",
        "reference": "not asked: layered comes first",
    }
    assert str(choice).startswith("engine: layered\n  not resident: no compiler was found\n")


def test_the_fastest_that_can_run(monkeypatch):
    monkeypatch.setattr(resident, "can_run", lambda *_: None)
    choice = choose(*arguments())
    assert choice.name == "resident" and choice.engine is resident
    assert choice.passed_over["vmap"] == "not asked: resident comes first"


def test_an_unknown_layer_is_named():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Hardsigmoid())
    assert choose(*arguments(model)).name == "vmap"


def test_use_backend_reference_beats_all():
    with fm.use_backend("reference"):
        for engine in ("auto", "resident", "vmap"):
            assert choose(*arguments(), engine=engine).name == "reference"


def test_a_demand_that_cannot_be_met_gives_the_reason(no_native):
    with fm.use_backend("cpu"), pytest.raises(ValueError, match="no compiler was found"):
        choose(*arguments())
    with pytest.raises(ValueError, match='"resident" .*: no compiler was found'):
        choose(*arguments(), engine="resident")


def test_backend_and_engine_that_contradict():
    with fm.use_backend("cpu"), pytest.raises(ValueError, match='runs engine="resident", not "vm'):
        choose(*arguments(), engine="vmap")


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match="of auto, resident, stepwise, layered, vmap, reference"):
        choose(*arguments(), engine="turbo")


def test_explain_takes_algorithms_and_modules(no_native):
    meta = fm.MAML(mlp([2, 2]), loss="mse")
    assert fm.explain(meta).name == "layered"
    assert fm.explain(mlp([2, 2]), loss=lambda p, y: p.sum()).name == "layered"
    assert "no compiler" in str(fm.explain(mlp([2, 2]), device="cpu"))
    with pytest.raises(ValueError, match="loss belongs to the algorithm"):
        fm.explain(meta, loss="mse")


def test_explain_refuses_what_a_call_would_refuse():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
    with pytest.raises(ValueError, match=r"dropout in training mode \(1\).*randomness"):
        fm.explain(fm.MAML(model, loss="mse"))
    chosen = fm.MAML(model, loss="mse", engine="vmap", randomness="different")
    assert fm.explain(chosen).name == "vmap"
    assert fm.explain(fm.MAML(model.eval(), loss="mse")).name != "reference"
    with pytest.raises(TypeError, match="ProtoNet has no inner loop"):
        fm.explain(fm.ProtoNet(mlp([2, 2])))


def test_the_engines_have_one_interface():
    module = importlib.import_module("fastmeta.inner_loop.choose")
    for engine in (*module.ENGINES.values(), module.reference):
        assert all(callable(getattr(engine, name)) for name in ("can_run", "adapt", "meta_loss"))


def test_a_module_with_a_forward_of_its_own_is_told_what_keeps_it_from_the_kernels():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, x):
            return self.layer(x).erf()

    said = str(fm.explain(Own()))
    assert said.startswith("engine: layered")
    assert "not resident: its forward calls erf, of which there is no native form\n" in said


def twice():
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.Tanh(), layer)


def tied():
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize("make", [twice, tied])
def test_explain_knows_of_shared_parameters(make, monkeypatch):
    meta = fm.MAML(make().double(), loss="mse")
    assert fm.explain(meta).name == choose(*arguments(meta.model)).name == "resident"
    monkeypatch.setattr(networks, "unwritten_for_any", lambda module: "not now")
    assert "layers share parameters" in fm.explain(meta).passed_over["resident"]
