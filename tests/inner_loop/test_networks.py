"""As what the native kernels run a module that they could run as more than one thing."""

import pytest
import torch
from oracle import assert_exact, classification_tasks
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop.arithmetic.written import Written
from fastmeta.inner_loop.engines.networks import native_network
from fastmeta.inner_loop.loop import InnerLoop
from fastmeta.inner_loop.reading.chain import Chain
from fastmeta.inner_loop.reading.stages import Stages, stages_of

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")


class Skips(nn.Module):
    def __init__(self, width, scale):
        super().__init__()
        self.first, self.second = nn.Linear(5, width), nn.Linear(width, width)
        self.head, self.scale = nn.Linear(width, 3), scale

    def forward(self, x):
        h = self.first(x)
        return self.head(h + self.scale(torch.tanh(self.second(h))))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.norm, self.head = nn.Linear(16, 7), nn.LayerNorm(7), nn.Linear(7, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.hidden((x / 2 - 0.5).flatten(1)))))


def normalised(norm):
    return nn.Sequential(nn.Linear(5, 8), norm, nn.GELU(), nn.Linear(8, 3))


def convolutional(norm):
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), norm, nn.ReLU(), nn.Flatten(),
                         nn.Linear(48, 8), nn.LayerNorm(8), nn.Linear(8, 3))  # fmt: skip


def same(x):
    return x


ROW, IMAGE = (5,), (1, 4, 4)
ROWS = {
    "sums": (ROW, lambda: Skips(7, same)),
    "sums with numbers": (ROW, lambda: Skips(7, lambda x: 0.5 * x)),
    "layer norm": (ROW, lambda: normalised(nn.LayerNorm(8))),
    "layer norm without parameters": (ROW, lambda: normalised(nn.LayerNorm(8, 1e-3, False))),
    "group norm": (ROW, lambda: normalised(nn.GroupNorm(2, 8))),
    "flattened images": (IMAGE, Scaled),
}
LAYERS = {
    "batch norm": (ROW, lambda: normalised(nn.BatchNorm1d(8, track_running_stats=False))),
    "convolution": (IMAGE, lambda: convolutional(nn.GroupNorm(3, 3))),
}


def network_of(model, sample, steps):
    loop = InnerLoop(model, "cross_entropy", steps, 2, tuple(dict(model.named_parameters())))
    return native_network(loop, torch.Size(sample))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", ROWS)
def test_without_pixels_it_is_arithmetic_on_rows(name, steps):
    sample, build = ROWS[name]
    model = build().double()
    assert isinstance(stages_of(model, sample), Stages)
    assert isinstance(network_of(model, sample, steps), Written)
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=steps, engine="resident")
    assert_exact(meta, classification_tasks(sample, t=3, s=4))


@pytest.mark.parametrize("name", LAYERS)
def test_what_rows_do_not_suit_stays_layers(name):
    sample, build = LAYERS[name]
    model = build().double()
    assert isinstance(network_of(model, sample, 2), Stages)
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2, engine="resident")
    assert_exact(meta, classification_tasks(sample, t=3, s=4))


def test_one_step_in_wide_layers_stays_layers():
    model = Skips(100, same)
    assert isinstance(network_of(model, ROW, 1), Stages)
    assert isinstance(network_of(model, ROW, 2), Written)


def test_a_chain_stays_a_chain():
    chain = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    assert isinstance(network_of(chain, ROW, 2), Chain)


def test_what_is_no_arithmetic_on_rows_stays_layers(monkeypatch):
    from fastmeta.inner_loop.engines import networks

    monkeypatch.setattr(networks, "miscomputed", lambda *_: "it makes something else")
    assert isinstance(network_of(Skips(7, same), ROW, 2), Stages)
