"""A meta-step in one call: what autograd makes of it, bit for bit, with autograd or without."""

import sys
import threading
import time
from copy import deepcopy

import pytest
import torch
from few_shot import episodes
from oracle import classification_tasks, regression_tasks
from torch import nn
from torch.func import functional_call

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop import resident
from fastmeta.models import conv4, mlp

native = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")


@pytest.fixture
def backwards(monkeypatch):
    """How often autograd's backward was asked for."""
    asked = []
    backward = torch.Tensor.backward

    def noted(tensor, *args, **options):
        asked.append(tensor)
        return backward(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "backward", noted)
    return asked


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


# ---- the same bits -----------------------------------------------------------------------------


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("t", [1, 3, 49])  # 1 / 49 is rounded
def test_maml_without_autograd(dtype, order, steps, t, backwards):
    meta, tasks = maml(dtype, order=order, inner_steps=steps), regression(dtype, t)
    for _ in range(3):
        meta.forward_backward(tasks)
    assert not backwards
    meta.zero_grad()
    assert_same(meta, tasks, calls=3)


@native
@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("learned", ["tensor", "element"])
@pytest.mark.parametrize("steps", [1, 3])
def test_learned_rates_without_autograd(learned, per_step, steps, backwards):
    meta = maml(inner_steps=steps, learn_inner_lr=learned, per_step_lr=per_step)
    tasks = regression()
    for _ in range(2):
        meta.forward_backward(tasks)
    assert not backwards
    assert all(rate.grad.abs().sum() > 0 for rate in meta.inner_rates.values())
    meta.zero_grad()
    assert_same(meta, tasks, calls=2)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_fewer_steps_than_there_are_rates_for(steps):
    meta = maml(inner_steps=3, learn_inner_lr="tensor", per_step_lr=True)
    assert_same(meta, regression(), steps)
    assert_same(meta, regression(), inner_steps=steps)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("engine", ["resident", "layered", "vmap", "reference"])
def test_every_engine(engine, order):
    if engine == "resident" and cpu.unavailable():
        pytest.skip("no native kernels")
    assert_same(maml(engine=engine, order=order), regression(), calls=2)


@native
def test_ragged_tasks(backwards):
    weights = {
        "support_weight": torch.tensor([[1.0, 1, 1, 1, 1], [1, 2, 1, 0, 0], [1, 0, 0, 0, 0]]),
        "query_weight": torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0.5, 0]]),
    }
    tasks = regression(**{name: w.double() for name, w in weights.items()})
    meta = maml()
    meta.forward_backward(tasks)
    assert not backwards
    assert_same(meta, tasks, calls=2)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images(dtype, backwards):
    tasks = classification_tasks((1, 8, 8), n_way=3).to(dtype=dtype)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 3),
    ).to(dtype)  # fmt: skip
    for options in ({}, {"learn_inner_lr": "element"}, {"learn_inner_lr": "tensor"}):
        meta = maml(model=deepcopy(model), loss="cross_entropy", **options)
        meta.forward_backward(tasks)
        if options.get("learn_inner_lr") != "tensor":
            assert not backwards
        meta.zero_grad()
        assert_same(meta, tasks, calls=2)
        del backwards[:]


def test_frozen_parameters():
    meta = maml()
    meta.model[0].weight.requires_grad_(False)
    meta.model[2].bias.requires_grad_(False)
    assert_same(meta, regression(), calls=2)
    assert meta.model[0].weight.grad is None


def test_parameters_that_are_frozen_later_and_thawed_again():
    meta = maml()
    for trainable in (True, False, True):
        meta.model[0].bias.requires_grad_(trainable)
        meta.zero_grad()
        assert_same(meta, regression())


def test_a_rate_that_is_frozen():
    meta = maml(learn_inner_lr="tensor")
    next(iter(meta.inner_rates.parameters())).requires_grad_(False)
    assert_same(meta, regression(), calls=2)


@native
def test_a_middle_that_adapts_alone_has_no_layers_below_it_to_leave_out(backwards):
    meta = maml(adapt_parameters=["0.weight", "2.bias"])
    meta.forward_backward(regression())
    assert not backwards
    assert_same(meta, regression(), calls=2)


@pytest.mark.parametrize("order", [1, 2])
def test_anil_learns_what_is_below_its_head(order):
    model = network()
    assert_same(fm.ANIL(model, model[-1], loss="mse", order=order), regression(), calls=2)


def test_meta_sgd_and_reptile():
    assert_same(fm.MetaSGD(network(), loss="mse"), regression(), calls=2)
    assert_same(fm.Reptile(network(), loss="mse"), regression(), calls=2)
    assert_same(fm.Reptile(network(), loss="mse"), regression(), inner_steps=2)


@pytest.mark.parametrize("engine", ["auto", "vmap"])
def test_proto_maml(engine):
    meta = fm.ProtoMAML(mlp([2, 5]).double(), inner_lr=0.1, engine=engine)
    assert_same(meta, episodes(), calls=2)
    assert_same(meta, episodes(), 2, n_way=3)


@pytest.mark.parametrize("learner", [fm.ProtoNet, fm.MatchingNet, fm.R2D2])
def test_learners_that_share_an_encoder(learner):
    meta = learner(mlp([2, 5]).double())
    assert_same(meta, episodes(), calls=2)
    assert_same(meta, episodes(), n_way=3)


def test_accuracy_that_came_with_the_loss_is_kept():
    meta, tasks = fm.ProtoNet(mlp([2, 5]).double()), episodes()
    assert torch.equal(meta.forward_backward(tasks).accuracy, meta(tasks).accuracy)


def test_running_statistics_move_once():
    encoder = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5)).double()
    meta = fm.ProtoNet(encoder)
    meta.forward_backward(episodes())
    assert encoder[1].num_batches_tracked == 1


@pytest.mark.slow
def test_conv4():
    tasks = classification_tasks((1, 28, 28), t=2, s=5, q=4, n_way=5).to(dtype=torch.float32)
    assert_same(maml(model=conv4(5, filters=4), loss="cross_entropy"), tasks, calls=2)


# ---- what is added to --------------------------------------------------------------------------


@native
def test_gradients_are_added_in_place(backwards):
    meta, tasks = maml(), regression()
    for p in meta.parameters():
        p.grad = torch.full_like(p, 0.1)
    before = gradients(meta)
    assert_same(meta, tasks)
    assert all(ours is old for ours, old in zip(gradients(meta), before, strict=True))
    assert len(backwards) == 1  # the twin's


@pytest.mark.filterwarnings("ignore:grad and param do not obey")
def test_a_gradient_that_is_strided_otherwise_is_added_to():
    meta = maml()
    weight = meta.model[0].weight
    weight.grad = torch.randn(*weight.shape[::-1], dtype=weight.dtype).T
    assert_same(meta, regression())


def test_a_sparse_gradient_is_left_to_autograd():
    meta, tasks = maml(), regression()
    weight = meta.model[0].weight
    weight.grad = torch.eye(*weight.shape, dtype=weight.dtype).to_sparse()
    assert_same(meta, tasks)


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="gradients have no own dtype")
def test_a_gradient_of_another_dtype_is_left_to_autograd():
    meta, tasks = maml(), regression()
    for p in meta.parameters():
        p.grad_dtype = torch.float32
    assert_same(meta, tasks, calls=2)
    assert all(g.dtype is torch.float32 for g in gradients(meta))


def test_what_comes_out_is_detached():
    for meta, tasks in ((maml(), regression()), (maml(engine="vmap"), regression()),
                        (fm.ProtoNet(mlp([2, 5]).double()), episodes())):  # fmt: skip
        out = meta.forward_backward(tasks)
        assert not out.loss.requires_grad and not out.predictions.requires_grad
        assert not any(g.requires_grad for g in gradients(meta) if g is not None)


def test_an_optimizer_between():
    meta, twin = maml(), None
    twin = deepcopy(meta)
    ours, theirs = (torch.optim.Adam(m.parameters(), lr=0.1) for m in (meta, twin))
    for seed in range(4):
        torch.manual_seed(seed)
        tasks = regression()
        ours.zero_grad(), theirs.zero_grad()
        in_one_call(meta, tasks), by_autograd(twin, tasks)
        ours.step(), theirs.step()
    for p, q in zip(meta.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_batches_of_ever_new_sizes():
    meta = maml(learn_inner_lr="tensor")
    for t, s, q in ((3, 5, 4), (1, 2, 9), (4, 1, 1), (3, 5, 4)):
        assert_same(meta, regression(t=t, s=s, q=q))


def in_threads(run, threads=4):
    """`run` in each of them, which begin together and often take turns."""
    start = threading.Barrier(threads)
    team = [threading.Thread(target=lambda: (start.wait(), run())) for _ in range(threads)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in team:
            thread.start()
        for thread in team:
            thread.join()
    finally:
        sys.setswitchinterval(interval)


@native
def test_threads_take_steps_at_once():
    meta, tasks = maml(), regression()
    twin = deepcopy(meta)
    for _ in range(4 * 20):
        in_one_call(twin, tasks)
    in_threads(lambda: [in_one_call(meta, tasks) for _ in range(20)])
    for ours, theirs in zip(gradients(meta), gradients(twin), strict=True):
        assert torch.equal(ours, theirs)


class SlowLeaf:
    """Between reading and writing its gradient there is time for another thread."""

    def __init__(self):
        self._grad = None

    @property
    def grad(self):
        found = self._grad
        time.sleep(1e-3)
        return found

    @grad.setter
    def grad(self, value):
        self._grad = value


def test_threads_lose_no_gradient():
    leaf = SlowLeaf()
    in_threads(lambda: [resident._accumulate([leaf], [torch.ones(3)]) for _ in range(3)])
    assert torch.equal(leaf.grad, torch.full((3,), 12.0))


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
