"""A backward that computes steps again does so with the attributes that the forward had."""

import pytest
import torch
import torch.nn.functional as F
from oracle import DOUBLE, regression_tasks
from torch import nn

import fastmeta as fm
from fastmeta.inner_loop import recursion

ENGINES = ["layered", "vmap"]


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.lower, self.upper = nn.Linear(2, 6), nn.Linear(6, 2)
        self.act, self.turns, self.scale = nn.Tanh(), torch.sin, 2.0
        self.factors, self.names = [1.5], {"power": 2}
        self.constant = 0.1
        self.more = nn.ModuleList([nn.Softplus(), nn.Sigmoid()])
        self.kinds = nn.ModuleDict({"tanh": nn.Tanh(), "elu": nn.ELU()})

    def forward(self, x):
        h = self.turns(self.lower(x)) * self.scale + getattr(self, "shift", 0.0)
        for layer in (*self.more, *self.kinds.values()):
            h = layer(h)
        h = (h * self.factors[0] + self.constant) ** self.names["power"]
        return self.upper(self.act(h))


class Penalty(nn.Module):
    weight = 1.0

    def forward(self, predictions, targets):
        return self.weight * F.mse_loss(predictions, targets)


def scale(meta):
    meta.model.scale = 5.0


def swap(meta):
    meta.model.act = nn.ReLU()


def turn(meta):
    meta.model.turns = torch.exp


def hide_forward(meta):
    meta.model.lower.forward = torch.neg


def weigh(meta):
    meta.loss.weight = 3.0


def add_hook(meta):
    meta.model.act.register_forward_hook(lambda module, args, out: 2 * out)


def add_buffer(meta):
    meta.model.register_buffer("shift", torch.ones(6, dtype=DOUBLE))


def change_list(meta):
    meta.model.factors[0] = 3.0


def change_dict(meta):
    meta.model.names["power"] = 4


def another_tensor(meta):
    meta.model.constant = 5 * meta.model.constant


def drop_a_part(meta):
    del meta.model.more[0]


def another_order(meta):
    meta.model.kinds["tanh"] = meta.model.kinds.pop("tanh")


CHANGES = [
    scale, swap, turn, hide_forward, weigh, add_hook, add_buffer, change_list, change_dict,
    another_tensor, drop_a_part, another_order,
]  # fmt: skip


def gradient(meta, change):
    tasks = regression_tasks()
    loss = meta(tasks).loss.mean()
    change(meta)
    left = plain(meta.model)
    loss.backward()
    assert plain(meta.model) == left
    return torch.cat([p.grad.flatten() for p in meta.model.parameters()])


def plain(model):
    return {name: value for name, value in vars(model).items() if type(value) is not dict}


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(recursion, "steps_to_keep", lambda *_: 0)


def scaled(engine):
    torch.manual_seed(2)
    model = Scaled().double()
    if engine == "vmap":  # which alone knows what to do with it
        model.constant = torch.tensor(0.1, dtype=DOUBLE)
    return fm.MAML(model, inner_lr=0.1, inner_steps=2, engine=engine, loss=Penalty())


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("engine", ENGINES)
def test_what_changes_after_the_forward_does_not_count(engine, change):
    wanted = gradient(scaled(engine), lambda _: None)
    assert torch.equal(gradient(scaled(engine), change), wanted)


def test_dropout_draws_the_same_after_eval():
    def of(change):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(2, 32), nn.Dropout(0.5), nn.Linear(32, 2)).double()
        meta = fm.MAML(model, inner_lr=0.1, engine="vmap", loss="mse", randomness="different")
        torch.manual_seed(4)
        return gradient(meta, change)

    assert torch.equal(of(lambda meta: None), of(lambda meta: meta.model.eval()))


class Alternating(Scaled):
    """Of which each step's forward differs from that before."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1 + self.calls % 3)


def test_a_counter_is_what_it_was_in_each_step(monkeypatch):
    def of(kept):
        monkeypatch.setattr(recursion, "steps_to_keep", lambda *_: kept)
        torch.manual_seed(2)
        model = Alternating().double()
        meta = fm.MAML(model, inner_lr=0.1, inner_steps=3, engine="vmap", loss="mse")
        meta(regression_tasks())  # looks at the model besides
        model.calls = 0
        return gradient(meta, lambda meta: None)

    torch.testing.assert_close(of(kept=0), of(kept=3))


class Failing(Scaled):
    fails = False

    def forward(self, x):
        if Failing.fails:
            raise ValueError(f"scale is {self.scale}")
        return super().forward(x)


def test_attributes_are_left_as_they_are_where_a_backward_fails(monkeypatch):
    meta = fm.MAML(Failing().double(), inner_lr=0.1, engine="vmap", loss="mse")
    loss = meta(regression_tasks()).loss.mean()
    meta.model.scale = 5.0
    monkeypatch.setattr(Failing, "fails", True)
    with pytest.raises(ValueError, match=r"scale is 2\.0"):
        loss.backward()
    assert meta.model.scale == 5.0


def append(meta):
    meta.model.more.extend(nn.Tanh() for _ in range(12))


def note(meta):
    meta.model.note = [1, 2]


def to_tensor(meta):
    meta.model.scale = torch.full((70, 70), 2.0)


@pytest.mark.parametrize("change", [append, another_order, drop_a_part, note, to_tensor])
def test_what_is_there_after_a_backward_is_what_was_before(change):
    meta = scaled("vmap")
    meta.model.note = None
    loss = meta(regression_tasks()).loss.mean()
    change(meta)
    parts = [(name, id(part)) for name, part in meta.model.named_modules()]
    own = [(name, id(value)) for name, value in vars(meta.model).items()]
    loss.backward()
    assert [(name, id(part)) for name, part in meta.model.named_modules()] == parts
    assert [(name, id(value)) for name, value in vars(meta.model).items()] == own
