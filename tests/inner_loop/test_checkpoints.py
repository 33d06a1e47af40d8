"""torch.utils.checkpoint in a forward, whose backward would have the module's own parameters."""

import pytest
import torch
from oracle import assert_exact, regression_tasks
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastmeta as fm
from fastmeta.functional.forward import task_forward


class Checkpointed(nn.Module):
    def __init__(self, branches=False):
        super().__init__()
        self.first, self.second, self.branches = nn.Linear(2, 4), nn.Linear(4, 2), branches

    def forward(self, x):
        if self.branches and x.sum() > 1e9:
            x = x.sin()
        return self.second(checkpoint(lambda x: self.first(x).tanh(), x, use_reentrant=False))


def maml(model, engine):
    return fm.MAML(model.double(), engine=engine, inner_steps=2, inner_lr=0.3, loss="mse")


@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize("engine", ["vmap", "reference"])
def test_what_would_compute_again_with_other_parameters_is_refused(engine, branches):
    meta = maml(Checkpointed(branches), engine)
    with pytest.raises(RuntimeError, match="the forward calls torch.utils.checkpoint"):
        meta(regression_tasks())


class OfManySamples(nn.Module):
    """Where the query alone passes through it, PyTorch says nothing."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.first(x)
        if len(x) > 5:
            return checkpoint(self.second, h, use_reentrant=True)
        return self.second(h)


class Scaled(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight):
        return x * weight.sum()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad * weight.sum(), (grad * x).sum().expand(weight.shape)


class OfAFunction(OfManySamples):
    """No function of a tensor runs inside."""

    def forward(self, x):
        h = self.first(x)
        h = checkpoint(lambda h: Scaled.apply(h, self.first.weight), h, use_reentrant=False)
        return self.second(h)


@pytest.mark.parametrize("model", [OfManySamples, OfAFunction])
@pytest.mark.parametrize("engine", ["auto", "vmap", "reference"])
def test_kinds_that_pytorch_says_nothing_of_are_refused(engine, model):
    with pytest.raises(RuntimeError, match="the forward calls torch.utils.checkpoint"):
        maml(model(), engine)(regression_tasks(s=4, q=7))


@pytest.mark.parametrize("engine", ["vmap", "reference"])
def test_hooks_of_saved_tensors_that_are_no_checkpoint_stay(engine):
    class Stored(nn.Linear):
        def forward(self, x):
            with torch.autograd.graph.save_on_cpu():
                return super().forward(x).tanh()

    meta = maml(Stored(2, 2), engine)
    assert_exact(meta, regression_tasks(), [*meta.parameters()])


def test_forwards_of_many_tasks_refuse_it():
    model = Checkpointed()
    fast = {name: p.expand(3, *p.shape) for name, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match="the forward calls torch.utils.checkpoint"):
        task_forward(model, fast, torch.randn(3, 5, 2))
    with torch.no_grad():  # nobody goes back
        task_forward(model, fast, torch.randn(3, 5, 2))


@pytest.mark.parametrize("engine", ["auto", "layered"])
def test_engines_that_read_the_forward_compute_what_it_says(engine):
    plain = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
    model = Checkpointed()
    model.first.load_state_dict(plain[0].state_dict())
    model.second.load_state_dict(plain[2].state_dict())
    tasks = regression_tasks()
    maml(model, engine).forward_backward(tasks)
    maml(plain, "reference").forward_backward(tasks)
    for own, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad)


def test_a_checkpoint_around_the_whole_meta_step_runs_it_again():
    meta = maml(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)), "reference")
    tasks = regression_tasks()
    meta(tasks).loss.sum().backward()
    expected = [p.grad.clone() for p in meta.parameters()]
    meta.zero_grad()
    checkpoint(lambda t: meta(t).loss, tasks, use_reentrant=False).sum().backward()
    for own, grad in zip(meta.parameters(), expected, strict=True):
        torch.testing.assert_close(own.grad, grad)
    assert_exact(meta, tasks, [*meta.parameters()])
