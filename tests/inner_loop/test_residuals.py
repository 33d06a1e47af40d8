"""Forwards written by hand, with sums of two branches, in the resident engine."""

import copy
import random
import statistics
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import (
    DOUBLE,
    assert_exact,
    assert_slope,
    classification_tasks,
    gradients,
    outer_loss,
    regression_tasks,
    relative_error,
)
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop.reading.chain import Chain, chain_of
from fastmeta.inner_loop.reading.stages import never_fits, stages_of

pytestmark = pytest.mark.skipif(
    cpu.unavailable() is not None, reason=f"no native kernels: {cpu.unavailable()}"
)


# ---- random networks -----------------------------------------------------------------------------


class Sum(nn.Module):
    """The sum of two modules' results; without the second one, of the first one's and its input."""

    def __init__(self, main, side=None):
        super().__init__()
        self.main = main
        self.side = side

    def forward(self, x):
        return self.main(x) + (x if self.side is None else self.side(x))


def conv(c, out, kernel, draw):
    norms = [nn.Identity(), nn.BatchNorm2d(out), nn.GroupNorm(1, out), nn.BatchNorm2d(out)]
    layers = [nn.Conv2d(c, out, kernel, padding=kernel // 2, bias=draw(st.booleans()))]
    return layers + [
        draw(st.sampled_from(norms)),
        draw(st.sampled_from([nn.Tanh(), nn.Identity()])),
    ]


@st.composite
def blocks(draw, c, whole=True):
    """A residual block and its channels; if not a part of one, it may have one in a branch."""
    out = draw(st.sampled_from([c, 4, 17]))
    main = conv(c, out, draw(st.sampled_from([1, 3])), draw)
    if whole and draw(st.booleans()):
        inner, out = draw(blocks(out, whole=False))
        main.append(inner)
    main += conv(out, out, 3, draw) if draw(st.booleans()) else []
    direct = out == c and draw(st.booleans())
    side = None if direct else nn.Sequential(*conv(c, out, 1, draw))
    pool = [nn.MaxPool2d(2)] if whole else []
    after = draw(st.sampled_from([[], [nn.GELU()], [nn.Softplus(), *pool]]))
    return nn.Sequential(Sum(nn.Sequential(*main), side), *after), out


@st.composite
def networks(draw):
    layers, c = [], 2
    for _ in range(draw(st.integers(1, 2))):
        block, c = draw(blocks(c))
        layers.append(block)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 3))


@given(
    networks(), st.sampled_from([1, 2]), st.sampled_from([None, "element"]), st.integers(0, 3),
    st.integers(1, 3), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=40)
def test_random_residual_networks_are_exact(model, order, learn, steps, tasks, seed):
    torch.manual_seed(seed)
    model = copy.deepcopy(model).double()
    below = list(model[:-1].parameters())
    for p in below[seed % 5 :: 4] + below[: seed % 7]:
        p.requires_grad_(False)
    meta = fm.MAML(model, inner_lr=0.05, inner_steps=steps, order=order, learn_inner_lr=learn)
    batch = classification_tasks((2, 6, 7), t=tasks, s=3, q=4)
    for x in (batch.support_x, batch.query_x):
        x.requires_grad_()
    assert meta.choice().name == "resident"
    inputs = [p for p in meta.parameters() if p.requires_grad] + [batch.support_x, batch.query_x]
    with fm.use_backend("cpu"):
        ours, loss = gradients(meta, batch, inputs), meta(batch).loss
    with fm.use_backend("reference"):
        right, right_loss = gradients(meta, batch, inputs), meta(batch).loss
    assert relative_error([loss], [right_loss]) < 1e-12
    assert relative_error(ours, right) < 1e-9


# ---- the models of the library -------------------------------------------------------------------


def small_resnet():
    return fm.models.resnet12(3, 2, (4, 17, 3))


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_resnet12_is_exact_with_every_instruction_set(variant, steps):
    model = small_resnet().double()
    model[0].shortcut[0].weight.requires_grad_(False)
    model[1].convolutions[4].bias.requires_grad_(False)
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=steps)
    assert meta.choice().name == "resident"
    batch = classification_tasks((2, 9, 8))
    for x in (batch.support_x, batch.query_x):
        x.requires_grad_()
    inputs = [p for p in model.parameters() if p.requires_grad]
    assert_exact(meta, batch, [*inputs, batch.support_x, batch.query_x], 1e-9)


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_a_perceptron_beside_the_identity_is_exact(variant, loss):
    model = fm.models.ResidualMLP(5, [19, 3], "tanh").double()
    meta = fm.MAML(model, loss=loss, inner_lr=0.1, inner_steps=2)
    assert meta.choice().name == "resident"
    batch = regression_tasks(inputs=5, outputs=5)
    for x in (batch.support_x, batch.query_x):
        x.requires_grad_()
    assert_exact(meta, batch, [*model.parameters(), batch.support_x, batch.query_x])


def test_the_meta_gradient_is_the_slope_of_the_meta_loss():
    model = nn.Sequential(
        Sum(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Tanh())), nn.GELU(),
        Sum(nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 1)), nn.Flatten(), nn.Linear(64, 3),
    ).double()  # fmt: skip
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2)
    batch = classification_tasks((2, 4, 4))
    assert_slope(lambda: outer_loss(meta, batch), list(meta.parameters()))


@pytest.mark.parametrize("tasks", [1, 3])
def test_the_same_bits_for_any_number_of_threads(tasks):
    meta = fm.MAML(fm.models.resnet12(3, 1, (8, 16)), inner_lr=0.1, inner_steps=2)
    batch = classification_tasks((1, 24, 24), t=tasks, s=10, q=20).to(dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([meta(batch).loss, *gradients(meta, batch, [*meta.parameters()])])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_float32_is_within_twice_the_error_of_pytorch():
    """In the median: where a value comes near a kink, rounding decides which side it is on."""
    ratios = []
    for seed in range(5):
        torch.manual_seed(seed)
        model = fm.models.resnet12(3, 1, (8, 16))
        batch = classification_tasks((1, 12, 12), t=4, s=10, q=20)

        def found(model, dtype, backend, batch=batch):
            meta = fm.MAML(model, inner_lr=0.1, inner_steps=2)
            with fm.use_backend(backend):
                of = gradients(meta, batch.to(dtype=dtype), list(meta.parameters()))
            return [g.double() for g in of]

        right = found(copy.deepcopy(model).double(), DOUBLE, "reference")
        ours = relative_error(found(model, torch.float32, "cpu"), right)
        ratios.append(ours / relative_error(found(model, torch.float32, "reference"), right))
    assert statistics.median(ratios) < 2


def test_memory_grows_with_the_steps_by_the_fast_weights_alone():
    model = small_resnet().double()
    meta, batch = fm.MAML(model, inner_lr=0.1), classification_tasks((2, 9, 8))
    batch.support_x.requires_grad_()  # so that a forward keeps a record
    size = sum(p.numel() for p in model.parameters())

    def kept(steps):
        return meta(batch, inner_steps=steps).predictions.grad_fn.record.bytes

    a_step = (kept(12) - kept(2)) / 10
    assert a_step <= 3 * len(batch) * size * 8  # rows are padded to whole vectors


# ---- forwards written by hand --------------------------------------------------------------------


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.layer = nn.Linear(36, 3)


def by_hand(forward, **attributes):
    """A module with those layers, a forward and more attributes."""
    module = type("ByHand", (Layers,), {"forward": forward})()
    for name, value in attributes.items():
        setattr(module, name, value)
    return module.double()


def as_tutorials_do(self, x):
    x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
    x = F.leaky_relu(self.second(x), 0.2)
    return self.layer(x.view(x.size(0), -1))


def with_a_skip(self, x):
    y = F.avg_pool2d(torch.tanh(self.norm(self.conv(x))), kernel_size=2)
    z = self.second(y)
    z += y
    return self.layer(torch.flatten(F.softplus(z), 1))


def with_newer_activations(self, x):
    y = F.hardtanh(F.silu(self.norm(self.conv(x))), -0.2, 0.7)
    y = F.elu(F.max_pool2d(F.mish(self.second(y)), 2), 0.7) + F.relu6(F.max_pool2d(y.sin(), 2))
    return self.layer(F.selu(y).flatten(1))


def with_shapes(self, x):
    y = self.norm(self.conv(x)).relu()
    y = y.add(self.second(y))
    y = F.dropout(F.max_pool2d(y, 2, 2), 0.5, self.training)
    return self.layer(y.reshape(y.shape[0], -1))


def with_itself(self, x):
    y = F.gelu(self.norm(self.conv(x + x)))
    y = torch.add(self.second(y + y), y)
    return self.layer(F.max_pool2d(F.sigmoid(y), 2).flatten(1))


def with_a_view_that_is_read_on(self, x):
    y = F.max_pool2d(self.norm(self.conv(x)), 2)
    flat = y.flatten(1)
    return self.layer(torch.tanh(flat) + self.second(y).sigmoid().flatten(1))


FORWARDS = [
    as_tutorials_do, with_a_skip, with_newer_activations, with_shapes, with_itself,
    with_a_view_that_is_read_on,
]  # fmt: skip


@pytest.mark.parametrize("forward", FORWARDS)
def test_forwards_written_by_hand_are_exact(forward):
    meta = fm.MAML(by_hand(forward).eval(), inner_lr=0.1, inner_steps=2)
    assert meta.choice().name == "resident"
    batch = classification_tasks((1, 6, 6))
    for x in (batch.support_x, batch.query_x):
        x.requires_grad_()
    assert_exact(meta, batch, [*meta.parameters(), batch.support_x, batch.query_x])


def test_a_mean_over_pixels_is_exact():
    def forward(self, x):
        y = self.second(self.norm(self.conv(x)))
        return (y.mean((2, 3), keepdim=True) + F.adaptive_avg_pool2d(y.tanh(), 1)).mean((-1, -2))

    model = by_hand(forward)
    del model.layer
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2)
    assert meta.choice().name == "resident"
    assert_exact(meta, classification_tasks((1, 6, 6), n_way=4))


def test_a_chain_written_by_hand_is_a_chain():
    class Perceptron(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(6, 4)
            self.second = nn.Linear(4, 2)

        def forward(self, x):
            return self.second(F.relu(self.first(x.flatten(1))))

    model = Perceptron().double()
    chain = chain_of(model)
    assert isinstance(chain, Chain) and chain.flattens
    assert chain.names == ("first.weight", "first.bias", "second.weight", "second.bias")
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2)
    assert meta.choice().name == "resident"
    assert_exact(meta, classification_tasks((2, 3), n_way=2))


def rest(self, y):
    return self.layer(F.max_pool2d(self.second(self.norm(y)), 2).flatten(1))


def without_gradients(self, x):
    with torch.no_grad():
        y = self.conv(x)
    return rest(self, y)


def in_less_precision(self, x):
    with torch.autocast("cpu", torch.bfloat16):
        y = self.conv(x)
    return rest(self, y)


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.relu(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 2


def with_luck(self, x):
    y = self.conv(x)
    return rest(self, y if random.random() < 0.5 else torch.tanh(y))


def with_luck_of_torch(self, x):
    y = self.conv(x)
    return rest(self, y if torch.rand(()) < 0.5 else torch.tanh(y))


REFUSED = {
    "no_grad": without_gradients,
    "autocast": in_less_precision,
    "autograd.Function": lambda self, x: rest(self, Halved.apply(self.conv(x))),
    "draws random": with_luck,
    "draws random numbers": with_luck_of_torch,
    "calls exp": lambda self, x: rest(self, self.conv(x).exp()),
    "with what is no layer's result": lambda self, x: rest(self, self.conv(x) + True),
    "a sum is of samples": lambda self, x: rest(self, self.conv(x) + F.max_pool2d(x, 2)),
    "changes in place what others read": lambda self, x: rest(
        self, (lambda y: y + F.relu(y, inplace=True))(self.conv(x))
    ),
    "changes its input in place": lambda self, x: rest(self, self.conv(F.relu(x, inplace=True))),
    "does not return": lambda self, x: (
        F.relu(self.conv(x), inplace=True), rest(self, self.conv(x))
    )[1],
    "share parameters": lambda self, x: rest(self, self.second(self.conv(x))),
    "read as they are and flattened": lambda self, x: (
        rest(self, self.conv(x)) + self.side(x.flatten(1))
    ),
    "cannot trace": lambda self, x: rest(self, self.conv(x) if x.sum() > 0 else x),
    "uses a Tensor that is neither its input": lambda self, x: rest(
        self, self.conv(x) + torch.ones(1, 4, 6, 6)
    ),
    "of what a layer gives": lambda self, x: rest(self, self.conv(x).view(-1, 6, 4, 6)),
    "a shape that is not one of samples": lambda self, x: rest(self, self.conv(x).view(4, -1)),
    "all pixels": lambda self, x: rest(self, self.conv(x).mean((1, 2))),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_the_native_kernels_cannot_run_is_said(why):
    side = {"side": nn.Linear(36, 3)} if "flattened" in why else {}
    reason = stages_of(by_hand(REFUSED[why], **side), (1, 6, 6))
    assert isinstance(reason, str) and why in reason


def test_an_attribute_whose_changes_nobody_would_see_is_refused():
    unseen = [
        ({1: iter([2])}, "holds a list_iterator"), (threading.local(), "is a _local"),
        ([0] * 10**4, "is a list"), (weakref.ref(torch.tanh), "is a ReferenceType"),
        ([].append, "is a builtin_function_or_method"),
    ]  # fmt: skip
    for value, said in unseen:
        model = by_hand(as_tutorials_do, act=value)
        assert f"ByHand.act {said}, of which a later change" in never_fits(model)


def test_an_attribute_that_changes_between_calls_is_seen():
    def forward(self, x):
        y = self.norm(self.conv(x))
        y = y + self.second(y) if self.skips else self.second(y)
        return self.layer(F.max_pool2d(y, self.window).flatten(1))

    model = by_hand(forward, skips=True, window=2)
    meta, batch = fm.MAML(model, inner_lr=0.1), classification_tasks((1, 6, 6))
    before = meta(batch).loss
    model.skips = False
    assert not torch.allclose(meta(batch).loss, before)
    assert_exact(meta, batch)
    model.window = (2, 2)
    assert_exact(meta, batch)


def test_a_plan_made_without_gradients_does_not_forget_that_the_forward_has_none():
    model = by_hand(without_gradients)
    meta, batch = fm.MAML(model, inner_lr=0.1), classification_tasks((1, 6, 6))
    with torch.no_grad():
        meta(batch)
    assert_exact(meta, batch)


def test_an_attribute_that_comes_to_hide_one_of_the_class_is_seen():
    def forward(self, x):
        y = self.norm(self.conv(x))
        return rest(self, self.act(y) if self.curved else y)

    model = by_hand(forward)
    type(model).curved, type(model).act = True, lambda self, y: torch.tanh(y)
    meta, batch = fm.MAML(model, inner_lr=0.1), classification_tasks((1, 6, 6))
    assert_exact(meta, batch)
    model.act = F.softplus
    assert_exact(meta, batch)
    model.curved = False
    assert_exact(meta, batch)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def asking_for_tensors(self, x):
    y = self.conv(x)
    return rest(self, torch.tanh(y) if isinstance(y, torch.Tensor) else y)


def reversing_gradients(self, x):
    return rest(self, Reversed.apply(self.conv(x)))


@pytest.mark.parametrize("forward", [asking_for_tensors, reversing_gradients])
def test_what_a_trace_does_not_tell_is_found_by_its_values_and_gradients(forward):
    batch = classification_tasks((1, 6, 6))
    for engine in ("resident", "layered"):
        with pytest.raises(ValueError, match="something else when torch.fx traces it"):
            fm.MAML(by_hand(forward), inner_lr=0.1, engine=engine)(batch)


def test_hooks_of_any_part_are_refused():
    model = nn.Sequential(Sum(nn.Linear(3, 3)), nn.Linear(3, 2))
    assert never_fits(model) is None
    model[0].register_forward_hook(lambda module, x, y: 2 * y)
    assert "layer '0' (Sum) has hooks" in never_fits(model)
