"""Arithmetic with numbers, between the layers that the native kernels have."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_exact, classification_tasks
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop.reading.chain import chain_of
from fastmeta.inner_loop.reading.stages import stages_of

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")


class Images(nn.Module):
    def __init__(self, of_input, of_features, of_outputs):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.head = nn.Conv2d(4, 6, 3, padding=1), nn.Linear(24, 3)
        self.told = of_input, of_features, of_outputs

    def forward(self, x):
        of_input, of_features, of_outputs = self.told
        h = F.max_pool2d(F.relu(self.norm(self.first(of_input(x)))), 2)
        h = F.max_pool2d(torch.tanh(of_features(self.second(h))), 2)
        return of_outputs(self.head(h.flatten(1)))


class Rows(nn.Module):
    def __init__(self, of_input, of_features, of_outputs):
        super().__init__()
        self.first, self.head = nn.Linear(5, 7), nn.Linear(7, 3)
        self.told = of_input, of_features, of_outputs

    def forward(self, x):
        of_input, of_features, of_outputs = self.told
        return of_outputs(self.head(torch.tanh(of_features(self.first(of_input(x))))))


SAMPLES = {Images: (1, 8, 8), Rows: (5,)}
SPELLINGS = {
    "x / n": lambda x: x / 2.5,
    "n * x": lambda x: 3 * x,
    "x * n": lambda x: x * -0.5,
    "x + n": lambda x: x + 0.5,
    "n + x": lambda x: 1 + x,
    "x - n": lambda x: x - 0.25,
    "n - x": lambda x: 1 - x,
    "-x": lambda x: -x,
    "normalised": lambda x: (x - 0.1307) / 0.3081,
    "torch": lambda x: torch.mul(torch.sub(x, 0.5), 2),
    "torch, longer": lambda x: torch.true_divide(torch.rsub(x, 1), 0.5),
    "methods": lambda x: x.sub(0.5).div(0.5).add(1).mul(2).neg(),
    "in place": lambda x: (x + 0).mul_(2).sub_(0.3).add_(1).div_(3),
    "twice": lambda x: 0.5 * x + (1 - x),
}


def same(x):
    return x


def assert_native(model, order=2, known=True):
    sample = SAMPLES[type(model)]
    read = chain_of(model) if len(sample) == 1 else stages_of(model, sample)
    assert isinstance(read, str) is not known, read
    meta = fm.MAML(model.double(), inner_lr=0.1, inner_steps=2, order=order)
    tasks = classification_tasks(sample, t=3, s=4)
    assert fm.explain(meta, tasks).name == "resident"  # what is misread is left to others
    assert_exact(meta, tasks, tolerance=1e-9)
    return read


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("kind", [Images, Rows])
def test_spellings(kind, spelling, place):
    told = [same] * 3
    told[place] = SPELLINGS[spelling]
    assert_native(kind(*told), known=kind is Images or spelling != "twice")


@pytest.mark.parametrize("kind", [Images, Rows])
def test_first_order(kind):
    everywhere = SPELLINGS["normalised"]
    assert_native(kind(everywhere, everywhere, everywhere), order=1)


def test_numbers_one_after_another_are_one_activation():
    stages = assert_native(Images(SPELLINGS["methods"], same, SPELLINGS["normalised"])).stages
    assert len(stages) == 4
    chain = assert_native(Rows(same, same, SPELLINGS["methods"]))
    assert [node[0] for node in chain.nodes] == ["linear", "activation", "linear", "activation"]
    assert chain.nodes[-1][2:4] == pytest.approx((-4, 0))


@pytest.mark.parametrize(
    "told",
    [
        lambda x: 2 / (x + 30),
        lambda x: x**2,
        lambda x: x * float("nan"),
        lambda x: x + torch.ones(()),
        lambda x: x + True,
        lambda x: torch.add(x, 1, alpha=2),
    ],
    ids=["below", "a power", "NaN", "a tensor", "a truth", "alpha"],
)
def test_what_is_no_such_arithmetic(told):
    assert isinstance(stages_of(Images(same, told, same), (1, 8, 8)), str)


def test_in_place_on_the_input_is_left_to_others():
    assert "changes its input in place" in stages_of(
        Images(lambda x: x.mul_(2), same, same), (1, 8, 8)
    )


def test_a_sine_of_a_multiple_is_one_layer():
    stages = assert_native(Images(same, lambda x: torch.sin(3 * x), same)).stages
    assert ("sine", 3.0, 0.0) in [stage["activation"] for stage in stages]
    stages = assert_native(Images(same, lambda x: torch.sin(3 * x + 1), same)).stages
    assert ("affine", 3.0, 1.0) in [stage["activation"] for stage in stages]


@settings(max_examples=10, deadline=None)
@given(
    scale=st.floats(0.2, 3) | st.floats(-3, -0.2), shift=st.floats(-3, 3),
    kind=st.sampled_from([Images, Rows]), place=st.integers(0, 2),
)  # fmt: skip
def test_any_numbers(scale, shift, kind, place):
    told = [same] * 3
    told[place] = lambda x: scale * x + shift
    assert_native(kind(*told))


class Scaled(nn.Module):
    """Arithmetic with one number."""

    def __init__(self, kind, number, of_features):
        super().__init__()
        self.net, self.number = kind(self.scaled, self.told, same), number
        self.of_features = of_features

    def scaled(self, x):
        return (self.number - x) / self.number + self.number * x

    def told(self, h):
        return self.of_features(h, self.number)

    def forward(self, x):
        return self.net(x)


def normed(h, n):
    return F.batch_norm(h, None, None, training=True, eps=n)


OF_FEATURES = {
    "scaled": lambda h, n: h.add(n).mul(n),
    "leaky": lambda h, n: F.leaky_relu(h, n),
    "clamped": lambda h, n: h.clamp(-n, 1).clamp(max=n),
    "normed": normed,
}


@pytest.mark.parametrize("engine", ["auto", "layered"])
@pytest.mark.parametrize("kind", [Images, Rows])
@pytest.mark.parametrize("of_features", OF_FEATURES)
def test_numbers_of_numpy_are_numbers(of_features, kind, engine):
    tasks = classification_tasks(SAMPLES[kind], t=3, s=4)
    model = Scaled(kind, 0.5, OF_FEATURES[of_features]).double()
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2, engine=engine)
    expected = fm.explain(meta, tasks).name
    for number in (np.float64(0.5), np.float32(0.25), np.int64(2)):
        model.number = number.item()
        plain = meta(tasks).loss
        model.number = number
        torch.testing.assert_close(meta(tasks).loss, plain, rtol=0, atol=0)
        assert_exact(meta, tasks, tolerance=1e-9)
        fresh = fm.MAML(model, inner_lr=0.1, inner_steps=2, engine=engine)
        torch.testing.assert_close(fresh(tasks).loss, plain, rtol=0, atol=0)
        if not (of_features == "normed" and isinstance(number, np.integer)):
            assert fm.explain(fresh, tasks).name == expected
