"""What the tests of the layered engine share."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_exact, classification_tasks
from torch import nn

import fastmeta as fm

layered = importlib.import_module("fastmeta.inner_loop.engines.layered")

REFERENCE = 'use_backend\\("reference"\\)'


def maml(model, **options):
    options = {"engine": "layered", "inner_steps": 2, "inner_lr": 0.2, **options}
    return fm.MAML(model.double(), **options)


def with_inputs(meta, tasks):
    tasks.support_x.requires_grad_()
    tasks.query_x.requires_grad_()
    return [*(p for p in meta.parameters() if p.requires_grad), tasks.support_x, tasks.query_x]


def assert_exact_with_inputs(model, shape, **options):
    meta, tasks = maml(model, **options), classification_tasks(shape)
    assert_exact(meta, tasks, with_inputs(meta, tasks), tolerance=1e-10)


def why_not(model, *shape, **options):
    """The reason that a demand for the engine gives."""
    meta, tasks = maml(model, **options), classification_tasks(shape)
    with pytest.raises(ValueError, match='"layered" was demanded but cannot run this') as caught:
        meta(tasks)
    meta.engine = "auto"
    assert meta._prepare(tasks, None)[0].engine is not layered
    return str(caught.value).split("cannot run this: ")[1]


class Functional(nn.Module):
    """Residuals, functional calls, shapes, a buffer, parameters used directly."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.kernel = nn.Parameter(0.3 * torch.randn(4, 4, 3, 3))
        self.scale = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.register_buffer("shift", torch.randn(4, 1, 1))
        self.last = nn.Linear(12, 3)
        self.mix = nn.Parameter(torch.randn(3, 3))
        self.activation = F.leaky_relu

    def forward(self, x, flag=None):
        n, channels, height, _ = x.shape
        x = self.activation(self.norm(self.first(x)), 0.1)
        y = F.conv2d(x, self.kernel, stride=1, padding=1) * self.scale + self.shift
        y = F.group_norm(y, channels, self.scale.flatten()) + x
        y = torch.cat([F.max_pool2d(y, 2), F.avg_pool2d(y, height // 3)], dim=1).tanh()
        rest = torch.flatten(F.adaptive_avg_pool2d(y, 1), 1)[:, 2:6]
        means = y.view(x.size(0), y.shape[1], -1).mean(2)
        both = torch.cat((means, rest.softmax(-1)), -1)
        assert flag is None
        return F.layer_norm(self.last(both), (3,)) @ self.mix - both.sum(1, keepdim=True) / n
