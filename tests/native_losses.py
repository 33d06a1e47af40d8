"""A small network, and whether the native kernels run a loss of it as the reference does."""

import torch
from oracle import DOUBLE, assert_exact
from torch import nn

import fastmeta as fm


def chain(outputs=3):
    return nn.Sequential(
        nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, outputs)
    ).double()


def assert_native(meta, tasks, inputs=None, **options):
    assert_exact(meta, tasks, inputs, **options)
    assert "resident" in {plan.engine.__name__.split(".")[-1] for plan in meta._plans.values()}


def packed_tasks(t=3, s=5, q=4, classes=3, numbers=2):
    """Targets [1 + numbers] of a sample: a label and what else there is, all floating."""

    def targets(n):
        labels = torch.randint(classes, (t, n, 1)).to(DOUBLE)
        return torch.cat([labels, torch.randn(t, n, numbers, dtype=DOUBLE)], 2)

    def x(n):
        return torch.randn(t, n, 2, dtype=DOUBLE)

    return fm.TaskBatch(x(s), targets(s), x(q), targets(q))
