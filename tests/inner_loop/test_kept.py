"""Steps whose graphs are kept for the backward, and the most memory that they may take."""

import pytest
import torch
from oracle import DOUBLE, assert_exact, classification_tasks, outer_loss, relative_error
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

import fastmeta as fm
from fastmeta.inner_loop import kept, recursion
from fastmeta.inner_loop.engines import vmap

ENGINES = ["layered", "vmap"]
STEPS = 3


def small_net():
    torch.manual_seed(1)
    layers = [nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)]
    return nn.Sequential(*layers).double()


def maml(engine, model=None, **options):
    options = {"inner_steps": STEPS, "inner_lr": 0.3, **options}
    return fm.MAML(small_net() if model is None else model, engine=engine, **options)


def keep(monkeypatch, steps):
    monkeypatch.setattr(recursion, "steps_to_keep", lambda *_: steps)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("steps", range(STEPS + 1))
def test_any_number_of_kept_steps_is_exact(monkeypatch, engine, steps):
    model = small_net()
    model[0].bias.requires_grad_(False)
    adapts = ["0.weight", "1.bias", "4.weight"]
    meta = maml(
        engine, model, learn_inner_lr="tensor", per_step_lr=True, adapt_parameters=adapts
    )
    drawn = classification_tasks([2, 6, 6])
    weight = torch.rand(3, 5, dtype=DOUBLE)
    tasks = fm.TaskBatch(
        drawn.support_x, drawn.support_y, drawn.query_x, drawn.query_y, support_weight=weight
    )
    inputs = [p for p in meta.parameters() if p.requires_grad]
    inputs += [t.requires_grad_() for t in (tasks.support_x, tasks.query_x, weight)]
    keep(monkeypatch, steps)
    assert_exact(meta, tasks, inputs)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_few_tasks_at_a_time_with_kept_steps_are_exact(monkeypatch, engine):
    forward = getattr(fm.inner_loop.engines, engine).__dict__[f"_{engine.upper()}"]
    few = forward._replace(at_once=lambda loop, x: 2)
    tasks = classification_tasks([2, 6, 6])
    meta = maml(engine)
    parameters = dict(meta.model.named_parameters())
    meta(tasks)
    loop = next(iter(meta._plans.values())).loop
    ours = recursion.meta_loss(few, loop, parameters, 0.3, tasks)[0]
    assert relative_error([ours], [meta(tasks).loss]) < 1e-12
    ours, right = (
        torch.autograd.grad(loss.sum(), list(parameters.values()))
        for loss in (ours, meta(tasks).loss)
    )
    assert relative_error(ours, right) < 1e-12


@pytest.fixture
def forwards(monkeypatch):
    """The numbers of tasks of which the vmap engine has run the forward, since it was cleared."""
    run, own = [], vmap.task_forward

    def noted(module, parameters, x, *rest):
        run.append(len(x))
        return own(module, parameters, x, *rest)

    monkeypatch.setattr(vmap, "task_forward", noted)
    return run


def test_a_backward_computes_no_kept_step_again(monkeypatch, forwards):
    meta, tasks = maml("vmap"), classification_tasks([2, 6, 6])
    for steps in (STEPS, 1):
        keep(monkeypatch, steps)
        loss = outer_loss(meta, tasks)
        forwards.clear()
        loss.backward()
        assert len(forwards) == STEPS - steps


@pytest.mark.parametrize("engine", ENGINES)
def test_graphs_beyond_the_budget_are_not_kept(monkeypatch, engine):
    meta, tasks = maml(engine), classification_tasks([2, 6, 6])
    asked = []
    own = recursion.steps_to_keep

    def asking(*arguments):
        asked.append(own(*arguments))
        return asked[-1]

    monkeypatch.setattr(recursion, "steps_to_keep", asking)
    meta(tasks)
    loop = next(iter(meta._plans.values())).loop
    (size,) = (size for key, (_, size) in loop.memory.items() if key[0] == "bytes of a step")
    for room in (0, 3 * size - 1, 3 * size, 8 * size, 9 * size, 90 * size):  # of 3 tasks
        monkeypatch.setattr(kept, "_MOST_BYTES", room)
        meta(tasks)
    assert asked == [3, 0, 0, 1, 2, 3, 3]
    with torch.no_grad():
        meta(tasks)
    meta.order = 1
    meta(tasks)
    assert asked[7:] == [0, 0]


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_step_keeps_is_measured(monkeypatch, engine):
    forward = getattr(fm.inner_loop.engines, engine).__dict__[f"_{engine.upper()}"]
    meta, sizes = maml(engine), {}
    tasks = classification_tasks([2, 6, 6], t=16, s=40)
    meta(tasks)
    loop = next(iter(meta._plans.values())).loop
    theta = {n: p.expand(16, *p.shape) for n, p in meta.model.named_parameters()}
    inputs = recursion.Inputs(theta, {}, 0.3, (tasks.support_x, tasks.support_y, None))

    given = [tasks.support_x, tasks.support_y, *meta.model.parameters()]

    def note(tensor):
        if all(tensor.data_ptr() != own.data_ptr() for own in given):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        kept.descend_keeping(forward, loop, inputs, STEPS - 1)
    right = sum(sizes.values())
    estimate = 16 * next(size for key, (_, size) in loop.memory.items() if len(key) == 3)
    assert 0.8 * right < estimate < 1.25 * right


def test_more_samples_are_measured_anew_and_fewer_are_not(forwards):
    meta, measured = maml("vmap"), []
    for samples in (4, 8, 6, 8):
        forwards.clear()
        meta(classification_tasks([2, 6, 6], s=samples))
        measured.append(forwards.count(2))
    assert measured == [1, 1, 0, 0]


def test_measuring_draws_no_random_numbers():
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    meta, tasks = maml("vmap", model.double(), randomness="same"), classification_tasks([2, 6, 6])
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        losses.append(meta(tasks).loss)
    assert torch.equal(*losses)


@pytest.mark.parametrize("engine", ENGINES)
def test_kept_graphs_serve_again_only_where_asked(engine):
    meta, tasks = maml(engine), classification_tasks([2, 6, 6])
    inputs = list(meta.parameters())
    loss = outer_loss(meta, tasks)
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("steps", [1, STEPS])
def test_higher_derivatives_of_kept_steps_are_refused(monkeypatch, engine, steps):
    keep(monkeypatch, steps)
    meta, tasks = maml(engine), classification_tasks([2, 6, 6])
    inputs = list(meta.parameters())
    with pytest.raises(RuntimeError, match="cannot be differentiated itself"):
        torch.autograd.grad(outer_loss(meta, tasks), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="is_grads_batched"):
        loss = meta(tasks).loss
        torch.autograd.grad(loss, inputs, torch.eye(3, dtype=DOUBLE), is_grads_batched=True)


class Energy(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x):
        return torch.func.vmap(torch.func.grad(lambda z: self.inner(z).squeeze(-1)))(x)


class Slope(Energy):
    def forward(self, x):
        return torch.func.jvp(self.inner, (x,), (torch.ones_like(x),))[1].expand_as(x)


@pytest.mark.parametrize("model", [Energy, Slope])
@pytest.mark.parametrize("most", [0, 256 << 20])
def test_torch_func_in_a_forward_is_measured_by_what_it_makes(model, most, monkeypatch):
    """Of what it saves for a backward nothing is to be seen."""
    monkeypatch.setattr(kept, "_MOST_BYTES", most)
    counted = []

    def counting(*args):
        counted.append(steps_to_keep(*args))
        return counted[-1]

    steps_to_keep = recursion.steps_to_keep
    monkeypatch.setattr(recursion, "steps_to_keep", counting)
    meta = maml("vmap", model().double(), loss="mse")
    x = torch.randn(3, 5, 2, dtype=DOUBLE).requires_grad_()
    y = torch.randn(3, 5, 2, dtype=DOUBLE)
    assert_exact(meta, fm.TaskBatch(x, y, x, y), [*meta.parameters(), x])
    assert {*counted} == {STEPS if most else 0}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("change", ["in place", "another"])
def test_buffers_that_change_before_the_backward(engine, change, monkeypatch):
    monkeypatch.setattr(kept, "_MOST_BYTES", 0)

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(2, 3), nn.BatchNorm1d(3)
            self.register_buffer("mask", torch.ones(3))

        def forward(self, x):
            return self.norm(self.layer(x) * self.mask)

    model, tasks = Masked().double(), classification_tasks((2,))
    loss = fm.MAML(model, inner_steps=2, engine=engine)(tasks).loss.mean()
    model.norm(torch.randn(4, 3, dtype=torch.float64))  # running statistics are nobody's here
    loss.backward(retain_graph=True)
    if change == "in place":
        model.mask.mul_(2)
    else:
        model.mask = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="the buffer 'mask' was changed|inplace operation"):
        loss.backward()
