"""A meta-step in one call and by autograd, side by side."""

from copy import deepcopy

import pytest
import torch
from oracle import regression_tasks

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.models import mlp

native = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")


def by_autograd(meta, tasks, *args, **options):
    out = meta(tasks, *args, **options)
    out.loss.mean().backward()
    return out


def in_one_call(meta, tasks, *args, **options):
    return meta.forward_backward(tasks, *args, **options)


def gradients(meta):
    return [p.grad for p in meta.parameters()]


def twin_of(meta):
    """A copy, gradients included."""
    twin = deepcopy(meta)
    for copied, p in zip(twin.parameters(), meta.parameters(), strict=True):
        if getattr(p, "grad_dtype", p.dtype) is not p.dtype:
            copied.grad_dtype = p.grad_dtype
        copied.grad = None if p.grad is None else p.grad.clone()
    return twin


def assert_same(meta, tasks, *args, calls=1, **options):
    """`calls` meta-steps, whose gradients add up, the one way and the other."""
    twin = twin_of(meta)
    for _ in range(calls):
        found = in_one_call(meta, tasks, *args, **options)
        right = by_autograd(twin, tasks, *args, **options)
    assert torch.equal(found.loss, right.loss)
    assert torch.equal(found.predictions, right.predictions)
    assert found.targets is right.targets and found.weight is right.weight
    for ours, theirs in zip(gradients(meta), gradients(twin), strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)
    assert any(g is not None and g.abs().sum() > 0 for g in gradients(meta))


def regression(dtype=torch.float64, t=3, **options):
    tasks = regression_tasks(t=t, **options)
    return tasks.to(dtype=dtype)


def network(dtype=torch.float64):
    return mlp([2, 6, 5, 2], activation="tanh").to(dtype)


def maml(dtype=torch.float64, model=None, **options):
    options = {"inner_lr": 0.1, "inner_steps": 2, "loss": "mse"} | options
    return fm.MAML(model or network(dtype), **options)
