"""The resident engine: the native kernels against the reference, in every form they have."""

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import (
    DOUBLE,
    assert_exact,
    assert_slope,
    outer_loss,
    regression_tasks,
    relative_error,
)
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop.reading.chain import chain_of
from fastmeta.models import Sine, mlp

pytestmark = pytest.mark.skipif(
    cpu.unavailable() is not None, reason=f"no native kernels: {cpu.unavailable()}"
)


ACTIVATIONS = [
    nn.ReLU(), nn.LeakyReLU(0.1), nn.Tanh(), nn.Sigmoid(), Sine(3.0), nn.GELU(),
    nn.GELU(approximate="tanh"), nn.Softplus(), nn.Softplus(2.0, 1.0), nn.Identity(), nn.SiLU(),
    nn.ELU(), nn.ELU(0.3), nn.SELU(), nn.Mish(), nn.ReLU6(), nn.Hardtanh(-0.3, 0.6),
]  # fmt: skip


@st.composite
def problems(draw):
    """(keyword arguments of MAML, widths, activation, bias, T, S, Q, ragged, frozen layers)"""
    widths = draw(st.lists(st.sampled_from([1, 2, 3, 7, 16, 19, 33]), min_size=2, max_size=5))
    learn = draw(st.sampled_from([None, "tensor", "element"]))
    return dict(
        widths=widths,
        activation=draw(st.sampled_from(ACTIVATIONS)),
        bias=draw(st.booleans()),
        ends_in_activation=draw(st.booleans()),
        loss=draw(st.sampled_from(["mse", "cross_entropy", "bce"])),
        tasks=draw(st.sampled_from([1, 2, 5, 9, 17, 33])),
        support=draw(st.sampled_from([1, 2, 6, 11])),
        query=draw(st.sampled_from([1, 3, 13])),
        ragged=draw(st.booleans()),
        frozen=draw(st.sampled_from([(), (0,), (1,), (0, 1)])),
        unadapted=draw(st.sampled_from([(), (0,), (1,), (3,)])),
        options=dict(
            inner_steps=draw(st.integers(0, 4)),
            order=draw(st.sampled_from([1, 2])),
            learn_inner_lr=learn,
            per_step_lr=learn is not None and draw(st.booleans()),
            inner_lr=0.1,
        ),
        seed=draw(st.integers(0, 1000)),
    )


def build(problem, dtype=DOUBLE):
    """The algorithm, its tasks, and all that gets a gradient."""
    torch.manual_seed(problem["seed"])
    model = network(problem["widths"], problem["activation"], problem["bias"]).to(dtype)
    if problem["ends_in_activation"]:
        model.append(nn.Sigmoid())  # not 0 at 0: padding must not show
    parameters = dict(model.named_parameters())
    for index, p in enumerate(parameters.values()):
        p.requires_grad_(index not in problem["frozen"])
    chosen = [
        name
        for index, (name, p) in enumerate(parameters.items())
        if p.requires_grad and index not in problem["unadapted"]
    ]
    options = dict(problem["options"])
    if not chosen:
        options["inner_steps"] = 0
    meta = fm.MAML(model, loss=problem["loss"], adapt_parameters=chosen, **options)
    if options["learn_inner_lr"]:
        with torch.no_grad():
            for rate in meta.inner_rates.values():
                rate.uniform_(0.01, 0.2)
    tasks, inputs = draw_tasks(problem, dtype)
    leaves = [*(p for p in meta.parameters() if p.requires_grad), *inputs]
    return meta, tasks, leaves


def network(widths, activation, bias=True):
    layers = []
    for i, o in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(i, o, bias=bias), activation]
    return nn.Sequential(*layers[:-1])


def draw_tasks(problem, dtype):
    t, widths = problem["tasks"], problem["widths"]

    def samples(n):
        x = torch.randn(t, n, widths[0], dtype=dtype, requires_grad=True)
        if problem["loss"] == "cross_entropy":
            return x, torch.randint(widths[-1], (t, n))
        return x, torch.rand(t, n, widths[-1], dtype=dtype)

    def weight(n):
        w = torch.rand(t, n, dtype=dtype) * (torch.rand(t, n) > 0.3)
        w[:, 0] += 0.5
        return w if problem["ragged"] else None

    s, q = problem["support"], problem["query"]
    support, query = samples(s), samples(q)
    return fm.TaskBatch(*support, *query, weight(s), weight(q)), [support[0], query[0]]


def outcome(meta, tasks, leaves):
    """Loss, predictions and every gradient."""
    out = meta(tasks)
    grads = torch.autograd.grad(
        outer_loss(meta, tasks), leaves, allow_unused=True, materialize_grads=True,
        retain_graph=True,  # padding was filled by operations that every call shares
    )  # fmt: skip
    return [out.loss.detach(), out.predictions.detach(), *grads]


@given(problems())
def test_float64_is_the_reference(problem):
    meta, tasks, leaves = build(problem)
    meta.engine = "resident"
    ours = outcome(meta, tasks, leaves)
    with fm.use_backend("reference"):
        meta.engine = "auto"
        right = outcome(meta, tasks, leaves)
    for value, expected in zip(ours, right, strict=True):
        assert torch.allclose(value, expected, rtol=1e-10, atol=1e-10 * scale(right))


@given(problems())
def test_float32_errs_at_most_twice_as_much_as_pytorch(problem):
    meta, tasks, leaves = build(problem, torch.float32)
    ours = outcome(meta, tasks, leaves)
    double, double_tasks, double_leaves = in_double(problem, meta, tasks)
    with fm.use_backend("reference"):
        pytorch = outcome(meta, tasks, leaves)
        right = outcome(double, double_tasks, double_leaves)
    # Next to nothing is as good as nothing: a few roundings of the largest gradient.
    floor = 8 * torch.finfo(torch.float32).eps
    assert relative_error(doubles(ours), right) <= floor + 2 * relative_error(
        doubles(pytorch), right
    )


def scale(values):
    return max(1.0, max(float(v.abs().max()) for v in values if v.numel()))


def doubles(values):
    return [v.double() for v in values]


def in_double(problem, meta, tasks):
    """The same numbers in float64."""
    double, _, _ = build(problem)
    double.load_state_dict({name: v.double() for name, v in meta.state_dict().items()})
    x = [t.detach().double().requires_grad_() for t in (tasks.support_x, tasks.query_x)]
    tasks = tasks.to(dtype=DOUBLE)
    tasks = fm.TaskBatch(
        x[0], tasks.support_y, x[1], tasks.query_y, tasks.support_weight, tasks.query_weight
    )
    return double, tasks, [*(p for p in double.parameters() if p.requires_grad), *x]


def plain(widths=(2, 19, 3), tasks=9, loss="mse", **options):
    """A plain problem: (meta, tasks, leaves)."""
    options = {"inner_steps": 2, "order": 2, "learn_inner_lr": None, "inner_lr": 0.1} | options
    problem = dict(
        widths=list(widths), activation=nn.Tanh(), bias=True, ends_in_activation=False, loss=loss,
        tasks=tasks, support=6,
        query=4, ragged=False, frozen=(), unadapted=(), options=options, seed=0,
    )  # fmt: skip
    return build(problem)


@pytest.mark.parametrize("tasks", [3, 33])
@pytest.mark.parametrize("first", [nn.ReLU(), Sine(3.0), nn.GELU()])
@pytest.mark.parametrize(
    "second", [nn.LeakyReLU(0.1), nn.Tanh(), Sine(2.0), nn.Softplus(), nn.ELU(), nn.Hardtanh()]
)
def test_an_activation_of_an_activation(first, second, tasks):
    meta, batch, leaves = plain((2, 7, 3), tasks, learn_inner_lr="element")
    meta.model[1] = nn.Sequential(first, second, nn.Tanh())
    meta.engine = "resident"
    ours = outcome(meta, batch, leaves)
    with fm.use_backend("reference"):
        meta.engine = "auto"
        right = outcome(meta, batch, leaves)
    for value, expected in zip(ours, right, strict=True):
        assert torch.allclose(value, expected, rtol=1e-10, atol=1e-10 * scale(right))


@pytest.mark.parametrize("tasks", [2, 19])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_every_activation_is_exact(activation, tasks):
    torch.manual_seed(0)
    model = network([2, 7, 5, 2], activation).double()
    meta = fm.MAML(model, inner_steps=2, inner_lr=0.1, loss="mse", engine="resident")
    batch = regression_tasks(tasks)
    for x in (batch.support_x, batch.query_x):
        x.mul_(3).requires_grad_()  # both sides of each bend
    assert_exact(meta, batch, [*model.parameters(), batch.support_x, batch.query_x])


@pytest.mark.parametrize("tasks", [3, 33])
def test_every_instruction_set_gives_the_reference(variant, tasks):
    meta, batch, leaves = plain(tasks=tasks, learn_inner_lr="element")
    ours = outcome(meta, batch, leaves)
    with fm.use_backend("reference"):
        right = outcome(meta, batch, leaves)
    assert relative_error(ours, right) < 1e-12


@pytest.mark.parametrize("tasks", [2, 20])
@pytest.mark.parametrize("widths", [(600, 3), (2, 300, 3)])
def test_products_that_are_summed_in_pieces(variant, widths, tasks):
    meta, batch, leaves = plain(widths=widths, tasks=tasks, inner_lr=0.01)
    ours = outcome(meta, batch, leaves)
    with fm.use_backend("reference"):
        right = outcome(meta, batch, leaves)
    assert relative_error(ours, right) < 1e-12


@pytest.mark.parametrize("tasks", [2, 20])
def test_gradcheck(tasks):
    meta, batch, leaves = plain(widths=(1, 3, 2), tasks=tasks, learn_inner_lr="tensor")
    assert_slope(lambda: outer_loss(meta, batch), leaves)
    parameters = dict(meta.model.named_parameters())

    def loss_of(*values):
        with torch.nn.utils.stateless._reparametrize_module(
            meta.model, dict(zip(parameters, values, strict=True))
        ):
            return meta(batch).loss

    values = tuple(p.detach().clone().requires_grad_() for p in parameters.values())
    assert torch.autograd.gradcheck(loss_of, values)


def test_a_graph_of_the_backward_is_refused_and_the_way_out_works():
    meta, tasks, leaves = plain()
    with pytest.raises(RuntimeError, match="use_backend"):
        torch.autograd.grad(meta(tasks).loss.sum(), leaves, create_graph=True, allow_unused=True)
    with fm.use_backend("reference"):
        loss = meta(tasks).loss.sum()
        first = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
    assert all(g.requires_grad for g in first if g is not None)


@pytest.mark.parametrize("tasks", [1, 5, 40])
def test_the_number_of_threads_changes_no_bit(tasks):
    meta, batch, leaves = plain(tasks=tasks, learn_inner_lr="element", per_step_lr=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = outcome(meta, batch, leaves)
        torch.set_num_threads(2)
        two = outcome(meta, batch, leaves)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)


def test_fast_weights_are_differentiable_end_to_end():
    meta, tasks, leaves = plain()

    def value():
        adapted = meta.adapt(tasks.support_x, tasks.support_y)
        return (adapted(tasks.query_x) ** 2).sum() + sum(
            p.sin().sum() for p in adapted.parameters.values()
        )

    ours = torch.autograd.grad(value(), leaves)
    with fm.use_backend("reference"):
        right = torch.autograd.grad(value(), leaves)
    assert relative_error(ours, right) < 1e-12


def test_parameters_with_a_task_dimension():
    module = network([2, 5, 1], nn.Tanh()).to(DOUBLE)
    own = dict(module.named_parameters())
    per_task = {
        n: torch.randn(4, *p.shape, dtype=DOUBLE, requires_grad=True) for n, p in own.items()
    }
    mixed = {**own, "0.weight": per_task["0.weight"], "2.bias": per_task["2.bias"]}
    x, y = torch.randn(4, 6, 2, dtype=DOUBLE), torch.randn(4, 6, 1, dtype=DOUBLE)

    def grads(parameters):
        fast = fm.functional.inner_sgd(
            module, parameters, x, y, lr=0.1, steps=3, loss="mse", order=2
        )
        return torch.autograd.grad(sum(f.sin().sum() for f in fast.values()), parameters.values())

    for parameters in (per_task, mixed):
        ours = grads(parameters)
        with fm.use_backend("reference"):
            assert relative_error(ours, grads(parameters)) < 1e-12


def test_strided_tensors_are_read_as_they_are():
    meta, tasks, leaves = plain()
    turned = fm.TaskBatch(
        *(
            t.detach().transpose(0, 2).contiguous().transpose(0, 2)
            for t in (tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)
        )
    )
    assert not turned.support_x.is_contiguous()
    meta.model[0].weight.data = meta.model[0].weight.data.T.contiguous().T
    assert torch.equal(meta(turned).loss, meta(tasks).loss)


def test_tensors_that_a_hook_moves_are_found_again():
    meta, tasks, leaves = plain()
    right = torch.autograd.grad(meta(tasks).loss.sum(), leaves)

    def elsewhere(tensor):
        return tensor.detach().numpy().copy()

    with torch.autograd.graph.saved_tensors_hooks(elsewhere, torch.from_numpy):
        loss = meta(tasks).loss.sum()
    gc.collect()
    for ours, expected in zip(torch.autograd.grad(loss, leaves), right, strict=True):
        assert torch.equal(ours, expected)


def test_a_parameter_changed_between_forward_and_backward_is_an_error():
    meta, tasks, _ = plain()
    loss = meta(tasks).loss.sum()
    with torch.no_grad():
        meta.model[0].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_one_task_that_diverges_leaves_the_others_alone():
    meta, tasks, _ = plain(tasks=5, inner_lr=0.1)
    with torch.no_grad():
        tasks.support_x[2] = float("nan")
        loss = meta(tasks).loss
    assert loss[2].isnan() and loss[[0, 1, 3, 4]].isfinite().all()


def test_memory_grows_with_the_steps_by_the_fast_weights_alone():
    meta, tasks, _ = plain(tasks=64)
    size = sum(p.numel() for p in meta.model.parameters())

    def kept(steps):
        return meta(tasks, inner_steps=steps).loss.grad_fn.record.bytes

    a_step = (kept(50) - kept(5)) / 45
    assert a_step <= 1.3 * 64 * size * 8  # rows are padded to whole vectors


@pytest.mark.parametrize(
    "module, reason",
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Softsign()), "Softsign"),
        (nn.Sequential(nn.Linear(2, 2), nn.ELU(-0.1)), "ELU"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "BatchNorm1d"),
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 3)), "2 inputs but gets 3"),
        (nn.Sequential(nn.ReLU()), "no linear layer"),
        (nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(-0.1)), "LeakyReLU"),
    ],
)
def test_what_is_no_chain_is_said(module, reason):
    assert reason in chain_of(module)


def test_tied_layers_are_no_chain():
    layer = nn.Linear(2, 2)
    assert "share parameters" in chain_of(nn.Sequential(layer, nn.ReLU(), layer))


def test_nested_chains_with_idle_layers_are_chains():
    inner = nn.Sequential(nn.Dropout(0.5).eval(), nn.Linear(8, 3), nn.Identity())
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), inner)
    chain = chain_of(module)
    assert chain.names == ("1.weight", "1.bias", "3.1.weight", "3.1.bias")
    assert chain.flattens and chain.outputs == 3
    meta = fm.MAML(module, loss="mse", engine="resident")
    x, y = torch.randn(3, 5, 2, 2), torch.randn(3, 5, 3)
    with torch.no_grad():
        ours = meta(fm.TaskBatch(x, y, x, y)).loss
        with fm.use_backend("reference"):
            meta.engine = "auto"
            assert torch.allclose(ours, meta(fm.TaskBatch(x, y, x, y)).loss)


def test_a_wrapper_that_torch_func_left_is_a_tensor_like_any_other():
    meta = fm.MAML(nn.Sequential(nn.Linear(2, 3)), inner_lr=0.1, inner_steps=1, loss="mse")
    x = [torch.randn(2, 5, features) for features in (2, 3, 2, 3)]
    left = []
    torch.func.grad(lambda z: (left.append(z), z.sum())[1])(x[0])
    right, found = (meta(fm.TaskBatch(first, *x[1:])).loss for first in (x[0], left[0]))
    assert torch.equal(found, right)
    found.sum().backward()


def test_saved_tensors_may_come_back_as_a_subclass():
    class Kept(torch.Tensor):
        pass

    meta = fm.MAML(nn.Sequential(nn.Linear(2, 3)), inner_lr=0.1, inner_steps=1, loss="mse")
    tasks = fm.TaskBatch(*[torch.randn(2, 5, features) for features in (2, 3, 2, 3)])
    right = torch.autograd.grad(meta(tasks).loss.sum(), list(meta.parameters()))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.as_subclass(Kept)):
        loss = meta(tasks).loss.sum()
    found = torch.autograd.grad(loss, list(meta.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


def test_autocast_is_for_engines_that_heed_it():
    model, tasks = mlp([2, 8, 2]), regression_tasks().to(dtype=torch.float32)
    meta = fm.MAML(model, loss="mse", inner_lr=0.1)
    assert fm.explain(meta, tasks).name == "resident"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        choice = fm.explain(meta, tasks)
        found = meta(tasks).predictions
        wanted = fm.MAML(model, loss="mse", inner_lr=0.1, engine="reference")(tasks).predictions
        with pytest.raises(ValueError, match="autocast is on"):
            fm.MAML(model, loss="mse", engine="resident")(tasks)
    assert "autocast is on" in choice.passed_over["resident"]
    assert found.dtype is wanted.dtype is torch.bfloat16
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)
