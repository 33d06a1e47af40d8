"""What changes between two calls, or between forward and backward, is seen or refused."""

import copy
import functools
import pickle

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from oracle import (
    DOUBLE,
    assert_exact,
    classification_tasks,
    gradients,
    regression_tasks,
    relative_error,
)
from torch import nn

import fastmeta as fm


def regression():
    model = fm.models.mlp([2, 8, 2], "tanh").double()
    return model, fm.MAML(model, loss="mse", inner_lr=0.1), regression_tasks()


def test_another_model():
    _, meta, tasks = regression()
    before = meta(tasks).loss
    meta.model = fm.models.mlp([2, 8, 2], "tanh").double()
    assert not torch.allclose(meta(tasks).loss, before)
    assert_exact(meta, tasks)


def turn_into_sigmoid(layer):
    layer.__class__ = nn.Sigmoid


def replace_forward(layer):
    layer.forward = torch.sigmoid


def hook_backward(layer):
    layer.register_full_backward_hook(lambda module, inner, outer: (3 * inner[0],))


def hook_before_backward(layer):
    layer.register_full_backward_pre_hook(lambda module, outer: (3 * outer[0],))


BACKWARD_HOOKS = [hook_backward, hook_before_backward]


@pytest.mark.parametrize("change", [turn_into_sigmoid, replace_forward, *BACKWARD_HOOKS])
@pytest.mark.parametrize("used_before", [True, False])
def test_another_layer(change, used_before):
    model, meta, tasks = regression()
    if used_before:
        meta(tasks)
    change(model[1])
    assert meta.choice().name != "resident" or change is turn_into_sigmoid
    assert_exact(meta, tasks)


@pytest.mark.parametrize("hook", BACKWARD_HOOKS)
def test_only_the_reference_runs_backward_hooks(hook):
    model, meta, tasks = regression()
    hook(model[1])
    choice = meta.choice()
    assert choice.name == "reference"
    for engine in ("resident", "layered", "vmap"):
        assert "layer '1' (Tanh) has backward hooks" in choice.passed_over[engine]
    with pytest.raises(ValueError, match=r"\(Tanh\) has backward hooks"):
        fm.MAML(model, loss="mse", engine="vmap")(tasks)


def of_tanh(hook):
    """A global hook is called for the learner, too."""
    return lambda module, *args: hook(*args) if isinstance(module, nn.Tanh) else None


@pytest.mark.filterwarnings("ignore:.*For backward hooks to be called")
@pytest.mark.filterwarnings("ignore:.*Full backward hook is firing")
@pytest.mark.parametrize(
    ("register", "hook"),
    [
        ("register_module_forward_hook", of_tanh(lambda x, y: 2 * y)),
        ("register_module_forward_pre_hook", of_tanh(lambda x: (2 * x[0],))),
        ("register_module_full_backward_hook", of_tanh(lambda inner, outer: (2 * inner[0],))),
        ("register_module_full_backward_pre_hook", of_tanh(lambda outer: (2 * outer[0],))),
    ],
)
def test_global_hooks_that_come_and_go_between_calls(register, hook):
    model, meta, tasks = regression()
    before = gradients(meta, tasks, [*model.parameters()])
    handle = getattr(nn.modules.module, register)(hook)
    try:
        during = gradients(meta, tasks, [*model.parameters()])
        assert_exact(meta, tasks)
    finally:
        handle.remove()
    assert relative_error(during, before) > 1e-3
    after = gradients(meta, tasks, [*model.parameters()])
    assert relative_error(after, before) == 0


def test_global_hooks_are_called():
    model, meta, tasks = regression()
    hook = nn.modules.module.register_module_forward_hook(lambda module, x, y: 2 * y)
    try:
        assert meta.choice().name == "vmap"
    finally:
        hook.remove()
    assert meta.choice().name == "resident"


def replace_parameters(layer, values):
    layer._parameters = values


def set_state(layer, values):
    layer.__setstate__({"_parameters": values})


def replace_dict(layer, values):
    layer.__dict__ = {**layer.__dict__, "_parameters": values}


@pytest.mark.parametrize("change", [replace_parameters, set_state, replace_dict])
def test_parameters_that_are_replaced_as_a_whole(change):
    model, meta, tasks = regression()
    before = meta(tasks).loss
    change(model[0], {k: nn.Parameter(3 * p.detach()) for k, p in model[0]._parameters.items()})
    assert not torch.allclose(meta(tasks).loss, before)
    assert_exact(meta, tasks)


@pytest.mark.parametrize("kind", [tuple, list])
def test_an_attribute_of_tensors_is_replaced(kind):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.scales = kind([torch.tensor([1.0, 2.0], dtype=DOUBLE)])

        def forward(self, x):
            return self.layer(x) * self.scales[0]

    model = Scaled().double()
    meta, tasks = fm.MAML(model, loss="mse", inner_lr=0.1), regression_tasks()
    before = meta(tasks).loss
    model.scales = kind([torch.tensor([3.0, 1.0], dtype=DOUBLE)])
    assert not torch.allclose(meta(tasks).loss, before)
    assert_exact(meta, tasks)


def test_an_attribute_that_goes_away():
    model, meta, tasks = regression()
    model.note = "here"
    before = meta(tasks).loss
    del model.note
    assert torch.equal(meta(tasks).loss, before)


@pytest.mark.parametrize("name", ["support_y", "query_y", "support_weight", "query_weight"])
def test_targets_changed_before_the_backward(name):
    torch.manual_seed(0)
    _, meta, _ = regression()
    tasks = regression_tasks(
        support_weight=torch.rand(3, 5, dtype=DOUBLE) + 1,
        query_weight=torch.rand(3, 4, dtype=DOUBLE) + 1,
    )
    loss = meta(tasks).loss.sum()
    getattr(tasks, name).fill_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", ["support_x", "support_y", "query_x", "query_y"])
def test_a_batch_that_shrinks_after_its_checks(name):
    """A call that is known by its looks must not read where a tensor has no numbers any more."""
    _, meta, tasks = regression()
    meta(tasks)
    tensor = getattr(tasks, name)
    tensor.resize_(tensor.shape[0], tensor.shape[1] - 1, tensor.shape[2])
    with pytest.raises((TypeError, ValueError), match=name[:7]):
        meta(tasks)


def test_labels_changed_in_place_are_checked_again():
    model = nn.Sequential(nn.Linear(2, 3)).double()
    meta, tasks = fm.MAML(model), classification_tasks([2])
    meta(tasks)
    tasks.support_y[0, 0] = 99
    with pytest.raises(ValueError, match="support_y has labels"):
        meta(tasks)


@pytest.mark.parametrize("name", ["support_y", "query_y"])
@pytest.mark.parametrize("label", [-1, 3, 2**40, -(2**63)])
@pytest.mark.parametrize("tasks", [3, 21])
def test_labels_changed_unseen_make_their_task_s_loss_nan(tasks, label, name):
    batch = classification_tasks([2], tasks)
    model = fm.models.mlp([2, 5, 3]).double()
    meta = fm.MAML(model, inner_steps=2, engine="resident")
    before = meta(batch).loss
    getattr(batch, name).numpy()[1, -1] = label
    after = meta(batch).loss
    assert after[1].isnan()
    assert torch.equal(torch.cat([after[:1], after[2:]]), torch.cat([before[:1], before[2:]]))
    (gradient, *_) = torch.autograd.grad(after[1], [*meta.parameters()])
    assert gradient.isnan().any()


def test_a_batch_cannot_be_changed_but_copied():
    tasks = regression_tasks()
    with pytest.raises(AttributeError, match="make a new one"):
        tasks.query_y = tasks.query_y.float()
    for other in (copy.deepcopy(tasks), pickle.loads(pickle.dumps(tasks))):
        assert torch.equal(other.query_y, tasks.query_y)


def test_targets_of_another_dtype_than_the_features():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3))
    meta = fm.MAML(model, loss="mse", adapt_parameters=["2.weight", "2.bias"])
    x, y = torch.randint(5, (3, 4, 2)), torch.randn(3, 4, 3, dtype=DOUBLE)
    with pytest.raises(TypeError, match="float64"):
        meta(fm.TaskBatch(x, y, x, y))


def test_rates_of_another_dtype():
    meta, tasks = fm.MetaSGD(fm.models.mlp([2, 2]), loss="mse"), regression_tasks()
    tasks = tasks.to(dtype=torch.float32)
    meta(tasks)
    meta.inner_rates.double()
    with pytest.raises(TypeError, match="float64"):
        meta(tasks)


def test_a_rate_that_is_no_rate_any_more():
    _, meta, tasks = regression()
    meta(tasks)
    meta.inner_lr = float("nan")
    with pytest.raises(ValueError, match="finite"):
        meta(tasks)
    meta.inner_lr = torch.tensor(0.1)
    with pytest.raises(TypeError, match="number"):
        meta(tasks)


def test_a_frequency_that_is_a_tensor_is_not_frozen_into_a_kernel():
    model = nn.Sequential(nn.Linear(2, 4), fm.models.Sine(2.0), nn.Linear(4, 2)).double()
    model[1].frequency = torch.tensor(2.0, dtype=DOUBLE)
    meta, tasks = fm.MAML(model, loss="mse"), regression_tasks()
    before = meta(tasks).loss
    model[1].frequency.fill_(3.0)
    assert not torch.allclose(meta(tasks).loss, before)


@pytest.mark.parametrize("engine", ["auto", "vmap"])
def test_tied_layers(engine):
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    model[2].weight = model[0].weight
    assert_exact(fm.MAML(model, loss="mse", engine=engine), regression_tasks())


def test_forward_mode_is_refused():
    _, meta, tasks = regression()
    with forward_ad.dual_level(), torch.no_grad(), pytest.raises(RuntimeError, match="jvp"):
        meta(tasks)


@pytest.mark.parametrize("call", ["forward", "adapt"])
def test_a_closure_tensor_that_comes_to_require_grad(call):
    """A plan made before would leave out the terms through it."""
    factor = torch.tensor(2.0, dtype=DOUBLE)

    def loss(predictions, targets):
        return factor * ((predictions - targets) ** 2).mean()

    meta = fm.MAML(fm.models.mlp([2, 4, 2], "tanh").double(), loss=loss, inner_lr=0.1)
    tasks = regression_tasks()

    def value():
        if call == "forward":
            return meta(tasks).loss.sum()
        return meta.adapt(tasks.support_x, tasks.support_y)(tasks.query_x).sin().sum()

    value()
    factor.requires_grad_()
    (ours,) = torch.autograd.grad(value(), [factor])
    with fm.use_backend("reference"):
        (right,) = torch.autograd.grad(value(), [factor])
    assert right != 0 and torch.allclose(ours, right, rtol=1e-12)


@pytest.mark.parametrize("engine", ["resident", "layered", "vmap"])
def test_a_batch_of_gradients_is_refused(engine):
    model, meta, tasks = regression()
    meta.engine = engine
    loss = meta(tasks).loss
    with pytest.raises(RuntimeError, match="one gradient at a time"):
        torch.autograd.grad(
            loss, [*model.parameters()], torch.eye(len(loss), dtype=DOUBLE), is_grads_batched=True
        )


def test_torch_func_says_what_works_instead():
    _, meta, tasks = regression()
    with pytest.raises(RuntimeError, match="loss.backward"):
        torch.func.grad(lambda x: (meta(tasks).loss * x).sum())(torch.ones(3, dtype=DOUBLE))


def test_a_compiled_training_step_gives_the_same_gradients():
    model, meta, tasks = regression()

    def step():
        return (meta(tasks).loss ** 2).mean()

    right = torch.autograd.grad(step(), [*model.parameters()])
    compiled = torch.compile(step, backend="aot_eager")
    for _ in range(2):
        ours = torch.autograd.grad(compiled(), [*model.parameters()])
        for value, expected in zip(ours, right, strict=True):
            assert torch.allclose(value, expected, rtol=1e-12)


def test_a_batch_made_in_a_compiled_step_gives_no_warning(recwarn):
    _, meta, tasks = regression()

    def loss(*tensors):
        return meta(fm.TaskBatch(*tensors)).loss

    tensors = tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y
    compiled = torch.compile(loss, backend="aot_eager")
    assert torch.equal(compiled(*tensors), loss(*tensors))
    assert not [each for each in recwarn if "Dynamo" in str(each.message)]


@pytest.mark.parametrize("below", [True, False], ids=["below", "above"])
def test_backward_hooks_are_called_in_every_part_of_a_step(below):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    meta = fm.MAML(
        network, inner_lr=0.1, inner_steps=2, loss="mse",
        adapt_parameters=lambda name: name.startswith("4."),
    )  # fmt: skip
    network[1 if below else 3].register_full_backward_hook(lambda m, gi, go: (gi[0] * 2,))
    x = [torch.randn(3, 5, features) for features in (2, 1, 2, 1)]

    def gradients(loss):
        return torch.autograd.grad(loss, list(network.parameters()))

    found = gradients(meta(fm.TaskBatch(*x)).loss.sum())
    with fm.use_backend("reference"):
        right = gradients(meta(fm.TaskBatch(*x)).loss.sum())
    torch.testing.assert_close(found, right)
    adapted = meta.adapt(x[0], x[1])
    found = gradients((adapted(x[2]) - x[3]).square().mean((1, 2)).sum())
    torch.testing.assert_close(found, right)


class Ends(nn.Module):
    """A linear layer and a function of Python's."""

    def __init__(self, end):
        super().__init__()
        self.linear = nn.Linear(3, 2, dtype=DOUBLE)
        self.end = end

    def forward(self, x):
        return self.end(self.linear(x).exp())


def times(factor):
    return lambda x: factor * x


class Scale:
    factor = 1.0

    def apply(self, x):
        return self.factor * x


def test_functions_that_follow_each_other_at_one_address():
    x, y = torch.randn(4, 2, 5, 3, dtype=DOUBLE), torch.randn(4, 2, 5, 2, dtype=DOUBLE)
    tasks = fm.TaskBatch(x[0], y[0], x[1], y[1])
    model = Ends(times(1.0))
    meta = fm.MAML(model, loss="mse", inner_lr=0.001)
    for factor in range(20):
        model.end = None
        model.end = times(float(factor))
        assert torch.equal(meta(tasks).loss, fm.MAML(model, loss="mse", inner_lr=0.001)(tasks).loss)


def closing_over(scale):
    return lambda x: scale.factor * x


@pytest.mark.parametrize("function", [lambda scale: scale.apply, closing_over])
def test_what_a_function_reads_from_its_object_may_change(function):
    x, y = torch.randn(4, 2, 5, 3, dtype=DOUBLE), torch.randn(4, 2, 5, 2, dtype=DOUBLE)
    tasks, scale = fm.TaskBatch(x[0], y[0], x[1], y[1]), Scale()
    model = Ends(function(scale))
    meta = fm.MAML(model, loss="mse")
    before = meta(tasks).loss
    scale.factor = 0.1
    after = meta(tasks).loss
    assert not torch.equal(before, after)
    assert torch.equal(after, fm.MAML(model, loss="mse")(tasks).loss)


SCALE = Scale()


class ScaledAround(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return SCALE.factor * self.layer(x)


def test_an_object_may_get_what_its_class_has(monkeypatch):
    x, y = torch.randn(4, 2, 5, 3), torch.randn(4, 2, 5, 2)
    tasks, model = fm.TaskBatch(x[0], y[0], x[1], y[1]), ScaledAround()
    meta = fm.MAML(model, loss="mse")
    before = meta(tasks).loss
    monkeypatch.setitem(vars(SCALE), "factor", 0.1)
    after = meta(tasks).loss
    assert not torch.equal(before, after)
    assert torch.equal(after, fm.MAML(model, loss="mse")(tasks).loss)


class Schedule:
    def __init__(self):
        self.t = 1.0

    def apply(self, x):
        return self.t * x

    @property
    def scale(self):
        return self.t

    def __call__(self, x):
        return self.apply(x)

    def __getitem__(self, key):
        return self.t


SCHEDULE, CONSTANT = Schedule(), Schedule()
HELD = {"scale": 1.0, "w": torch.ones(2), "o": object()}
NESTED = {"a": {"f": [lambda x: SCHEDULE.t * x]}}

AROUND = {
    "a method": lambda x: SCHEDULE.apply(x),
    "a property": lambda x: SCHEDULE.scale * x,
    "one of two objects": lambda x: CONSTANT.apply(x) + SCHEDULE.apply(x),
    "a call": lambda x: SCHEDULE(x),
    "an item": lambda x: SCHEDULE[0] * x,
    "a dict with what cannot be frozen": lambda x: HELD["scale"] * x,
    "a function in containers": lambda x: NESTED["a"]["f"][0](x),
    "a partial's function": functools.partial(lambda f, x: f(x), lambda x: SCHEDULE.t * x),
}


@pytest.mark.parametrize("engine", ["auto", "layered"])
@pytest.mark.parametrize("name", AROUND)
def test_what_objects_and_containers_hold_is_watched(name, engine, monkeypatch):
    x, y = torch.randn(4, 2, 5, 3), torch.randn(4, 2, 5, 2)
    tasks, model = fm.TaskBatch(x[0], y[0], x[1], y[1]), Ends(AROUND[name]).float()
    meta = fm.MAML(model, loss="mse", engine=engine)
    before = meta(tasks).loss
    monkeypatch.setattr(SCHEDULE, "t", 0.1)
    monkeypatch.setitem(HELD, "scale", 0.1)
    after = meta(tasks).loss
    assert not torch.equal(before, after)
    with fm.use_backend("reference"):
        torch.testing.assert_close(after, meta(tasks).loss)


def test_a_function_s_closure_is_watched():
    x, y = torch.randn(4, 2, 5, 3, dtype=DOUBLE), torch.randn(4, 2, 5, 2, dtype=DOUBLE)
    tasks, factor = fm.TaskBatch(x[0], y[0], x[1], y[1]), 1.0
    meta = fm.MAML(Ends(lambda x: factor * x), loss="mse")
    before = meta(tasks).loss
    factor = 0.1
    assert not torch.equal(before, meta(tasks).loss)


@pytest.mark.parametrize("engine", ["resident", "layered", "vmap"])
def test_fast_weights_of_no_steps_are_no_views_of_the_model(engine):
    model = nn.Sequential(nn.Linear(3, 2))
    before = model[0].weight.detach().clone()
    adapted = fm.MAML(model, loss="mse", inner_steps=0, engine=engine).adapt(
        torch.randn(1, 4, 3), torch.randn(1, 4, 2)
    )
    adapted.parameters["0.weight"].detach().add_(1)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("engine", ["resident", "layered"])
def test_the_rate_of_a_large_weight_has_the_same_bits_for_any_number_of_threads(engine):
    model = nn.Sequential(nn.Linear(784, 64))
    meta = fm.MAML(model, loss="mse", learn_inner_lr="tensor", engine=engine)
    x, y = torch.randn(2, 7, 5, 784), torch.randn(2, 7, 5, 64)
    tasks, before, gradients = fm.TaskBatch(x[0], y[0], x[1], y[1]), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            meta.zero_grad()
            meta(tasks).loss.mean().backward()
            gradients.append(torch.cat([rate.grad.flatten() for rate in meta.inner_rates.values()]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.memory, self.out = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.memory(x)[0][:, -1])


def test_the_reference_runs_what_vmap_cannot_to_the_end():
    x, y = torch.randn(3, 6, 7, 4), torch.randn(3, 6, 3)
    tasks = fm.TaskBatch(x, y, x, y)
    with fm.use_backend("reference"):
        meta = fm.MAML(Recurrent(), loss="mse")
        predictions = meta.adapt(x, y)(x)
        assert torch.allclose(predictions, meta(tasks).predictions)
        reptile = fm.Reptile(meta.model, loss="mse", inner_steps=1)
        assert torch.allclose(reptile(tasks).loss, meta(tasks).loss)
