"""A meta-step in one call: what autograd makes of it, bit for bit, with autograd or without."""

import sys
import threading
import time
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

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop.engines import resident
from fastmeta.models import conv4, mlp

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
