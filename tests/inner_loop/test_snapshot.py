import functools
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from oracle import regression_tasks
from torch import nn

import fastmeta as fm
from fastmeta.inner_loop.reading.snapshot import Snapshot
from fastmeta.watching import unchanged
from fastmeta.watching.surroundings import Surroundings


@pytest.fixture(params=["native", "plain"], autouse=True)
def form(request, monkeypatch):
    """Every test twice: natively where that is built, and as it is done without."""
    if request.param == "plain":
        monkeypatch.setattr(unchanged, "unchanged", unchanged._all_same)
        monkeypatch.setattr(unchanged, "distinct_items", unchanged._all_distinct)


def move_to_the_end(module, name):
    module._modules[name] = module._modules.pop(name)


def model():
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.LeakyReLU(0.1), nn.Linear(3, 3)))


def test_it_gives_the_parameters_by_name():
    module = model()
    parameters = Snapshot(module).parameters()
    assert list(parameters) == [name for name, _ in module.named_parameters()]
    assert all(p is module.get_parameter(name) for name, p in parameters.items())


def test_new_values_are_no_change():
    module = model()
    snapshot = Snapshot(module)
    module[0].weight = nn.Parameter(torch.zeros(3, 2))
    module.double()
    assert snapshot.parameters()["0.weight"] is module[0].weight


def replace(module, name):
    """Another dict of the same items."""
    setattr(module, name, module.__dict__[name].copy())


CHANGES = {
    "attribute that is new": lambda m: setattr(m[0], "skips", True),
    "parameters": lambda m: replace(m[0], "_parameters"),
    "buffers": lambda m: replace(m[1][1], "_buffers"),
    "children": lambda m: replace(m[1], "_modules"),
    "hooks": lambda m: replace(m[1][0], "_forward_hooks"),
    "pre-hooks": lambda m: replace(m[1][0], "_forward_pre_hooks"),
    "backward hooks": lambda m: replace(m[1][0], "_backward_hooks"),
    "backward pre-hooks": lambda m: replace(m[1][0], "_backward_pre_hooks"),
    "dict": lambda m: setattr(m[0], "__dict__", m[0].__dict__.copy()),
    "state": lambda m: m[0].__setstate__({"_parameters": m[0]._parameters.copy()}),
    "mode": lambda m: m.eval(),
    "mode of one": lambda m: m[1][0].eval(),
    "attribute": lambda m: setattr(m[1][0], "negative_slope", 0.2),
    "attribute turned tensor": lambda m: setattr(m[1][0], "negative_slope", torch.tensor(0.1)),
    "attribute gone": lambda m: delattr(m[0], "in_features"),
    "number turned truth": lambda m: setattr(m[1][0], "inplace", 0),
    "type": lambda m: setattr(m[1][0], "__class__", nn.ReLU),
    "own forward": lambda m: setattr(m[0], "forward", torch.tanh),
    "order": lambda m: move_to_the_end(m, "0"),
    "child gone": lambda m: m.pop(1),
    "weight gone": lambda m: m[0]._parameters.pop("weight"),
    "child": lambda m: m.__setitem__(0, nn.Linear(2, 3)),
    "nested child": lambda m: m[1].__setitem__(0, nn.ReLU()),
    "child added": lambda m: m.append(nn.ReLU()),
    "parameter gone": lambda m: setattr(m[0], "bias", None),
    "parameter added": lambda m: m[0].register_parameter("scale", nn.Parameter(torch.ones(1))),
    "tied": lambda m: setattr(m[1][1], "bias", m[0].bias),
    "buffer added": lambda m: m[0].register_buffer("scale", torch.ones(1)),
    "hook": lambda m: m[0].register_forward_hook(lambda *_: None),
    "pre-hook": lambda m: m.register_forward_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change):
    module = model()
    snapshot = Snapshot(module)
    assert snapshot.parameters() is not None
    CHANGES[change](module)
    assert snapshot.parameters() is None


def test_untying_is_seen():
    module = model()
    module[1][1].bias = module[0].bias
    snapshot = Snapshot(module)
    assert len(snapshot.parameters()) == 3
    module[1][1].bias = nn.Parameter(torch.zeros(3))
    assert snapshot.parameters() is None


@pytest.mark.parametrize(
    "register",
    [
        "register_module_forward_hook",
        "register_module_forward_pre_hook",
        "register_module_full_backward_hook",
        "register_module_full_backward_pre_hook",
    ],
)
def test_a_global_hook_is_seen_to_come_and_to_go(register):
    module = model()
    before = Snapshot(module)
    handle = getattr(nn.modules.module, register)(lambda *_: None)
    try:
        assert before.parameters() is None
        during = Snapshot(module)
        assert during.parameters() is not None
    finally:
        handle.remove()
    assert during.parameters() is None
    assert before.parameters() is not None


NUMBERS = torch.ones(2)


@pytest.mark.parametrize(
    ("value", "other", "is_same"),
    [
        ((NUMBERS,), (NUMBERS.clone(),), False),
        ((NUMBERS,), (NUMBERS,), True),
        ((1, (NUMBERS, "a")), (1, (NUMBERS, "a")), True),
        ((1, (NUMBERS, "a")), (1, (NUMBERS, "b")), False),
        ((1.5, 2), (NUMBERS, 2), False),
        ((NUMBERS, 2), (1.5, 2), False),
        ((1000, ("a b", None, 0.5)), (1000, ("a b", None, 0.5)), True),
        ((1, 2), (1.0, 2), False),
        ((1, 2), (True, 2), False),
        ((1, 2), (1, 2, 3), False),
        (([1],), ([1],), True),
        (([1],), ([2],), False),
        ((1, 0.0), (1, -0.0), False),
        (frozenset([1]), frozenset([True]), False),
    ],
)
def test_a_tuple_is_compared_item_by_item(value, other, is_same):
    module = model()
    module[0].note = value
    snapshot = Snapshot(module)
    module[0].note = other
    assert (snapshot.parameters() is not None) is is_same


def test_a_tuple_too_deep_to_compare_is_another_one():
    def nested():
        value = (0.5,)
        for _ in range(10**5):
            value = (value,)
        return value

    module = model()
    module[0].note = nested()
    snapshot = Snapshot(module)
    assert snapshot.parameters() is not None
    module[0].note = nested()
    assert snapshot.parameters() is None


# ---- what forwards read beside their module -----------------------------------------------------

SLOPE, BEND = 1.0, True
elsewhere = types.ModuleType("elsewhere")
elsewhere.shift = 0.5


def bent(x):
    return F.leaky_relu(x, 0.1) if BEND else x.tanh()


class Around(nn.Module):
    offset = 1.0

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return bent(self.layer(x)) * SLOPE + self.offset + elsewhere.shift + self.more()

    def more(self):
        return sum(SLOPE for _ in range(2))


@pytest.mark.parametrize("engine", ["auto", "vmap"])
@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (sys.modules[__name__], "SLOPE", 3.0),
        (sys.modules[__name__], "BEND", False),
        (sys.modules[__name__], "bent", torch.sin),
        (Around, "offset", 2.0),
        (Around, "more", lambda self: 5.0),
        (Around, "forward", lambda self, x: self.layer(x)),
        (elsewhere, "shift", 7.0),
    ],
)
def test_what_a_forward_reads_around_it_is_watched(monkeypatch, owner, name, value, engine):
    meta = fm.MAML(Around().double(), loss="mse", inner_lr=0.1, engine=engine)
    tasks = regression_tasks()
    before = meta(tasks).loss
    monkeypatch.setattr(owner, name, value)
    after = meta(tasks).loss
    with fm.use_backend("reference"):
        torch.testing.assert_close(after, meta(tasks).loss)
    assert not torch.allclose(before, after)


class Settings:
    bend = True


options = {"bend": True, "functions": [torch.tanh, torch.relu]}
switch = torch.tensor(1.0)


def wrapped(function):
    @functools.wraps(function)
    def run(x):
        return function(x)

    return run


@wrapped
def bent_by_a_wrapped_function(x):
    return x.relu() if BEND else x.tanh()


def made_in_a_function():
    bend = True

    def bent_by_a_closure(x):
        return x.relu() if bend else x.tanh()

    def change():
        nonlocal bend
        bend = False

    return bent_by_a_closure, change


bent_by_a_closure, change_the_closure = made_in_a_function()


class Parent(nn.Module):
    bends = True

    def __init__(self, bent):
        super().__init__()
        self.layer, self.out = nn.Linear(2, 4), nn.Linear(4, 2)
        type(self).bent = staticmethod(bent)

    def forward(self, x):
        x = self.layer(x)
        return self.out(self.bent(x) if self.bends else x.sin())


def by_a_default(x, bend=True):
    return x.relu() if bend else x.tanh()


def by_an_import(x):
    import settings_of_a_test

    return x.relu() if settings_of_a_test.bend else x.tanh()


FURTHER = {
    "an attribute of a class": (
        lambda x: x.relu() if Settings.bend else x.tanh(),
        lambda patch: patch.setattr(Settings, "bend", False),
    ),
    "an item of a dict": (
        lambda x: x.relu() if options["bend"] else x.tanh(),
        lambda patch: patch.setitem(options, "bend", False),
    ),
    "a function in a list": (
        lambda x: options["functions"][0](x),
        lambda patch: options["functions"].reverse(),
    ),
    "a tensor in place": (
        lambda x: x.relu() if switch.item() > 0 else x.tanh(),
        lambda patch: switch.neg_(),
    ),
    "what a wrapped function reads": (
        bent_by_a_wrapped_function,
        lambda patch: patch.setattr(sys.modules[__name__], "BEND", False),
    ),
    "a variable of a closure": (bent_by_a_closure, lambda patch: change_the_closure()),
    "a default": (
        by_a_default,
        lambda patch: patch.setattr(by_a_default, "__defaults__", (False,)),
    ),
    "a module that is imported there": (
        by_an_import,
        lambda patch: patch.setattr(sys.modules["settings_of_a_test"], "bend", False),
    ),
}


@pytest.mark.parametrize("name", FURTHER)
def test_what_a_forward_reads_further_away_is_watched(name, monkeypatch):
    settings = types.ModuleType("settings_of_a_test")
    settings.bend = True
    monkeypatch.setitem(sys.modules, "settings_of_a_test", settings)
    bent, change = FURTHER[name]
    meta = fm.MAML(type("Child", (Parent,), {})(bent).double(), loss="mse", inner_lr=0.1)
    tasks = regression_tasks()
    meta(tasks)
    change(monkeypatch)
    after = meta(tasks).loss
    with fm.use_backend("reference"):
        torch.testing.assert_close(after, meta(tasks).loss)


def test_an_attribute_that_a_child_class_comes_to_hide(monkeypatch):
    child = type("Child", (Parent,), {})
    meta, tasks = fm.MAML(child(torch.tanh).double(), loss="mse"), regression_tasks()
    before = meta(tasks).loss
    monkeypatch.setattr(child, "bends", False, raising=False)
    assert not torch.allclose(before, meta(tasks).loss)


def test_a_variable_called_like_an_attribute_is_not_one(monkeypatch):
    module = Parent(torch.tanh)
    snapshot = Snapshot(module)
    for name in ("layer", "out", "tanh"):
        monkeypatch.setattr(sys.modules[__name__], name, object(), raising=False)
    assert snapshot.parameters() is not None
    Parent.read_by_nobody = 1
    assert snapshot.parameters() is not None
    del Parent.read_by_nobody


def test_a_scripted_layer_is_looked_at_each_time():
    model = nn.Sequential(torch.jit.script(nn.Linear(2, 2))).double()
    meta, tasks = fm.MAML(model, loss="mse"), regression_tasks()
    torch.testing.assert_close(meta(tasks).loss, meta(tasks).loss)


class Proxy:
    """Of an object that is not there, as web frameworks have them."""

    @property
    def __class__(self):
        raise RuntimeError("nothing is there")

    def __getattr__(self, name):
        raise RuntimeError("nothing is there")


absent = Proxy()


def test_objects_that_raise_are_no_hindrance():
    module = Parent(lambda x: x if absent is None else x.tanh())
    assert Snapshot(module).parameters() is not None


def test_a_branch_on_a_global_variable_is_watched_in_native_kernels(monkeypatch):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.out = nn.Linear(2, 4), nn.Linear(4, 2)

        def forward(self, x):
            x = self.layer(x)
            return self.out(x.relu() if BEND else x.tanh())

    meta, tasks = fm.MAML(Branching().double(), loss="mse", engine="resident"), regression_tasks()
    for bend in (True, False, True):
        monkeypatch.setattr(sys.modules[__name__], "BEND", bend)
        loss = meta(tasks).loss
        with fm.use_backend("reference"):
            torch.testing.assert_close(loss, meta(tasks).loss)


def test_a_module_of_pytorch_s_own_has_no_surroundings():
    layers = nn.Sequential(nn.Linear(2, 2), nn.TransformerEncoderLayer(2, 1))
    assert not Surroundings(layers).seen
    assert not Surroundings(fm.models.conv4(5, image_size=16)).seen
    assert Surroundings(nn.Sequential(*(nn.Linear(2, 2) for _ in range(500)))).unwatched is None
