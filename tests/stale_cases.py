"""Cases of a state, of what reads it in a forward, and of what changes it."""

import abc
import argparse
import array
import contextvars
import dataclasses
import enum
import functools
import itertools
import math
import operator
import os
import threading
import time
import types
import weakref
from collections import ChainMap, Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import fastmeta as fm

STATE = None  # of the case that runs


class Bent(nn.Module):
    def __init__(self, bend):
        super().__init__()
        self.layer, self.out, self.bend = nn.Linear(3, 4), nn.Linear(4, 2), bend

    def forward(self, x):
        return self.out(self.bend(self.layer(x)))


def namespace(**attributes):
    return types.SimpleNamespace(**attributes)


def set_to(name, value):
    return lambda state: setattr(state, name, value)


def item_to(key, value):
    return lambda state: operator.setitem(state, key, value)


def encoder():
    return nn.Linear(4, 4).requires_grad_(False)


def hook(module):
    module.register_forward_hook(lambda layer, given, made: 2 * made)


# ---- modules that are no parts -------------------------------------------------------------------


class Wave(nn.Module):
    def __init__(self):
        super().__init__()
        self.frequencies = [2.0]

    def forward(self, x):
        return torch.sin(self.frequencies[0] * x)


MODULES = {
    "a module": (nn.Softplus, lambda x: STATE(x), set_to("beta", 3.0)),
    "a hook": (nn.Tanh, lambda x: STATE(x), hook),
    "one of one's own": (Wave, lambda x: STATE(x), lambda wave: wave.frequencies.insert(0, 0.5)),
    "what one holds": (Wave, lambda x: STATE(x), lambda wave: item_to(0, 0.5)(wave.frequencies)),
    "one that an object holds": (
        lambda: namespace(act=nn.ELU()), lambda x: STATE.act(x),
        lambda s: set_to("alpha", 3.0)(s.act),
    ),
    "one instead of another": (
        lambda: namespace(act=nn.ELU()), lambda x: STATE.act(x), set_to("act", nn.Tanh()),
    ),
    "one in another": (
        lambda: nn.Sequential(nn.LeakyReLU()), lambda x: STATE(x),
        lambda s: set_to("negative_slope", 0.9)(s[0]),
    ),
    "another one in it": (
        lambda: nn.Sequential(nn.ReLU()), lambda x: STATE(x), item_to(0, nn.Tanh()),
    ),
    "one more in it": (
        lambda: nn.Sequential(nn.ReLU()), lambda x: STATE(x), lambda s: s.append(nn.Tanh()),
    ),
    "an encoder": (encoder, lambda x: STATE(x), lambda s: s.weight.data.mul_(-2)),
    "an encoder in a list": (lambda: [encoder()], lambda x: STATE[0](x), item_to(0, encoder())),
    "a setting of an encoder": (
        lambda: nn.BatchNorm1d(4).eval(), lambda x: STATE.eps * x, set_to("eps", 3.0),
    ),
}  # fmt: skip

# ---- containers and arrays -----------------------------------------------------------------------


class Attributes(dict):
    __getattr__, __setattr__ = dict.__getitem__, dict.__setitem__


class Listed(list):
    scale = 2.0


Pair = namedtuple("Pair", "first second")


def listed():
    return Listed([2.0])


def at_zero(x):
    return float(STATE[0]) * x.tanh()


def at_a(x):
    return STATE["a"] * x.tanh()


CONTAINERS = {
    "an ordered dict": (lambda: OrderedDict(a=2.0), at_a, item_to("a", 0.5)),
    "its order": (
        lambda: OrderedDict(a=2.0, b=1.0), lambda x: [*STATE.values()][0] * x.tanh(),
        lambda s: s.move_to_end("a"),
    ),
    "a default dict": (lambda: defaultdict(int, a=2.0), at_a, item_to("a", 0.5)),
    "a default": (
        lambda: defaultdict(int), lambda x: STATE.default_factory() + x.tanh(),
        set_to("default_factory", lambda: 2.0),
    ),
    "a chain": (lambda: ChainMap({}, {"a": 2.0}), at_a, item_to("a", 0.5)),
    "a counter": (lambda: Counter(a=2), at_a, item_to("a", 5)),
    "a user's dict": (lambda: UserDict(a=2.0), at_a, item_to("a", 0.5)),
    "a dict of attributes": (
        lambda: Attributes(a=2.0), lambda x: STATE.a * x.tanh(), set_to("a", 0.5),
    ),
    "a list's attribute": (listed, lambda x: STATE.scale * x.tanh(), set_to("scale", 0.5)),
    "a list of one's own": (listed, at_zero, item_to(0, 0.5)),
    "a deque": (lambda: deque([2.0]), at_zero, lambda s: s.appendleft(0.5)),
    "a list in a pair": (
        lambda: Pair([2.0], 1.0), lambda x: STATE.first[0] * x.tanh(),
        lambda s: item_to(0, 0.5)(s.first),
    ),
    "a proxy": (
        lambda: namespace(own=(own := {"a": 2.0}), seen=types.MappingProxyType(own)),
        lambda x: STATE.seen["a"] * x.tanh(), lambda s: item_to("a", 0.5)(s.own),
    ),
    "an array": (lambda: np.array([2.0]), at_zero, item_to(0, 0.5)),
    "a large array": (lambda: np.full(10**5, 2.0), at_zero, item_to(0, 0.5)),
    "an array of Python's": (lambda: array.array("d", [2.0]), at_zero, item_to(0, 0.5)),
    "bytes": (lambda: bytearray([2]), at_zero, item_to(0, 5)),
    "values of a dict": (
        lambda: namespace(own=(own := {"a": 2.0}), seen=own.values()),
        lambda x: [*STATE.seen][0] * x.tanh(), lambda s: item_to("a", 0.5)(s.own),
    ),
    "an object in a list": (
        lambda: [namespace(a=2.0)], lambda x: STATE[0].a * x.tanh(),
        lambda s: set_to("a", 0.5)(s[0]),
    ),
    "a deque in a dict in a list": (
        lambda: [{"a": deque([2.0])}], lambda x: STATE[0]["a"][-1] * x.tanh(),
        lambda s: s[0]["a"].append(0.5),
    ),
    "a truth for a number": (
        lambda: {1}, lambda x: x.tanh() if True in {type(n) is bool for n in STATE} else x.sin(),
        lambda s: (s.clear(), s.add(True)),
    ),
    "another sign of zero": (
        lambda: [0.0], lambda x: math.copysign(2.0, STATE[0]) * x.tanh(), item_to(0, -0.0),
    ),
    "a tensor's memory": (
        lambda: torch.tensor([2.0]), lambda x: STATE.tolist()[0] * x.tanh(),
        lambda s: s.numpy().fill(0.5),
    ),
    "a tensor's data": (
        lambda: [torch.tensor(2.0)], lambda x: STATE[0].item() * x.tanh(),
        lambda s: s[0].data.fill_(0.5),
    ),
    "the data of a large tensor": (
        lambda: torch.full((5000,), 2.0), lambda x: STATE[0].item() * x.tanh(),
        lambda s: s.data.fill_(0.5),
    ),
}  # fmt: skip

# ---- objects -------------------------------------------------------------------------------------


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self):
        self.a = 2.0


class Given:
    def __init__(self):
        self.value = 2.0

    def __get__(self, owner, kind=None):
        return self.value


class Kind(type):
    rate = 2.0

    @property
    def doubled(cls):
        return 2 * cls.rate


class Operators:
    def __init__(self):
        self.values = [2.0]

    def __mul__(self, x):
        return self.values[0] * x

    def __bool__(self):
        return self.values[0] > 1

    def __enter__(self):
        return self.values[0]

    def __exit__(self, *error):
        return None


class Lazy:
    def __init__(self):
        self.own = {"a": 2.0}

    def __getattr__(self, name):
        return self.own[name]


class Once:
    @functools.cached_property
    def a(self):
        return 2.0


class Local(threading.local):
    a = 2.0


@dataclasses.dataclass
class Options:
    a: float = 2.0
    inner: object = None


class Listing(enum.Enum):
    FIRST = "tanh"
    SECOND = "sin"


def of_a(x):
    return STATE.a * x.tanh()


def with_a_context(x):
    with STATE as scale:
        return scale * x.tanh()


def texts():
    return namespace(rate_1=2.0)


def or_two(x):
    try:
        return STATE.a * x.tanh()
    except AttributeError:
        return 2 * x.tanh()


def of_another(x):
    return STATE.b * x.tanh()


OBJECTS = {
    "a slot": (Slotted, of_a, set_to("a", 0.5)),
    "an empty slot": (Slotted, lambda x: getattr(STATE, "b", 2.0) * x.tanh(), set_to("b", 0.5)),
    "a descriptor": (
        lambda: type("Has", (), {"a": Given()}), of_a, lambda s: set_to("value", 0.5)(vars(s)["a"]),
    ),
    "a class of a class": (
        lambda: Kind("Has", (), {}), lambda x: STATE.doubled * x.tanh(),
        lambda s: set_to("rate", 0.5)(s),
    ),
    "an operator": (Operators, lambda x: STATE * x.tanh(), lambda s: item_to(0, 0.5)(s.values)),
    "a truth": (
        Operators, lambda x: x.tanh() if STATE else x.sin(), lambda s: item_to(0, 0.5)(s.values),
    ),
    "a context": (Operators, with_a_context, lambda s: item_to(0, 0.5)(s.values)),
    "what an object makes up": (Lazy, of_a, lambda s: item_to("a", 0.5)(s.own)),
    "what is computed once": (Once, of_a, set_to("a", 0.5)),
    "another class": (
        lambda: type("Has", (), {"a": 2.0})(), of_a,
        set_to("__class__", type("Is", (), {"a": 0.5})),
    ),
    "another dict of attributes": (Options, of_a, set_to("__dict__", {"a": 0.5})),
    "a variable of a context": (
        lambda: contextvars.ContextVar("rate", default=2.0), lambda x: STATE.get() * x.tanh(),
        lambda s: s.set(0.5),
    ),
    "a thread's": (Local, of_a, set_to("a", 0.5)),
    "a weak reference": (
        lambda: namespace(own=(own := Options()), seen=weakref.ref(own)),
        lambda x: STATE.seen().a * x.tanh(), lambda s: set_to("a", 0.5)(s.own),
    ),
    "an iterator": (
        lambda: itertools.chain([2.0] * 200, itertools.repeat(0.5)),
        lambda x: next(STATE) * x.tanh(), lambda s: [next(s) for _ in range(200)],
    ),
    "an optimizer": (
        lambda: torch.optim.SGD([torch.ones(1)], lr=2.0),
        lambda x: STATE.param_groups[0]["lr"] * x.tanh(),
        lambda s: s.param_groups[0].update(lr=0.5),
    ),
    "a method of a dict": (
        lambda: namespace(own=(own := {"a": 2.0}), get=own.get),
        lambda x: STATE.get("a") * x.tanh(), lambda s: item_to("a", 0.5)(s.own),
    ),
    "a name made up": (
        texts, lambda x: getattr(STATE, f"rate_{1}") * x.tanh(), set_to("rate_1", 0.5),
    ),
    "all attributes": (texts, lambda x: vars(STATE)["rate_1"] * x.tanh(), set_to("rate_1", 0.5)),
    "one that was not there": (
        texts, lambda x: (STATE.rate if hasattr(STATE, "rate") else 2.0) * x.tanh(),
        set_to("rate", 0.5),
    ),
    "one that a class did not have": (
        lambda: type("Has", (), {}), lambda x: getattr(STATE, "a", 2.0) * x.tanh(),
        set_to("a", 0.5),
    ),
    "one that a module did not have": (
        lambda: types.ModuleType("settings"), or_two, set_to("a", 0.5),
    ),
    "two functions' attributes": (
        lambda: namespace(a=2.0, b=2.0), lambda x: of_a(x) + of_another(x), set_to("b", 0.5),
    ),
    "deep attributes": (
        lambda: namespace(a=namespace(a=namespace(a=namespace(a=namespace(a=2.0))))),
        lambda x: STATE.a.a.a.a.a * x.tanh(), lambda s: set_to("a", 0.5)(s.a.a.a.a),
    ),
    "an option": (
        lambda: argparse.Namespace(a=argparse.Namespace(a=2.0)), lambda x: STATE.a.a * x.tanh(),
        lambda s: set_to("a", 0.5)(s.a),
    ),
    "a dataclass": (
        lambda: Options(inner=Options()), lambda x: STATE.inner.a * x.tanh(),
        lambda s: set_to("a", 0.5)(s.inner),
    ),
    "a choice": (
        lambda: namespace(kind=Listing.FIRST), lambda x: getattr(torch, STATE.kind.value)(x),
        set_to("kind", Listing.SECOND),
    ),
    "a list of a choice": (
        lambda: enum.Enum("Listing", {"FIRST": [2.0]}), lambda x: STATE.FIRST.value[0] * x.tanh(),
        lambda s: item_to(0, 0.5)(s.FIRST.value),
    ),
    "a class with a class of its own": (
        lambda: abc.ABCMeta("Has", (), {"a": 2.0, "__module__": __name__}), of_a,
        set_to("a", 0.5),
    ),
    "a partial's": (
        lambda: functools.partial(F.leaky_relu, negative_slope=0.1), lambda x: STATE(x),
        lambda s: s.keywords.update(negative_slope=0.9),
    ),
}  # fmt: skip

# ---- what is asked for by name, and of PyTorch ---------------------------------------------------


def of_globals(x):
    return globals()["STATE"].a * x.tanh()


def of_the_environment(x):
    return float(os.environ["FASTMETA_TEST_RATE"]) * x.tanh()


def of_a_file(x):
    with open(STATE) as file:
        return float(file.read()) * x.tanh()


def of_the_clock(x):
    return (2.0 if time.time() < STATE.until else 0.5) * x.tanh()


def of_the_dtype(x):
    return (2.0 if torch.get_default_dtype() is torch.float32 else 0.5) * x.tanh()


OUTSIDE = {
    "globals": (Options, of_globals, set_to("a", 0.5)),
    "a getter": (
        lambda: (operator.attrgetter("rate_1"), texts()), lambda x: STATE[0](STATE[1]) * x.tanh(),
        lambda s: set_to("rate_1", 0.5)(s[1]),
    ),
    "the environment": (
        lambda: os.environ, of_the_environment, item_to("FASTMETA_TEST_RATE", "0.5"),
    ),
    "a file": (lambda: "rate", of_a_file, lambda s: write(s, "0.5")),
    "the clock": (lambda: namespace(until=math.inf), of_the_clock, set_to("until", 0)),
    "the default dtype": (
        lambda: None, of_the_dtype, lambda s: torch.set_default_dtype(torch.float64),
    ),
    "the number of threads": (
        lambda: torch.get_num_threads(), lambda x: torch.get_num_threads() * x.tanh(),
        lambda threads: torch.set_num_threads(threads + 1),
    ),
    "another name for it": (
        lambda: torch.get_num_threads, lambda x: STATE() * x.tanh(),
        lambda threads: torch.set_num_threads(threads() + 1),
    ),
    "a flag": (
        lambda: torch.backends.cudnn, lambda x: (2.0 if STATE.benchmark else 0.5) * x.tanh(),
        lambda s: set_to("benchmark", not s.benchmark)(s),
    ),
}  # fmt: skip


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


CASES = MODULES | CONTAINERS | OBJECTS | OUTSIDE


def tasks_of(samples=7):
    return fm.TaskBatch(*(torch.randn(3, samples, n) for n in (3, 2, 3, 2)))


def assert_as_the_reference(meta, tasks):
    ours = meta(tasks).loss
    with fm.use_backend("reference"):
        torch.testing.assert_close(ours, meta(tasks).loss, rtol=1e-4, atol=1e-5)
    return ours
