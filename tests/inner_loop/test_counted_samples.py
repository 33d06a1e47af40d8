"""A forward that counts its samples where no Python sees it is compared for each number of them."""

import math
import operator

import numpy as np
import pytest
from stale_cases import Bent, assert_as_the_reference, tasks_of

import fastmeta as fm
from fastmeta.inner_loop.engines import networks

TABLE = [1.0] * 7 + [2.0] + [1.0] * 2000

COUNTS = {
    "an index": lambda n: TABLE[n],
    "a text of C's": lambda n: {"7": 2.0}.get("%d" % n, 1.0),  # noqa: UP031
    "a logarithm": lambda n: 2.0 if math.isclose(math.log(n), math.log(7)) else 1.0,
    "a divisor": lambda n: 2.0 if math.gcd(n, 7) == 7 else 1.0,
    "bits": lambda n: 2.0 if bin(n) == "0b111" else 1.0,
    "a range": lambda n: 2.0 if len(range(n)) == 7 else 1.0,
    "an array": lambda n: 2.0 if np.zeros(n).size == 7 else 1.0,
    "itself": lambda n: 2.0 if operator.index(n) == 7 else 1.0,
    "a type": lambda n: 2.0 if isinstance(n, int) and n == 7 else 1.0,
    "its type": lambda n: 2.0 if type(n) is int and n == 7 else 1.0,
}


@pytest.mark.parametrize("counts", [(7, 5), (5, 7)])
@pytest.mark.parametrize("call", ["forward", "adapt"])
@pytest.mark.parametrize("name", COUNTS)
def test_samples_that_are_counted(name, call, counts):
    count = COUNTS[name]
    meta = fm.MAML(Bent(lambda x: count(x.shape[0]) * x.tanh()), loss="mse", inner_lr=0.1)
    for samples in counts:
        tasks = tasks_of(samples)
        if call == "forward":
            assert_as_the_reference(meta, tasks)
            continue
        ours = meta.adapt(tasks.support_x, tasks.support_y)(tasks.query_x)
        with fm.use_backend("reference"):
            right = meta.adapt(tasks.support_x, tasks.support_y)(tasks.query_x)
        assert np.allclose(ours.detach(), right.detach(), 1e-4, 1e-5)


def test_samples_that_choose_a_layer():
    def bend(x):
        return x.relu() if isinstance(x.shape[0], int) and x.shape[0] == 7 else x.tanh()

    meta = fm.MAML(Bent(bend), loss="mse", inner_lr=0.1)
    for samples in (5, 7):
        assert_as_the_reference(meta, tasks_of(samples))


def test_others_are_looked_at_once(monkeypatch):
    looked = []
    monkeypatch.setattr(networks, "miscounted", lambda *of: looked.append(of[-1]))
    meta = fm.MAML(Bent(lambda x: x * x.sigmoid()), loss="mse", inner_lr=0.1)
    for samples in (7, 7, 5, 7):
        meta(tasks_of(samples))
    assert looked == [7, 5]
    assert fm.explain(meta, tasks_of()).name == "resident"
