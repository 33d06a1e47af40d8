import copy
import io
import math
import pickle

import pytest
import torch
import torch.distributed as dist
from oracle import (
    DOUBLE,
    assert_exact,
    classification_tasks,
    gradients,
    outer_loss,
    regression_tasks,
    relative_error,
)
from torch import nn

import fastmeta as fm
from fastmeta.models import mlp

ENGINES = ["auto", "vmap"]


def regression(model=None, **options):
    options = {"loss": "mse", "inner_lr": 0.3, "inner_steps": 2, **options}
    return fm.MAML((model or mlp([2, 4, 2], "tanh")).double(), **options)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("learn", [None, "tensor", "element"])
@pytest.mark.parametrize("per_step", [False, True])
def test_options_equal_the_reference(engine, order, learn, per_step):
    meta = regression(
        engine=engine, order=order, learn_inner_lr=learn, per_step_lr=per_step and learn is not None
    )
    assert_exact(meta, regression_tasks())


@pytest.mark.parametrize("engine", ENGINES)
def test_padding_may_hold_anything(engine):
    tasks = classification_tasks([2])
    weight = torch.tensor([[1.0, 1, 0, 1, 0]] * 3, dtype=DOUBLE)
    keep = [0, 1, 3]
    clean = fm.TaskBatch(
        tasks.support_x[:, keep], tasks.support_y[:, keep], tasks.query_x, tasks.query_y
    )
    padded = fm.TaskBatch(
        torch.where(weight.unsqueeze(-1) > 0, tasks.support_x, math.nan),
        torch.where(weight > 0, tasks.support_y, -1),
        tasks.query_x,
        tasks.query_y,
        support_weight=weight,
    )
    meta = fm.MAML(mlp([2, 4, 3]).double(), inner_steps=2, engine=engine)
    inputs = list(meta.parameters())
    assert relative_error(gradients(meta, padded, inputs), gradients(meta, clean, inputs)) < 1e-12


@pytest.mark.parametrize("engine", ENGINES)
def test_inputs_need_not_be_contiguous(engine):
    tasks, meta = regression_tasks(), regression(engine=engine)

    def strided(x):
        return x.permute(2, 0, 1).contiguous().permute(1, 2, 0)

    scattered = fm.TaskBatch(
        strided(tasks.support_x), strided(tasks.support_y), strided(tasks.query_x),
        strided(tasks.query_y),
    )  # fmt: skip
    assert not scattered.support_x.is_contiguous()
    torch.testing.assert_close(meta(scattered).loss, meta(tasks).loss)


@pytest.mark.parametrize("engine", ENGINES)
def test_adapted_is_the_way_to_the_same_loss(engine):
    meta, tasks = regression(engine=engine), regression_tasks()
    adapted = meta.adapt(tasks.support_x, tasks.support_y)
    assert adapted.parameters["0.weight"].shape == (3, 4, 2)
    loss = fm.functional.mse_loss(adapted(tasks.query_x), tasks.query_y)
    out = meta(tasks)
    torch.testing.assert_close(loss, out.loss)
    torch.testing.assert_close(adapted(tasks.query_x), out.predictions)
    inputs = list(meta.parameters())
    ours = torch.autograd.grad(loss.sum(), inputs)
    assert relative_error(ours, torch.autograd.grad(out.loss.sum(), inputs)) < 1e-12


@pytest.mark.parametrize("engine", ENGINES)
def test_steps_of_one_call(engine):
    meta, tasks = regression(engine=engine), regression_tasks()
    assert torch.equal(meta(tasks, inner_steps=2).loss, meta(tasks).loss)
    with torch.no_grad():
        before = torch.stack([meta.model(x) for x in tasks.query_x])
        descent = [meta(tasks, inner_steps=k).loss.mean() for k in (0, 1, 5)]
    torch.testing.assert_close(meta(tasks, inner_steps=0).predictions, before)
    torch.testing.assert_close(
        meta.adapt(tasks.support_x, tasks.support_y, inner_steps=0)(tasks.query_x), before
    )
    assert len({float(loss) for loss in descent}) == 3
    assert_exact(regression(engine=engine, inner_steps=0), tasks)


def test_per_step_rates_serve_fewer_steps_but_not_more():
    meta, tasks = regression(learn_inner_lr="tensor", per_step_lr=True), regression_tasks()
    rates = list(meta.inner_rates.values())
    assert rates[0].shape == (2, 1)
    grads = torch.autograd.grad(meta(tasks, inner_steps=1).loss.sum(), rates)
    assert all((g[0] != 0).any() and (g[1] == 0).all() for g in grads)
    meta(tasks, inner_steps=0)
    with pytest.raises(ValueError, match="learned rates for 2 steps"):
        meta(tasks, inner_steps=3)


def test_learned_rates_are_parameters_under_their_names():
    meta = regression(learn_inner_lr="element")
    assert set(meta.state_dict()) == {
        *(f"model.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")),
        *(f"inner_rates.{layer}/{kind}" for layer in (0, 2) for kind in ("weight", "bias")),
    }
    assert meta.inner_rates["0/weight"].shape == (1, 4, 2)
    assert (meta.inner_rates["0/weight"] == 0.3).all()
    assert list(regression().parameters()) != list(meta.parameters())


def test_only_chosen_parameters_adapt():
    tasks = regression_tasks()
    for chosen in (["2.weight", "2.bias"], lambda name: name.startswith("2.")):
        meta = regression(adapt_parameters=chosen)
        fast = meta.adapt(tasks.support_x, tasks.support_y).parameters
        assert fast["0.weight"].shape == (4, 2) and fast["2.weight"].shape == (3, 2, 4)
        assert_exact(meta, tasks)


def test_meta_training_learns():
    torch.manual_seed(0)
    amplitude = torch.rand(64, 1, 1) * 4 + 0.5
    x = torch.rand(64, 20, 1) * 6 - 3
    y = amplitude * x.sin()
    tasks = fm.TaskBatch(x[:, :10], y[:, :10], x[:, 10:], y[:, 10:])
    meta = fm.MAML(mlp([1, 32, 1], "tanh"), loss="mse", inner_lr=0.05, inner_steps=3)
    optimizer = torch.optim.Adam(meta.parameters(), 1e-2)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = meta(tasks).loss.mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]


def test_accuracy_of_a_classifier():
    meta, tasks = fm.MAML(mlp([2, 3]).double()), classification_tasks([2])
    out = meta(tasks)
    hits = out.predictions.argmax(-1) == tasks.query_y
    assert torch.equal(out.accuracy, hits.double().mean(1))


# ---- the model changes after construction -------------------------------------------------------


def test_changes_of_the_model_are_seen():
    tasks = regression_tasks()
    meta = regression(nn.Sequential(nn.Linear(2, 4), nn.LeakyReLU(0.1), nn.Linear(4, 2)))
    assert_exact(meta, tasks)
    meta.model[1].negative_slope = 0.5
    assert_exact(meta, tasks)
    meta.model[1] = nn.Sigmoid()
    assert_exact(meta, tasks)
    meta.model[0] = nn.Linear(2, 4, bias=False).double()
    assert_exact(meta, tasks)
    meta.model[2].weight.requires_grad_(False)
    assert_exact(meta, tasks)
    fast = meta.adapt(tasks.support_x, tasks.support_y).parameters
    assert fast["2.weight"] is meta.model[2].weight and fast["2.bias"].dim() == 2
    meta.model[1].register_forward_hook(lambda layer, args, out: 2 * out)
    assert_exact(meta, tasks)
    meta.model[2].bias = nn.Parameter(torch.zeros(1, dtype=DOUBLE))  # broadcasts
    assert_exact(meta, tasks)


def test_changes_of_the_options_are_seen():
    meta, tasks = regression(), regression_tasks()
    inputs = list(meta.parameters())
    exact = gradients(meta, tasks, inputs)
    meta.order = 1
    assert relative_error(gradients(meta, tasks, inputs), exact) > 1e-3
    meta.order, meta.inner_lr = 2, 0.1
    assert relative_error(gradients(meta, tasks, inputs), exact) > 1e-3
    meta.loss = "bce"
    assert_exact(meta, tasks)


def test_changes_of_the_dtype_are_seen():
    meta, tasks = regression(), regression_tasks()
    loss = meta(tasks).loss
    single = meta.float()(tasks.to(dtype=torch.float32)).loss
    assert single.dtype is torch.float32
    torch.testing.assert_close(single.double(), loss, rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match="float64"):
        meta(tasks)


def test_a_parameter_that_thaws_needs_a_rate():
    model = mlp([2, 4, 2]).double()
    model[0].requires_grad_(False)
    meta = regression(model, learn_inner_lr="tensor")
    assert len(meta.inner_rates) == 2
    model[0].requires_grad_(True)
    with pytest.raises(ValueError, match="no inner rate for '0.weight'"):
        meta(regression_tasks())


# ---- it is a module like any other ---------------------------------------------------------------


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("used", [False, True])
def test_copies_are_whole_and_apart(copier, used):
    meta, tasks = regression(learn_inner_lr="element"), regression_tasks()
    if used:
        meta(tasks)
    other = copier(meta)
    loss = meta(tasks).loss.detach()
    assert torch.equal(other(tasks).loss, loss)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    assert not torch.equal(other(tasks).loss, loss)
    assert torch.equal(meta(tasks).loss, loss)


def test_state_dict_round_trip():
    meta, tasks = regression(learn_inner_lr="tensor", per_step_lr=True), regression_tasks()
    file = io.BytesIO()
    torch.save(meta.state_dict(), file)
    file.seek(0)
    other = regression(learn_inner_lr="tensor", per_step_lr=True, inner_lr=0.7)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(tasks).loss, meta(tasks).loss)


def test_data_parallel_training():
    meta, tasks = regression(learn_inner_lr="tensor"), regression_tasks()
    right = gradients(meta, tasks, list(meta.parameters()))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        outer_loss(nn.parallel.DistributedDataParallel(meta), tasks).backward()
    finally:
        dist.destroy_process_group()
    assert relative_error([p.grad for p in meta.parameters()], right) < 1e-14


def test_torch_compile_runs_it_as_it_is():
    meta, tasks = regression(), regression_tasks()
    compiled = torch.compile(meta, backend="eager")
    assert torch.equal(compiled(tasks).loss, meta(tasks).loss)


@pytest.mark.parametrize("engine", ENGINES)
def test_first_order_never_comes_silently(engine):
    meta, tasks = regression(engine=engine), regression_tasks()
    inputs = list(meta.parameters())
    first = gradients(regression(meta.model, order=1, engine=engine), tasks, inputs)
    exact = gradients(meta, tasks, inputs)
    assert relative_error(first, exact) > 1e-3
    for loss in (meta(tasks).loss, meta.adapt(tasks.support_x, tasks.support_y)(tasks.query_x)):
        with pytest.raises(RuntimeError, match="reference"):
            torch.autograd.grad(loss.sum(), inputs, create_graph=True)


# ---- what cannot be asked for -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"inner_lr": -0.1}, ValueError, "not negative"),
        ({"inner_lr": math.inf}, ValueError, "finite"),
        ({"inner_lr": "fast"}, TypeError, "number"),
        ({"inner_steps": -1}, ValueError, "at least 0"),
        ({"inner_steps": True}, ValueError, "whole number"),
        ({"loss": "mae"}, ValueError, "mae"),
        ({"order": 0}, ValueError, "order must be 1 or 2"),
        ({"learn_inner_lr": "layer"}, ValueError, "learn_inner_lr"),
        ({"per_step_lr": True}, ValueError, "per_step_lr needs"),
        ({"adapt_parameters": ["3.weight"]}, ValueError, "the model has"),
        ({"adapt_parameters": "0.weight"}, TypeError, "several names"),
        ({"adapt_parameters": lambda name: False}, ValueError, "no parameter adapts"),
        ({"engine": "gpu"}, ValueError, "engine must be"),
        ({"precision": "fp8"}, ValueError, "precision must be one of"),
        ({"randomness": "same"}, ValueError, 'needs engine="vmap"'),
        ({"randomness": "other", "engine": "vmap"}, ValueError, "randomness must be"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, error, said):
    with pytest.raises(error, match=said):
        regression(**options)


def test_a_frozen_parameter_cannot_be_chosen():
    model = mlp([2, 2])
    model[0].bias.requires_grad_(False)
    with pytest.raises(ValueError, match="do not require grad"):
        regression(model, adapt_parameters=["0.bias"])


def test_something_else_than_a_module_and_tasks_is_refused():
    with pytest.raises(TypeError, match="model must be an nn.Module, not function"):
        fm.MAML(lambda x: x)
    with pytest.raises(TypeError, match=r"must be a TaskBatch\(.*\), not Tensor"):
        regression()(torch.zeros(1))
