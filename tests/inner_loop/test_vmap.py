"""The vmap engine against the reference in float64, and what it must refuse."""

import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import (
    DOUBLE,
    assert_exact,
    assert_slope,
    classification_tasks,
    gradients,
    outer_loss,
    regression_tasks,
)
from torch import nn

import fastmeta as fm
from fastmeta.inner_loop import kept
from fastmeta.models import Sine, mlp

REFERENCE = 'use_backend\\("reference"\\)'


def maml(model, **options):
    options = {"engine": "vmap", "inner_steps": 3, "inner_lr": 0.3, "loss": "mse", **options}
    return fm.MAML(model.double(), **options)


def with_inputs(meta, tasks):
    tasks.support_x.requires_grad_()
    tasks.query_x.requires_grad_()
    return [*(p for p in meta.parameters() if p.requires_grad), tasks.support_x, tasks.query_x]


# ---- norms -------------------------------------------------------------------------------------

NORMS = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(4),
    "BatchNorm2d plain": lambda: nn.BatchNorm2d(4, affine=False, track_running_stats=False),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(4, affine=True),
    "InstanceNorm2d tracking": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "LayerNorm": lambda: nn.LayerNorm([4, 4, 4]),
}


def conv_net(norm):
    torch.manual_seed(1)
    layers = [nn.Conv2d(2, 4, 3), NORMS[norm](), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(16, 3)).double()
    for layer in model:
        if getattr(layer, "weight", None) is not None and layer.weight.dim() == 1:
            nn.init.normal_(layer.weight, 1, 0.5), nn.init.normal_(layer.bias)
    return model


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_norms_are_exact_at_second_order(norm, training):
    meta = maml(conv_net(norm).train(training), loss="cross_entropy", learn_inner_lr="tensor")
    tasks = classification_tasks([2, 6, 6])
    assert_exact(meta, tasks, with_inputs(meta, tasks))


@pytest.mark.parametrize("norm", NORMS)
def test_norms_agree_with_finite_differences(norm):
    meta, tasks = maml(conv_net(norm), loss="cross_entropy"), classification_tasks([2, 6, 6])
    assert_slope(lambda: outer_loss(meta, tasks), with_inputs(meta, tasks), step=1e-6)


def test_one_dimensional_norms():
    for norm in (nn.BatchNorm1d(6), nn.LayerNorm(6)):
        model = nn.Sequential(nn.Linear(2, 6), norm, nn.Tanh(), nn.Linear(6, 3))
        meta, tasks = maml(model, loss="cross_entropy"), classification_tasks([2])
        assert_exact(meta, tasks, with_inputs(meta, tasks))


def test_a_bias_before_batch_norm_has_no_meta_gradient():
    model = conv_net("BatchNorm2d")
    meta, tasks = maml(model, loss="cross_entropy"), classification_tasks([2, 6, 6])
    bias, weight = gradients(meta, tasks, [model[0].bias, model[0].weight])
    assert bias.abs().max() < 1e-13 < 1e-3 < weight.abs().max()


def test_buffers_stay_as_they_are():
    model = conv_net("BatchNorm2d").train()
    before = {name: b.clone() for name, b in model.named_buffers()}
    meta, tasks = maml(model, loss="cross_entropy"), classification_tasks([2, 6, 6])
    outer_loss(meta, tasks).backward()
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())


# ---- other modules -----------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, multihead):
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True) if multihead else None
        self.project = nn.Linear(4, 12)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        if self.attend is not None:
            mixed = self.attend(x, x, x, need_weights=False)[0]
        else:
            mixed = F.scaled_dot_product_attention(*self.project(x).chunk(3, -1))
        return self.head(mixed.mean(1))


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("multihead", [True, False])
def test_attention_is_exact_at_second_order(multihead, training):
    meta = maml(Attention(multihead).train(training), loss="cross_entropy")
    tasks = classification_tasks([5, 4])
    assert_exact(meta, tasks, with_inputs(meta, tasks))
    assert_slope(lambda: outer_loss(meta, tasks), [*meta.parameters()], step=1e-6)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(2, 3), nn.Linear(2, 3)
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return (self.encode(x).tanh() + self.decode(x)) @ self.decode.weight


def test_tied_parameters_are_one_parameter():
    meta, tasks = maml(Tied(), inner_lr=0.05), regression_tasks()
    assert len(list(meta.parameters())) == 3
    assert_exact(meta, tasks)
    assert_slope(lambda: outer_loss(meta, tasks), list(meta.parameters()))


def test_frozen_parameters_neither_adapt_nor_learn():
    model = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    meta, tasks = maml(model), regression_tasks()
    assert_exact(meta, tasks, with_inputs(meta, tasks))
    adapted = meta.adapt(tasks.support_x, tasks.support_y).parameters
    assert adapted["0.weight"] is model[0].weight and adapted["0.bias"].shape == (3, 4)


def test_parameters_that_learn_without_adapting():
    model = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    meta, tasks = maml(model, adapt_parameters=["0.bias", "2.weight"]), regression_tasks()
    assert_exact(meta, tasks, with_inputs(meta, tasks))


class Scaled(nn.Module):
    """A parameter that the predictions do not use."""

    def __init__(self):
        super().__init__()
        self.linear, self.unused = nn.Linear(2, 2), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.linear(x).tanh()


def test_an_unused_parameter_stays_put():
    meta, tasks = maml(Scaled()), regression_tasks()
    assert_exact(meta, tasks)
    fast = meta.adapt(tasks.support_x, tasks.support_y).parameters["unused"]
    assert torch.equal(fast, torch.ones(3, 3, dtype=DOUBLE))


def test_a_loss_linear_in_the_parameters_has_no_curvature():
    def loss(predictions, targets):
        return (predictions * targets).mean()

    meta, tasks = maml(nn.Linear(2, 2), loss=loss), regression_tasks()
    assert_exact(meta, tasks, with_inputs(meta, tasks))


def test_any_scalar_loss():
    def loss(predictions, targets):
        return F.huber_loss(predictions, targets) + predictions.logsumexp(-1).std()

    meta, tasks = maml(mlp([2, 4, 2], "tanh"), loss=loss), regression_tasks()
    assert_exact(meta, tasks, with_inputs(meta, tasks))


def test_gradients_reach_targets_and_weights():
    weight = torch.rand(3, 5, dtype=DOUBLE).requires_grad_()
    tasks = regression_tasks(support_weight=weight)
    tasks.support_y.requires_grad_()
    meta = maml(mlp([2, 4, 2], "tanh"))
    assert_exact(meta, tasks, [tasks.support_y, weight])


def test_embeddings_take_integer_inputs():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 3)).double()
    x, y = torch.randint(7, (2, 5, 3)), torch.randint(3, (2, 5))
    assert_exact(maml(model, loss="cross_entropy"), fm.TaskBatch(x, y, x, y))


@pytest.mark.parametrize("dim, index", [(1, 2), (-1, -1), (1, 0)])
def test_select_scatter(dim, index):
    class Scattered(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, x):
            h = self.layer(x)
            return torch.select_scatter(h, h[:, 0], dim, index).select_scatter(x[:, 1], 1, 1)

    assert_exact(maml(Scattered().double()), regression_tasks(outputs=3))


class Temperature(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=DOUBLE))

    def forward(self, predictions, targets):
        return (self.scale * predictions - targets).square().mean()


def test_a_loss_that_learns_is_never_half_differentiated():
    meta = maml(mlp([2, 4, 2], "tanh"), loss=Temperature(), engine="auto")
    tasks = regression_tasks()
    assert_exact(meta, tasks)
    assert_slope(lambda: outer_loss(meta, tasks), list(meta.parameters()))
    meta.engine = "vmap"
    with pytest.raises(ValueError, match="not the module's parameters"):
        meta(tasks)
    meta.order = 1
    assert_exact(meta, tasks)


# ---- over random networks ----------------------------------------------------------------------


@st.composite
def chains(draw):
    width = st.integers(1, 5)
    sizes = draw(st.lists(width, min_size=1, max_size=3))
    layers: list[nn.Module] = []
    for inputs, outputs in zip([2, *sizes], [*sizes, 2], strict=True):
        layers.append(nn.Linear(inputs, outputs, bias=draw(st.booleans())))
        kind = draw(st.sampled_from([nn.Tanh, Sine, nn.GELU, nn.Softplus, "norm", None]))
        if kind == "norm" and outputs > 1:
            layers.append(nn.LayerNorm(outputs, eps=0.1))
        elif kind not in ("norm", None):
            layers.append(kind())
    return nn.Sequential(*layers)


@given(
    model=chains(),
    loss=st.sampled_from(["mse", "bce", "cross_entropy"]),
    t=st.integers(1, 4),
    s=st.integers(1, 5),
    q=st.integers(1, 5),
    steps=st.integers(0, 4),
    order=st.sampled_from([1, 2]),
    learn=st.sampled_from([None, "tensor", "element"]),
    per_step=st.booleans(),
    weighted=st.booleans(),
    frozen=st.sets(st.integers(0, 7), max_size=2),
    seed=st.integers(0, 1000),
    room=st.sampled_from([0, 1 << 12, 1 << 28]),
)
def test_random_networks_equal_the_reference(
    model, loss, t, s, q, steps, order, learn, per_step, weighted, frozen, seed, room
):
    torch.manual_seed(seed)
    parameters = list(model.parameters())
    for i in frozen - {0}:
        if i < len(parameters):
            parameters[i].requires_grad_(False)
    weights = {}
    if weighted:
        support, query = torch.rand(t, s) < 0.7, torch.rand(t, q) < 0.7
        support[:, 0], query[:, -1] = True, True
        weights = {"support_weight": support.double(), "query_weight": query.double()}
    if loss == "cross_entropy":
        plain = classification_tasks([2], t, s, q, n_way=2)
    else:
        plain = regression_tasks(t, s, q)
    sets = (plain.support_x, plain.support_y, plain.query_x, plain.query_y)
    tasks = fm.TaskBatch(*sets, **weights)
    meta = maml(
        model, loss=loss, inner_steps=steps, order=order, learn_inner_lr=learn,
        per_step_lr=per_step and learn is not None,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "_MOST_BYTES", room)
        assert_exact(meta, tasks, with_inputs(meta, tasks), tolerance=1e-10)


# ---- what it promises beside the numbers -------------------------------------------------------


def saved_bytes(steps):
    """Bytes that the forward keeps, and the most alive at once until the backward ends."""
    meta, tasks = maml(mlp([2, 8, 2]), inner_steps=steps), regression_tasks()
    alive = {"now": 0, "most": 0}

    class Held:
        def __init__(self, tensor):
            self.tensor, self.bytes = tensor, tensor.numel() * tensor.element_size()
            alive["now"] += self.bytes
            alive["most"] = max(alive["most"], alive["now"])

        def __del__(self):
            alive["now"] -= self.bytes

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        loss = outer_loss(meta, tasks)
        kept = alive["now"]
        loss.backward()
    return kept, alive["most"]


def test_memory_grows_with_the_steps_by_the_weights_alone():
    (kept_few, most_few), (kept_many, most_many) = saved_bytes(4), saved_bytes(24)
    fast_weights = 3 * sum(p.numel() for p in mlp([2, 8, 2]).parameters()) * 8
    assert kept_many - kept_few == 20 * fast_weights
    assert most_many - most_few == 20 * fast_weights


def test_the_same_bits_again():
    meta, tasks = maml(conv_net("GroupNorm"), loss="cross_entropy"), classification_tasks([2, 6, 6])
    inputs = list(meta.parameters())
    first, second = gradients(meta, tasks, inputs), gradients(meta, tasks, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_two_threads_may_share_a_model():
    model = nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8), nn.Linear(8, 2)).double()
    metas, tasks = [maml(model), maml(model, inner_steps=1)], regression_tasks()
    inputs = list(model.parameters())
    right = [gradients(meta, tasks, inputs) for meta in metas]
    wrong = []

    def work(which):
        for _ in range(8):
            ours = gradients(metas[which], tasks, inputs)
            if not all(torch.equal(a, b) for a, b in zip(ours, right[which], strict=True)):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_autocast_is_the_same_in_the_backward():
    model = nn.Sequential(nn.Linear(2, 64), nn.LayerNorm(64), nn.Tanh(), nn.Linear(64, 2))
    meta = fm.MAML(model, engine="vmap", inner_steps=2, inner_lr=0.3, loss="mse")
    tasks = regression_tasks().to(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = outer_loss(meta, tasks)
        inside = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    outside = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


# ---- randomness --------------------------------------------------------------------------------


def dropout_net():
    return nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 2)).double()


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_the_backward_draws_what_the_forward_drew(randomness):
    meta, tasks = maml(dropout_net(), randomness=randomness), regression_tasks()

    def loss():
        torch.manual_seed(5)
        return outer_loss(meta, tasks)

    assert_slope(loss, list(meta.parameters()))


def test_drawing_again_in_the_backward_disturbs_nobody():
    meta, tasks = maml(dropout_net(), randomness="different"), regression_tasks()
    loss = outer_loss(meta, tasks)
    before = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_same_and_different_masks_over_tasks():
    x = torch.ones(2, 4, 2, dtype=DOUBLE)
    y = torch.zeros(2, 4, 2, dtype=DOUBLE)
    for randomness, equal in (("same", True), ("different", False)):
        adapted = maml(dropout_net(), randomness=randomness).adapt(x, y)
        out = adapted(x)
        assert torch.equal(out[0], out[1]) == equal


@pytest.mark.parametrize("engine", ["auto", "vmap", "reference"])
def test_dropout_in_training_mode_needs_a_choice(engine):
    meta, tasks = maml(dropout_net(), engine=engine), regression_tasks()
    with pytest.raises(ValueError, match="dropout in training mode \\(1\\)"):
        meta(tasks)
    meta.eval()
    meta(tasks)


def test_randomness_hidden_in_a_forward_is_found():
    class Noisy(nn.Linear):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.5)

    for engine in ("auto", "vmap", "reference"):
        with pytest.raises(ValueError, match='draws random numbers.*randomness="different"'):
            maml(Noisy(2, 2), engine=engine)(regression_tasks())


# ---- refusals ----------------------------------------------------------------------------------


def test_higher_derivatives_are_refused_and_never_first_order():
    meta, tasks = maml(mlp([2, 4, 2], "tanh")), regression_tasks()
    inputs = list(meta.parameters())
    with pytest.raises(RuntimeError, match=REFERENCE):
        torch.autograd.grad(outer_loss(meta, tasks), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match=REFERENCE):
        torch.autograd.grad(outer_loss(meta, tasks), inputs[:1], create_graph=True)
    with fm.use_backend("reference"):
        torch.autograd.grad(outer_loss(meta, tasks), inputs, create_graph=True)


def test_torch_func_is_refused():
    meta, tasks = maml(mlp([2, 4, 2])), regression_tasks()

    def loss(x):
        return meta(tasks.with_inputs(x, tasks.query_x)).loss.sum()

    for transform in (torch.func.grad(loss), lambda x: torch.func.jvp(loss, (x,), (x,))):
        with pytest.raises(RuntimeError, match="torch.func transforms"):
            transform(tasks.support_x)


def test_inference_mode_is_refused_and_no_grad_is_not():
    meta, tasks = maml(mlp([2, 4, 2])), regression_tasks()
    with torch.inference_mode(), pytest.raises(RuntimeError, match="use torch.no_grad"):
        meta(tasks)
    with torch.no_grad():
        loss = meta(tasks).loss
    assert not loss.requires_grad
    torch.testing.assert_close(loss, meta(tasks).loss.detach())


class Counting(nn.Linear):
    def __init__(self, in_place):
        super().__init__(2, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.in_place = in_place

    def forward(self, x):
        if self.in_place:
            self.calls.add_(1)
        else:
            self.calls = self.calls + 1
        return super().forward(x)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_forward_that_changes_buffers_is_refused(in_place):
    meta = maml(Counting(in_place))
    with pytest.raises(ValueError, match=r"buffers \(Counting.calls\)"):
        meta(regression_tasks())
    assert meta.model.calls == 0


# ---- what vmap alone gets wrong, or says in its own words --------------------------------------


class Words(nn.Module):
    """Embeddings as a layer and as a function, with padding at either end of the table."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Embedding(7, 3, padding_idx=0)
        self.table = nn.Parameter(torch.randn(7, 3))
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        by_function = F.embedding(x, self.table, padding_idx=-1)
        return self.head(torch.cat([self.layer(x), by_function], -1).flatten(1))


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("adapts", [None, ["head.weight"]])
def test_the_padding_of_an_embedding_has_no_gradient_in_any_task(steps, adapts):
    x = torch.randint(7, (3, 5, 2))
    x[:, :, 0] = torch.tensor([0, 6, 0, 6, 1])
    tasks = fm.TaskBatch(x, torch.randint(2, (3, 5)), x.flip(1), torch.randint(2, (3, 5)))
    meta = maml(Words(), loss="cross_entropy", inner_steps=steps, adapt_parameters=adapts)
    assert_exact(meta, tasks, [*meta.parameters()])
    (gradient,) = torch.autograd.grad(meta(tasks).loss.sum(), meta.model.table)
    assert not gradient[6].any() and gradient[:6].any()


@pytest.mark.parametrize("adapts", [None, ["0.weight"]])
def test_an_embedding_counts_the_words_of_its_task(adapts):
    words = nn.Embedding(7, 3, scale_grad_by_freq=True)
    model = nn.Sequential(words, nn.Flatten(), nn.Linear(6, 2))
    x, y = torch.randint(7, (3, 5, 2)), torch.randint(2, (3, 5))
    meta = maml(model, loss="cross_entropy", adapt_parameters=adapts, inner_steps=2, order=1)
    assert_exact(meta, fm.TaskBatch(x, y, x.flip(1), y), [*meta.parameters()])
