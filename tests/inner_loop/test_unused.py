"""Parameters that a forward does not use, or uses where no gradient sees it."""

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_exact, classification_tasks
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop.reading.stages import stages_of

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


# ---- results that are not returned ---------------------------------------------------------------


class Critic(nn.Module):
    """Its policy is returned, what is made of its values is not."""

    def __init__(self, aside, **parts):
        super().__init__()
        self.body, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.pool, self.policy, self.value = nn.MaxPool2d(2), nn.Linear(16, 3), nn.Linear(16, 1)
        self.share = nn.Parameter(torch.zeros(1))
        self.aside = aside
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        h = self.pool(F.relu(self.norm(self.body(x)))).flatten(1)
        told = self.aside(self, h)
        y = self.policy(h)
        return y if told is None else told(y)


def unreturned(make):
    def aside(m, h):
        make(m, h)

    return aside


HEADS = {
    "a layer": unreturned(lambda m, h: m.value(h)),
    "a head": unreturned(lambda m, h: m.value(torch.tanh(m.hidden(h))).squeeze(-1)),
    "functions": unreturned(lambda m, h: F.softmax(m.value(h).exp() + m.share.exp(), dim=-1)),
    "sizes": unreturned(lambda m, h: m.share.exp().expand(h.shape[0], h.size(1))),
}
IMAGES = classification_tasks((1, 4, 4))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("how", HEADS)
def test_a_head_that_is_not_returned_keeps_no_images_from_the_kernels(how, order):
    model, tasks = Critic(HEADS[how], hidden=nn.Linear(16, 16)).double(), IMAGES
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2, order=order)
    choice = fm.explain(meta, tasks)
    assert choice.name == "resident", choice.passed_over["resident"]
    assert_exact(meta, tasks)


def test_a_flag_that_says_what_is_returned_is_seen():
    def aside(m, h):
        v = m.value(h)
        return None if not m.joins else lambda y: y + v

    model = Critic(aside).double()
    model.joins = False
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2)
    assert fm.explain(meta, IMAGES).name == "resident"
    assert_exact(meta, IMAGES)
    model.joins = True
    assert_exact(meta, IMAGES)


def doubled(m, h):
    h *= 2


EFFECTS = {
    "in place": unreturned(lambda m, h: F.relu(h, inplace=True)),
    "in place by its place": unreturned(lambda m, h: F.relu(h, True)),
    "a layer in place": unreturned(lambda m, h: m.bent(h)),
    "a method in place": unreturned(lambda m, h: h.tanh_()),
    "an operator": doubled,
    "an item": unreturned(lambda m, h: h.__setitem__((slice(None), 0), 1.0)),
    "into another": unreturned(lambda m, h: torch.mul(h, 2.0, out=h)),
}


@pytest.mark.parametrize("how", EFFECTS)
def test_what_works_in_place_counts_all_the_same(how):
    model = Critic(EFFECTS[how], bent=nn.ReLU(inplace=True)).double()
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2)
    with torch.no_grad():
        model.norm.bias.add_(0.3)
    if how == "into another":
        assert isinstance(stages_of(model, (1, 4, 4)), str)
    else:
        assert_exact(meta, IMAGES)


def test_random_numbers_that_are_not_returned_are_drawn():
    for aside in (
        unreturned(lambda m, h: F.dropout(h)), unreturned(lambda m, h: m.drop(h)),
        unreturned(lambda m, h: torch.rand_like(h)), unreturned(lambda m, h: h.bernoulli(0.5)),
    ):  # fmt: skip
        model = Critic(aside, drop=nn.Dropout(0.5))
        assert "does not return" in stages_of(model, (1, 4, 4))
