"""Objects, methods, containers and modules that losses read: what is in them is watched."""

import argparse
import collections
import dataclasses
import enum
import functools
import itertools
import math
import types
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal, kl_divergence

from fastmeta.functional.loss_programs import Unreadable, read_loss, values_read
from fastmeta.functional.loss_programs.values import unknown_value


class Weighted:
    power = 2

    def __init__(self, weight=1.0):
        self.weight = weight
        self.net = nn.Linear(2, 2)  # which it does not read

    def __call__(self, p, y):
        return self.weight * self.distance(p, y).mean()

    def distance(self, p, y):
        return (p - y) ** self.power * self.scale

    @property
    def scale(self):
        return self.weight * 2

    @staticmethod
    def plain(p, y):
        return (p - y).abs().mean()


class Module(nn.Module):
    def __init__(self, alpha=1.0):
        super().__init__()
        self.alpha, self._beta = alpha, 0.5
        self.register_buffer("weights", torch.ones(3))
        self.part = nn.SmoothL1Loss(beta=1.0)

    def forward(self, p, y):
        return self.alpha * self.part(self.weights * p, y) + self._beta * p.square().mean()


class Scaled(Module):
    def forward(self, p, y):
        return 2 * Module.forward(self, p, y)


def forward_of_another_kind(self, p, y):
    return self.alpha * (self.weights * p - y).abs().mean()


@dataclasses.dataclass
class Options:
    b: float = 1.0


@dataclasses.dataclass(frozen=True)
class Agent:
    options: Options

    def loss(self, p, y):
        return self.options.b * (p - y).abs().mean()


class Slotted:
    __slots__ = ("b",)

    def __init__(self):
        self.b = 1.0


class Pair(NamedTuple):
    a: float
    b: float


class Defaults:
    b = 1.0


class Adding:
    def __init__(self):
        self.weight = 1.0

    def __radd__(self, x):
        return x + self.weight


CFG = {"b": 1.0, "sizes": [1, 2]}
ARGS, SPACE = argparse.Namespace(b=1.0), types.SimpleNamespace(b=1.0)
OPTIONS, SLOTTED, PAIR, ADDING = Options(), Slotted(), Pair(1.0, 2.0), Adding()
PRIOR = Normal(torch.zeros(1), torch.ones(1))
OWN = types.ModuleType("own")
OWN.b = 1.0


def helped(p, y, by=None):
    return scale_of(by or OPTIONS) * (p - y).abs().mean()


def scale_of(options):
    return options.b


def set_item(key, value):
    return lambda: CFG.__setitem__(key, value)


weighted, module, agent = Weighted(), Module(), Agent(Options())
LOSSES = [
    (weighted, lambda: setattr(weighted, "weight", 2.0)),
    (weighted.__call__, lambda: setattr(weighted, "weight", 3.0)),
    (functools.partial(weighted), lambda: setattr(Weighted, "power", 4)),
    (weighted.distance, lambda: setattr(weighted, "power", 1)),
    (weighted.plain, lambda: setattr(weighted, "plain", 1) or setattr(F, "own", 1)),
    (agent.loss, lambda: setattr(agent.options, "b", 2.0)),
    (module, lambda: setattr(module, "alpha", 2.0)),
    (module, lambda: setattr(module, "_beta", 2.0)),
    (module, lambda: module.weights.data.fill_(2.0)),
    (module, lambda: setattr(module.part, "beta", 0.1)),
    (module, lambda: setattr(Module, "forward", forward_of_another_kind)),
    (lambda p, y: CFG["b"] * (p - y).abs().mean(), set_item("b", 2.0)),
    (lambda p, y: CFG.get("b") * (p - y).abs().mean(), lambda: CFG["sizes"].append(3)),
    (lambda p, y: ARGS.b * (p - y).abs().mean(), lambda: setattr(ARGS, "b", 2.0)),
    (lambda p, y: SPACE.b * (p - y).abs().mean(), lambda: setattr(SPACE, "b", 2.0)),
    (lambda p, y: OPTIONS.b * (p - y).abs().mean(), lambda: setattr(OPTIONS, "b", 2.0)),
    (helped, lambda: setattr(OPTIONS, "b", 3.0)),
    (functools.partial(helped, by=Options(5.0)), lambda: setattr(OPTIONS, "b", 4.0)),
    (lambda p, y: SLOTTED.b * (p - y).abs().mean(), lambda: setattr(SLOTTED, "b", 2.0)),
    (lambda p, y: PAIR.b * (p - y).abs().mean(), lambda: globals().update(PAIR=Pair(1.0, 3.0))),
    (lambda p, y: Defaults.b * (p - y).abs().mean(), lambda: setattr(Defaults, "b", 2.0)),
    (lambda p, y: OWN.b * (p - y).abs().mean(), lambda: setattr(OWN, "b", 2.0)),
    (lambda p, y: (p - y).abs().mean() + ADDING, lambda: setattr(ADDING, "weight", 2.0)),
    (lambda p, y: np.pi * (p - y).abs().mean() * np.log(2.0), lambda: setattr(np, "pi", 3.0)),
    (lambda p, y: kl_divergence(Normal(p, p.exp()), PRIOR).mean(), lambda: PRIOR.loc.fill_(1.0)),
    (nn.Sequential(nn.Identity()), lambda: None),
]


@pytest.mark.parametrize("index", range(len(LOSSES)))
def test_what_objects_hold_is_watched(index, monkeypatch):
    monkeypatch.setattr(np, "pi", math.pi)
    loss, change = LOSSES[index]
    before = values_read(loss)
    assert before is not None and before == values_read(loss)
    hash(before)
    if index in (4, 17, len(LOSSES) - 1):  # nothing that it reads changes
        return
    change()
    after = values_read(loss)
    assert after is not None and after != before
    assert after == values_read(loss)


def test_objects_are_read():
    p = torch.randn(4, 3)
    for loss, _ in LOSSES[:-1]:
        if loss != weighted.distance:  # which makes no total
            read_loss(loss, p, p)
    found = read_loss(Module(), p, p)
    assert found != read_loss(Scaled(), p, p)


class Counting:
    calls = 0

    def __call__(self, p, y):
        self.calls += 1
        return (p - y).abs().mean() * self.calls


class Finding:
    def __getattr__(self, name):
        return 2.0

    def __call__(self, p, y):
        return self.anything * (p - y).abs().mean()


class Named:
    def __call__(self, p, y):
        return self.__dict__["weight"] * (p - y).abs().mean()


class Learned(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, p, y):
        return self.scale * (p - y).abs().mean()


class Within:
    def __init__(self, what):
        self.what = what

    def __call__(self, p, y):
        return self.what and (p - y).abs().mean()


class Inheriting(dict):
    def __call__(self, p, y):
        return self["b"] * (p - y).abs().mean()


class Kind(enum.Enum):
    A = 1


class Keeping:
    def __init__(self):
        self.seen = []

    def __call__(self, p, y):
        self.seen.append(1)
        return (p - y).abs().mean()


class Generic(nn.CrossEntropyLoss):
    def forward(self, p, y):
        return super().forward(p, y)


class Parts(Module):
    def forward(self, p, y):
        return sum(part(p, y) for part in self.children())


HOOKED = Module()
HOOKED.register_forward_hook(lambda *args: None)
REPLACED = Module()
REPLACED.forward = lambda p, y: p.mean()


@pytest.mark.parametrize(
    "loss, words",
    [
        (Counting(), "sets the attribute calls"),
        (Finding(), "in a way of its own"),
        (Named(), "__dict__"),
        (Learned(), "Learned with parameters"),
        (Within(Learned()), "what, .*Learned with parameters"),
        (Within(torch.ones(65)), "what, a tensor"),
        (Within(Inheriting()), "Inheriting"),
        (Inheriting(b=1.0), "Inheriting"),
        (Within(Kind.A), "metaclass"),
        (Within(functools.lru_cache(abs)), "what"),
        (Within(itertools.count()), "what"),
        (Within(np.ones(3)), "what"),
        (Within({"a": [torch.Generator()]}), "what.*Generator"),
        (Within(list(range(100))), "more than 64"),
        (Within(collections.deque()), "deque"),
        (Within({1, 2}), "set"),
        (Keeping(), "reads a list, and may change one"),
        (Generic(), "super|Generic"),
        (Parts(), "asks a module for its children"),
        (HOOKED, "hooks"),
        (REPLACED, "hooks or a forward"),
        (lambda p, y: CFG.update(b=2.0) or (p - y).abs().mean(), "dict, and may change"),
        (lambda p, y: Options().b * (p - y).abs().mean(), "Options"),
        (lambda p, y: OWN.missing * (p - y).abs().mean(), "no missing"),
        (lambda p, y: np.random.rand() * (p - y).abs().mean(), "np"),
        (lambda p, y: vars(SPACE)["b"] * (p - y).abs().mean(), "vars"),
        (lambda p, y: (p - y).abs().mean() * torch.get_num_threads(), "asks PyTorch for get_num"),
        (lambda p, y: nothing_of_that_name * p.mean(), "nothing_of_that_name"),  # noqa: F821
    ],
)
def test_what_may_change_unseen_is_named(loss, words):
    assert values_read(loss) is None
    assert unknown_value(loss) is not None
    with pytest.raises(Unreadable, match=f"unseen: .*({words})"):
        read_loss(loss, torch.randn(4, 3), torch.randn(4, 3))
