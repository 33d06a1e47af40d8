"""Weight norm, of which PyTorch's second derivative is wrong and which vmap runs task by task."""

import warnings

import pytest
import torch
from oracle import assert_exact, assert_slope, classification_tasks, outer_loss
from torch import nn
from torch.nn.utils import parametrizations

import fastmeta as fm
from fastmeta.backends import cpu

NORMS = {
    "rows": lambda layer: parametrizations.weight_norm(layer),
    "columns": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "whole": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "bias": lambda layer: parametrizations.weight_norm(layer, name="bias"),
}


def maml(engine, norm="rows"):
    torch.manual_seed(2)
    layers = [NORMS[norm](nn.Conv2d(1, 3, 3)), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)]
    model = nn.Sequential(*layers).double()
    return fm.MAML(model, engine=engine, inner_steps=2, inner_lr=0.3)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("engine", ["vmap", "reference"])
def test_the_meta_gradient_is_that_of_finite_differences(engine, norm):
    meta, tasks = maml(engine, norm), classification_tasks([1, 4, 4])
    assert_slope(lambda: outer_loss(meta, tasks), list(meta.parameters()))


def test_both_ways_to_have_it_equal_the_reference():
    tasks = classification_tasks([1, 4, 4])
    assert_exact(maml("vmap"), tasks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        old = nn.utils.weight_norm(nn.Linear(16, 3))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Tanh(), old).double()
    assert_exact(fm.MAML(model, inner_steps=2, inner_lr=0.3), tasks)


def test_no_operation_runs_for_one_task_after_another():
    meta, tasks = maml("vmap"), classification_tasks([1, 4, 4])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        outer_loss(meta, tasks).backward()
    assert not [warning for warning in told if "batching rule" in str(warning.message)]


@pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")
@pytest.mark.parametrize("tasks", [2, 19])
@pytest.mark.parametrize("norm", NORMS)
def test_of_linear_layers_it_runs_natively(norm, tasks):
    torch.manual_seed(3)
    model = nn.Sequential(NORMS[norm](nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)).double()
    meta = fm.MAML(model, inner_steps=2, inner_lr=0.3, engine="resident")
    batch = classification_tasks([4], t=tasks)
    assert_exact(meta, batch)
    assert_slope(lambda: outer_loss(meta, batch), list(meta.parameters()))
