"""What the trial runs of a module leave behind: nothing."""

import gc
import weakref

import pytest
import torch
from oracle import regression_tasks
from torch import nn

import fastmeta as fm

made = []


class Noting(nn.Sequential):
    """Its activations save their results, which a hook of autograd's could have hold themselves."""

    def forward(self, x):
        for layer in self:
            x = layer(x)
            if isinstance(x, torch.Tensor):
                made.append(weakref.ref(x))
        return x


@pytest.fixture(autouse=True)
def nothing_made():
    made.clear()


def model():
    return Noting(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


@pytest.mark.parametrize("engine", ["auto", "vmap", "reference"])
def test_activations_are_freed(engine):
    meta = fm.MAML(model().double(), inner_steps=1, inner_lr=0.1, loss="mse", engine=engine)
    for samples in (3, 5):
        out = meta(regression_tasks(s=samples))
        out.loss.sum().backward()
        del out
    gc.collect()
    assert made and not any(ref() is not None for ref in made)


def test_those_of_functions_are_freed():
    module, tasks = model().double(), regression_tasks()
    fm.functional.inner_sgd(
        module, dict(module.named_parameters()), tasks.support_x, tasks.support_y,
        lr=0.1, steps=1, loss="mse",
    )  # fmt: skip
    gc.collect()
    assert made and not any(ref() is not None for ref in made)


def test_under_hooks_of_the_caller():
    meta = fm.MAML(model().double(), inner_steps=1, inner_lr=0.1, loss="mse", engine="vmap")
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x):
        out = meta(regression_tasks())
        out.loss.sum().backward()
    del out
    gc.collect()
    assert made and not any(ref() is not None for ref in made)


def test_what_hides_a_trial_is_not_seen_by_those_who_read_the_forward():
    module = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)).double()
    meta = fm.MAML(module, inner_steps=1, inner_lr=0.1, loss=lambda p, y: (p - y).abs().mean())
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x):
        meta(regression_tasks())
    assert meta.choice().name == "resident"
