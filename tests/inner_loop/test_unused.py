"""Parameters that a forward does not use, or uses where no gradient sees it."""

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_exact, classification_tasks
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")


class Rows(nn.Module):
    def __init__(self, told):
        super().__init__()
        self.first, self.head = nn.Linear(5, 4), nn.Linear(4, 3)
        self.aside, self.scale = nn.Linear(4, 2), nn.Parameter(torch.tensor(1.3))
        self.told = told

    def forward(self, x):
        return self.head(self.told(self, torch.tanh(self.first(x))))


class Images(Rows):
    def __init__(self, told):
        super().__init__(told)
        self.first, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(16, 3)

    def forward(self, x):
        h = self.told(self, F.relu(self.first(x)))
        return self.head(F.max_pool2d(h, 2).flatten(1))


SAMPLES = {Rows: (5,), Images: (1, 4, 4)}


def nothing(module, h):
    return h


def without_gradients(module, h):
    with torch.no_grad():
        scale = module.scale * 1
    return h * scale


UNSEEN = {
    "detached": lambda module, h: h * module.scale.detach(),
    "data": lambda module, h: h * module.scale.data,
    "a number": lambda module, h: h * module.scale.item(),
    "without gradients": without_gradients,
    "a condition": lambda module, h: h if module.scale > 0 else -h,
    "times zero": lambda module, h: h + 0 * module.aside.weight.sum(),
    "of the state": lambda module, h: h * module.state_dict()["scale"],
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", SAMPLES)
def test_unused_parameters_are_left_to_themselves(kind, order):
    model, tasks = kind(nothing).double(), classification_tasks(SAMPLES[kind])
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2, order=order, engine="resident")
    assert_exact(meta, tasks)
    meta.forward_backward(tasks)
    assert model.scale.grad is None and model.aside.weight.grad is None

    fast = meta.adapt(tasks.support_x, tasks.support_y).parameters
    count = len(tasks.support_x)
    assert torch.equal(fast["scale"], model.scale.expand(count))
    assert fast["aside.weight"].shape == (count, 2, 4)
    (gradient,) = torch.autograd.grad(fast["scale"].sum(), model.scale)
    assert gradient == count


@pytest.mark.parametrize("kind", SAMPLES)
def test_unused_parameters_with_rates_of_their_own(kind):
    model, tasks = kind(nothing).double(), classification_tasks(SAMPLES[kind])
    meta = fm.MetaSGD(model, inner_lr=0.1, inner_steps=2, engine="resident")
    assert_exact(meta, tasks)
    adapted = meta.adapt(tasks.support_x, tasks.support_y)
    assert adapted.parameters["aside.bias"].shape == (len(tasks.support_x), 2)


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("how", UNSEEN)
def test_what_no_gradient_sees_is_used_all_the_same(how, kind):
    model, tasks = kind(UNSEEN[how]).double(), classification_tasks(SAMPLES[kind])
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2)
    for scale in (1.3, 0.4):
        with torch.no_grad():
            model.scale.fill_(scale)
        assert_exact(meta, tasks)
