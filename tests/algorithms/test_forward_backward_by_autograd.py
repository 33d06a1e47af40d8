"""A meta-step in one call, where only autograd does what is asked for: hooks, graphs, errors."""


from copy import deepcopy

import pytest
import torch
from few_shot import episodes
from one_call import (
    assert_same,
    by_autograd,
    gradients,
    in_one_call,
    maml,
    native,
    network,
    regression,
)
from oracle import classification_tasks
from torch import nn
from torch.func import functional_call

import fastmeta as fm
from fastmeta.inner_loop.engines import resident
from fastmeta.models import mlp

# ---- where autograd has to do it ---------------------------------------------------------------


def hook_tensor(meta):
    meta.model[0].weight.register_hook(lambda g: 2 * g)


def hook_accumulation(meta):
    def triple(p):
        p.grad.mul_(3)

    meta.model[0].weight.register_post_accumulate_grad_hook(triple)


def hook_learner(meta):
    meta.register_forward_hook(lambda module, args, out: fm.MetaOutput(
        4 * out.loss, out.predictions, out.targets, out.weight
    ))  # fmt: skip


def hook_layer(meta):
    meta.model[0].register_forward_hook(lambda module, args, out: 2 * out)


def hook_layer_backward(meta):
    meta.model[1].register_full_backward_hook(lambda module, gi, go: (3 * gi[0],))


def own_forward(meta):
    forward = meta.forward
    meta.forward = lambda tasks: hooked_loss(forward(tasks))


def hooked_loss(out):
    return fm.MetaOutput(5 * out.loss, out.predictions, out.targets, out.weight)


HOOKS = [hook_tensor, hook_accumulation, hook_learner, hook_layer, hook_layer_backward, own_forward]


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_run_also_those_that_come_later(hook):
    meta, tasks = maml(), regression()
    meta.forward_backward(tasks)
    plain = gradients(meta)
    twin = deepcopy(meta)  # hooks of tensors are not copied
    meta.zero_grad(), twin.zero_grad()
    hook(meta), hook(twin)
    found, right = in_one_call(meta, tasks), by_autograd(twin, tasks)
    assert torch.equal(found.loss, right.loss)
    for ours, theirs in zip(gradients(meta), gradients(twin), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(meta.model[0].weight.grad, plain[0])


@native
def test_a_hook_that_was_removed_is_forgotten(backwards):
    meta, tasks = maml(), regression()
    handles = [
        meta.model[0].weight.register_hook(lambda g: 2 * g),
        meta.register_forward_hook(lambda module, args, out: out),
    ]
    meta.forward_backward(tasks)
    assert len(backwards) == 1
    for handle in handles:
        handle.remove()
    meta.forward_backward(tasks)
    assert len(backwards) == 1


def test_hooks_on_several_gradients_run():
    meta, seen = maml(), []
    torch.autograd.graph.register_multi_grad_hook([*meta.parameters()], seen.append)
    meta.forward_backward(regression())
    assert len(seen) == 1 and all(g is not None for g in seen[0])


def test_global_hooks_run():
    meta, tasks, seen = maml(), regression(), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    try:
        meta.forward_backward(tasks)
    finally:
        handle.remove()
    assert fm.MAML in seen


class Doubled(fm.MAML):
    def forward(self, tasks, factor=2):
        out = super().forward(tasks)
        return fm.MetaOutput(factor * out.loss, out.predictions, out.targets, out.weight)


def test_a_subclass_with_a_forward_of_its_own(backwards):
    meta, tasks = Doubled(network(), loss="mse"), regression()
    assert torch.equal(meta.forward_backward(tasks, factor=3).loss, 3 * fm.MAML.forward(
        meta, tasks
    ).loss)  # fmt: skip
    assert len(backwards) == 1
    meta.zero_grad()
    assert_same(meta, tasks, calls=2)


class Renamed(fm.MAML):
    pass


@native
def test_a_subclass_without_one_leaves_autograd_out(backwards):
    Renamed(network(), loss="mse").forward_backward(regression())
    assert not backwards


def test_inputs_that_require_grad_get_one():
    for name in ("support_x", "query_x"):
        meta, tasks = maml(), regression()
        x = getattr(tasks, name).requires_grad_()
        in_one_call(meta, tasks)
        found, x.grad = x.grad, None
        by_autograd(meta, tasks)
        assert torch.equal(found, x.grad) and found.abs().sum() > 0
        assert_same(meta, tasks)


@pytest.mark.filterwarnings("error")
def test_parameters_that_are_no_leaves():
    weights = [torch.randn(6, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    torch.manual_seed(1)
    meta, tasks = maml(), regression()
    twin = deepcopy(meta)
    for weight, one in zip(weights, (meta, twin), strict=True):
        with torch.no_grad():
            weight.copy_(weights[0])
        del one.model[0].weight
        one.model[0]._parameters["weight"] = 2 * weight
    in_one_call(meta, tasks), by_autograd(twin, tasks)
    assert torch.equal(weights[0].grad, weights[1].grad) and weights[0].grad.abs().sum() > 0


def test_inside_a_functional_call():
    meta, tasks = maml(), regression()
    weight = meta.model[0].weight.detach().clone().requires_grad_()

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.meta = meta

        def forward(self, tasks):
            return self.meta.forward_backward(tasks)

    functional_call(Step(), {"meta.model.0.weight": weight * 1}, (tasks,))
    right = deepcopy(meta)
    right.zero_grad()
    by_autograd(right, tasks)
    assert torch.equal(weight.grad, right.model[0].weight.grad)
    assert meta.model[0].weight.grad is None


def test_a_rate_that_two_parameters_share():
    meta = maml(model=mlp([2, 2, 2]).double(), learn_inner_lr="element")
    rates = meta.inner_rates
    rates["0/weight"] = rates["2/weight"]
    assert_same(meta, regression(), calls=4)


@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected")
def test_anomalies_are_found():
    meta, tasks = maml(), regression()
    with torch.no_grad():
        meta.model[0].bias.fill_(torch.nan)
    with torch.autograd.detect_anomaly(), pytest.raises(RuntimeError, match="nan"):
        meta.forward_backward(tasks)


# ---- errors ------------------------------------------------------------------------------------


def test_without_grad_mode_there_is_nothing_to_differentiate():
    meta, tasks = maml(), regression()
    for one in (meta, fm.ProtoNet(mlp([2, 5]).double())):
        with torch.no_grad(), pytest.raises(RuntimeError, match="does not require grad"):
            one.forward_backward(tasks if one is meta else episodes())
    assert all(g is None for g in gradients(meta))


def test_without_a_parameter_that_requires_grad_neither():
    meta = maml(inner_steps=0).requires_grad_(False)
    with pytest.raises(RuntimeError, match="does not require grad"):
        meta.forward_backward(regression())


def outside(tasks):
    labels = tasks.query_y.clone()
    labels[1, 2] = 7
    return fm.TaskBatch(tasks.support_x, tasks.support_y, tasks.query_x, labels)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tasks: "tasks",
        outside,
        lambda tasks: tasks.to(dtype=torch.float32),
        lambda tasks: tasks.with_inputs(tasks.support_x[..., :1], tasks.query_x[..., :1]),
    ],
    ids=["type", "label", "dtype", "shape"],
)
def test_bad_tasks_are_refused_as_by_the_call_and_change_no_gradient(spoil):
    meta = maml(model=mlp([2, 5, 3]).double(), loss="cross_entropy")
    tasks = classification_tasks((2,))
    meta.forward_backward(tasks)
    before = [g.clone() for g in gradients(meta)]
    with pytest.raises((ValueError, TypeError)) as right:
        meta(spoil(tasks))
    with pytest.raises(right.type) as found:
        meta.forward_backward(spoil(tasks))
    assert str(found.value) == str(right.value)
    assert all(torch.equal(g, b) for g, b in zip(gradients(meta), before, strict=True))


def test_bad_steps_are_refused():
    with pytest.raises(ValueError, match="inner steps must be"):
        maml().forward_backward(regression(), inner_steps=-1)


@native
def test_memory_that_is_full_is_told_as_by_the_call(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("Tried to allocate 9.00 GiB")

    monkeypatch.setattr(resident, "accumulate_gradients", full)
    with pytest.raises(torch.OutOfMemoryError, match="fast weights of 3 tasks over 2 inner steps"):
        maml().forward_backward(regression())


def test_tensors_of_the_loss_that_come_to_require_grad_are_found():
    factor = torch.ones((), dtype=torch.float64)
    meta = maml(loss=lambda p, y: factor * (p - y).square().mean())
    tasks = regression()
    meta.forward_backward(tasks)
    factor.requires_grad_()
    meta.zero_grad()
    meta.forward_backward(tasks)
    found, factor.grad = factor.grad, None
    by_autograd(meta, tasks)
    assert torch.equal(found, factor.grad) and found != 0


# ---- around it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "vmap"])
def test_torch_compile_runs_it_as_it_is(engine):
    torch.compiler.reset()
    meta, tasks = maml(engine=engine), regression()
    twin = deepcopy(meta)
    compiled = torch.compile(lambda t: 2 * meta.forward_backward(t).loss.mean(), backend="eager")
    for _ in range(2):
        meta.zero_grad(), twin.zero_grad()
        assert compiled(tasks) == 2 * by_autograd(twin, tasks).loss.mean()
        for ours, theirs in zip(gradients(meta), gradients(twin), strict=True):
            assert torch.equal(ours, theirs)
    whole = torch.compile(meta, backend="eager")
    meta.zero_grad()
    assert torch.equal(whole.forward_backward(tasks).loss, meta(tasks).loss)
    assert torch.equal(gradients(meta)[0], gradients(twin)[0])


def test_the_reference_backend():
    with fm.use_backend("reference"):
        assert_same(maml(), regression())


def test_float64_tasks_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(maml(torch.float32), regression(torch.float32))
