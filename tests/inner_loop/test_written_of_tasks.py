"""Forwards that compute something of parameters alone, once for all samples of a task."""

import threading
import time

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_exact, regression_tasks
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.functional.forward import module_lock
from fastmeta.inner_loop.arithmetic.written import Written, written_of
from fastmeta.inner_loop.engines.networks import Buffers

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")

INPUTS, WIDTH, OUTPUTS = 3, 9, 2


class Told(nn.Module):
    def __init__(self, told):
        super().__init__()
        self.first, self.head = nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, OUTPUTS)
        self.w = nn.Parameter(torch.randn(WIDTH, WIDTH) / 3)
        self.a, self.b = (nn.Parameter(torch.randn(*n) / 2) for n in ((WIDTH, 2), (2, WIDTH)))
        self.z, self.row = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(WIDTH))
        self.makes = nn.Linear(4, WIDTH * WIDTH)
        self.register_buffer("mask", (torch.rand(WIDTH, WIDTH) > 0.4).double())
        self.told = told

    def forward(self, x):
        return self.head(torch.tanh(self.told(self, torch.tanh(self.first(x)))))


def made(module):
    return torch.tanh(module.makes(module.z)).view(WIDTH, WIDTH)


def of_places(module, h):
    """Three rows of each sample by one matrix, which is also transposed."""
    w = torch.sin(module.w)[:3, :3]
    return (h.view(-1, 3, 3) @ w + (h.view(-1, 3, 3) @ w.t()).cos()).flatten(1)


def attends(module, h):
    """Places of each sample to keys that are the task's."""
    keys, values = (module.w * 2)[:, :3], module.w[:, 3:6]
    return (F.softmax(h.view(-1, 3, 3) @ keys.t(), -1) @ values).flatten(1)


def from_left(module, h):
    return ((module.w * 0.5)[:3, :3] @ h.view(-1, 3, 3)).flatten(1)


def shared_by_many(module, h):
    w = torch.exp(-module.w.square())
    return F.linear(F.linear(h, w), w) + h * w.sum() + h @ (w + 1)


FORWARDS = {
    "scaled": lambda m, h: F.linear(h, m.w / 3),
    "with a bias": lambda m, h: F.linear(h, m.w / 3, m.row),
    "weight norm": lambda m, h: F.linear(h, m.row[:, None] * m.w / m.w.norm(dim=1, keepdim=True)),
    "softplus": lambda m, h: h @ F.softplus(m.w),
    "of low rank": lambda m, h: F.linear(h, m.w + m.a @ m.b),
    "masked": lambda m, h: F.linear(h, m.w * m.mask),
    "product": lambda m, h: F.linear(h, m.w @ m.w),
    "symmetric": lambda m, h: h @ (m.w + m.w.t()),
    "generated": lambda m, h: F.linear(h, made(m)),
    "generated and a row": lambda m, h: F.linear(h, made(m)) * torch.exp(m.row) + m.z.sum(),
    "a matrix and a row": lambda m, h: F.linear(h, m.w) + m.w.square().mean(),
    "parts": of_places,
    "attention": attends,
    "from the left": from_left,
    "shared": shared_by_many,
}


def mse(model, **options):
    return fm.MAML(model, loss="mse", inner_lr=0.1, inner_steps=2, **options)


@pytest.mark.parametrize("tasks", [1, 3, 21])  # samples in lanes, or tasks
@pytest.mark.parametrize("name", FORWARDS)
def test_what_a_task_computes_once(name, tasks):
    model = Told(FORWARDS[name]).double()
    assert isinstance(written_of(model, [INPUTS]), Written)
    for s, q, order in ((5, 19, 2), (17, 3, 2), (16, 8, 1)):
        batch = regression_tasks(tasks, s, q, INPUTS, OUTPUTS)
        meta = mse(model, order=order, engine="resident")
        assert_exact(meta, batch)


@pytest.mark.parametrize("tasks", [2, 21])
@pytest.mark.parametrize("name", ["weight norm", "of low rank", "generated and a row", "parts"])
def test_with_rates_and_frozen_parameters(name, tasks):
    model = Told(FORWARDS[name]).double()
    batch = regression_tasks(tasks, 5, 4, INPUTS, OUTPUTS)
    assert_exact(fm.MetaSGD(model, loss="mse", inner_lr=0.1, inner_steps=2), batch)
    adapting = mse(model, adapt_parameters=["w", "row"])
    assert_exact(adapting, batch)
    model.w.requires_grad_(False)
    model.z.requires_grad_(False)
    assert_exact(mse(model), batch)


@pytest.mark.parametrize("tasks", [1, 21])
def test_many_samples_go_through_in_chunks(tasks):
    class Long(Told):
        def forward(self, x):
            h, w = self.first(x), torch.tanh(self.w)
            for _ in range(40):
                h = torch.sin(F.linear(h, w) * self.row)
            return self.head(h)

    batch = regression_tasks(tasks, 150, 70, INPUTS, OUTPUTS)
    meta = mse(Long(None).double(), engine="resident")
    assert_exact(meta, batch)


def test_large_products_of_parameters_are_left_to_other_engines():
    class Squared(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.w, self.head = nn.Parameter(torch.randn(width, width)), nn.Linear(width, OUTPUTS)

        def forward(self, x):
            return self.head(F.linear(x, self.w @ self.w))

    assert isinstance(written_of(Squared(96), [96]), Written)
    assert "large matrices of parameters" in str(written_of(Squared(128), [128]))


def test_buffers_are_those_of_the_module_while_another_thread_runs_it_with_others():
    model = Told(FORWARDS["masked"]).double()
    buffers = Buffers(model, written_of(model, [INPUTS]))
    own, swapped = model.mask, threading.Event()

    def run_with_others():  # as functional_call does
        with module_lock:
            model._buffers["mask"] = 1 - own
            swapped.set()
            time.sleep(0.3)
            model._buffers["mask"] = own

    thread = threading.Thread(target=run_with_others)
    thread.start()
    swapped.wait()
    found = buffers.now()["mask"]
    thread.join()
    assert found is own


def test_of_no_sample_at_all():
    class Constant(Told):
        def forward(self, x):
            return (self.head(torch.tanh(self.row)) * 2).expand(len(x), OUTPUTS)

    meta = mse(Constant(None).double())
    assert_exact(meta, regression_tasks(3, 5, 4, INPUTS, OUTPUTS))
