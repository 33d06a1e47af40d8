"""The layered engine against the reference in float64, and what it must refuse."""

import importlib
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
from torch.nn.utils import parametrizations

import fastmeta as fm
from fastmeta.inner_loop.rewrite import Program, rewrite
from fastmeta.models import conv4, mlp, omniglot_fc, resnet12, siren

layered = importlib.import_module("fastmeta.inner_loop.layered")

REFERENCE = 'use_backend\\("reference"\\)'


def maml(model, **options):
    options = {"engine": "layered", "inner_steps": 2, "inner_lr": 0.2, **options}
    return fm.MAML(model.double(), **options)


def with_inputs(meta, tasks):
    tasks.support_x.requires_grad_()
    tasks.query_x.requires_grad_()
    return [*(p for p in meta.parameters() if p.requires_grad), tasks.support_x, tasks.query_x]


def assert_exact_with_inputs(model, shape, **options):
    meta, tasks = maml(model, **options), classification_tasks(shape)
    assert_exact(meta, tasks, with_inputs(meta, tasks), tolerance=1e-10)


def why_not(model, *shape, **options):
    """The reason that a demand for the engine gives."""
    meta, tasks = maml(model, **options), classification_tasks(shape)
    with pytest.raises(ValueError, match='"layered" was demanded but cannot run this') as caught:
        meta(tasks)
    meta.engine = "auto"
    assert meta._prepare(tasks, None)[0].engine is not layered
    return str(caught.value).split("cannot run this: ")[1]


# ---- the models --------------------------------------------------------------------------------

MODELS = {
    "conv4": (lambda: conv4(3, 2, 4, 16), (2, 16, 16)),
    "conv4 stride": (lambda: conv4(3, 2, 4, 9, "stride"), (2, 9, 9)),
    "conv4 unpadded": (lambda: conv4(3, 1, 3, 22, layers=3, padding=0), (1, 22, 22)),
    "resnet12": (lambda: resnet12(3, 2, (2, 3, 4)), (2, 8, 8)),
    "omniglot_fc": (lambda: omniglot_fc(3, 16), (1, 4, 4)),
    "siren": (lambda: siren([2, 8, 3]), (2,)),
    "mlp": (lambda: mlp([2, 8, 3], "gelu"), (2,)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("order", [1, 2])
def test_the_models_are_exact(name, order):
    model, shape = MODELS[name]
    assert_exact_with_inputs(model(), shape, order=order, learn_inner_lr="tensor")


def test_finite_differences_agree():
    meta, tasks = maml(conv4(3, 2, 3, 6, layers=2), inner_lr=0.05), classification_tasks([2, 6, 6])
    meta.model[0][2] = meta.model[1][2] = nn.Tanh()  # no kinks for the differences to cross
    assert_slope(lambda: outer_loss(meta, tasks), with_inputs(meta, tasks), step=1e-6)


def test_learned_rates_a_step_and_an_element():
    assert_exact_with_inputs(
        conv4(3, 2, 3, 8, layers=2), (2, 8, 8), learn_inner_lr="element", per_step_lr=True
    )


def test_a_bias_before_batch_norm_has_no_meta_gradient():
    model = conv4(3, 2, 4, 8, layers=2)
    meta, tasks = maml(model), classification_tasks([2, 8, 8])
    bias, weight = gradients(meta, tasks, [model[0][0].bias, model[0][0].weight])
    assert bias.abs().max() < 1e-13 < 1e-3 < weight.abs().max()


def test_an_encoder_under_an_adapted_head():
    model, tasks = conv4(3, 2, 4, 8, layers=2), classification_tasks([2, 8, 8])
    meta = maml(model, adapt_parameters=lambda name: not name.startswith("0."))
    assert_exact(meta, tasks, with_inputs(meta, tasks))


@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_are_neither_used_nor_changed(training):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    model[1].running_mean.fill_(3)
    before = {name: b.clone() for name, b in model.named_buffers()}
    assert_exact_with_inputs(model.train(training), (2, 6, 6))
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())


def test_float32_is_within_the_error_budget():
    tasks = classification_tasks([1, 12, 12], t=4, q=10)

    def slopes(engine, dtype):
        torch.manual_seed(3)
        model = conv4(3, 1, 8, 12, layers=2).to(dtype)
        meta = fm.MAML(model, engine=engine, inner_steps=3, inner_lr=0.1)
        parts = gradients(meta, tasks.to(dtype=dtype), list(model.parameters()))
        return torch.cat([part.double().flatten() for part in parts])

    right = slopes("reference", DOUBLE)
    ours, plain = (
        (slopes(engine, torch.float32) - right).norm() for engine in ("layered", "reference")
    )
    assert 0 < ours <= 2 * plain


# ---- layers and calls --------------------------------------------------------------------------

LAYERS = [
    nn.Conv2d(4, 4, 3, stride=2, padding="valid", bias=False),
    nn.Conv2d(4, 4, (3, 1), padding="same"),
    nn.InstanceNorm2d(4, affine=True),
    nn.InstanceNorm2d(4),
    nn.GroupNorm(2, 4),
    nn.LayerNorm([4, 6, 6], bias=False),
    nn.LayerNorm(6, elementwise_affine=False),
    nn.MaxPool2d(3, 2, 1),
    nn.AvgPool2d(2),
    nn.AdaptiveAvgPool2d((2, 3)),
    nn.Identity(),
    nn.Dropout(0.0),
    nn.Dropout2d(0.5).eval(),
    nn.LeakyReLU(0.2, inplace=True),
    nn.SiLU(),
    nn.Hardtanh(),
    nn.Flatten(2),
]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_every_layer(layer):
    model = nn.Sequential(nn.Conv2d(2, 4, 1), layer, nn.Flatten())
    width = model(torch.randn(1, 2, 6, 6)).shape[1]
    assert_exact_with_inputs(model.append(nn.Linear(width, 3)), (2, 6, 6))


def test_one_dimensional_layers():
    layers = [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.LayerNorm(6), nn.GroupNorm(2, 6)]
    assert_exact_with_inputs(nn.Sequential(*layers, nn.Linear(6, 3)), (4,))
    channels = [nn.BatchNorm1d(5), nn.InstanceNorm1d(5, affine=True), nn.Flatten()]
    assert_exact_with_inputs(nn.Sequential(*channels, nn.Linear(20, 3)), (5, 4))


class Functional(nn.Module):
    """Residuals, functional calls, shapes, a buffer, parameters used directly."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.kernel = nn.Parameter(0.3 * torch.randn(4, 4, 3, 3))
        self.scale = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.register_buffer("shift", torch.randn(4, 1, 1))
        self.last = nn.Linear(12, 3)
        self.mix = nn.Parameter(torch.randn(3, 3))
        self.activation = F.leaky_relu

    def forward(self, x, flag=None):
        n, channels, height, _ = x.shape
        x = self.activation(self.norm(self.first(x)), 0.1)
        y = F.conv2d(x, self.kernel, stride=1, padding=1) * self.scale + self.shift
        y = F.group_norm(y, channels, self.scale.flatten()) + x
        y = torch.cat([F.max_pool2d(y, 2), F.avg_pool2d(y, height // 3)], dim=1).tanh()
        rest = torch.flatten(F.adaptive_avg_pool2d(y, 1), 1)[:, 2:6]
        means = y.view(x.size(0), y.shape[1], -1).mean(2)
        both = torch.cat((means, rest.softmax(-1)), -1)
        assert flag is None
        return F.layer_norm(self.last(both), (3,)) @ self.mix - both.sum(1, keepdim=True) / n


def test_a_module_with_residuals_and_functional_calls():
    for order in (1, 2):
        assert_exact_with_inputs(Functional(), (2, 6, 6), order=order, learn_inner_lr="tensor")


def test_a_module_that_is_one_layer():
    for model, width in ((nn.Linear(2, 3), 2), (nn.BatchNorm1d(3), 3)):
        assert isinstance(rewrite(model), Program)
        assert_exact_with_inputs(model, (width,))


def test_a_subclass_of_a_layer_is_what_its_forward_says():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, weight, self.bias, self.stride, self.padding)

    model = nn.Sequential(Standardised(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    assert_exact_with_inputs(model, (2, 6, 6))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(4, 4), nn.Linear(4, 4)
        self.decode.weight = self.encode.weight
        self.again = self.encode
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.again(self.decode(self.encode(x).tanh()).tanh()) @ self.decode.weight)


def test_tied_parameters_and_layers_are_one():
    meta = maml(Tied())
    assert len(list(meta.parameters())) == 5
    tasks = classification_tasks([4])
    assert_exact(meta, tasks, with_inputs(meta, tasks))


def test_frozen_parameters_neither_adapt_nor_learn():
    model = conv4(3, 2, 4, 8, layers=2)
    model[0][0].weight.requires_grad_(False)
    model[1][1].bias.requires_grad_(False)
    meta, tasks = maml(model), classification_tasks([2, 8, 8])
    assert_exact(meta, tasks, with_inputs(meta, tasks))
    adapted = meta.adapt(tasks.support_x, tasks.support_y).parameters
    assert adapted["0.0.weight"] is model[0][0].weight
    assert adapted["0.0.bias"].shape == (3, 4)


def test_padding_goes_with_group_norm_and_not_with_batch_norm():
    whole = classification_tasks([2, 6, 6])
    weight = torch.tensor([1.0, 1, 1, 0, 0], dtype=DOUBLE).expand(3, 5)
    sets = (whole.support_x, whole.support_y, whole.query_x, whole.query_y)
    tasks = fm.TaskBatch(*sets, support_weight=weight)

    def net(norm):
        return nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.Flatten(), nn.Linear(64, 3))

    assert_exact(maml(net(nn.GroupNorm(2, 4))), tasks)
    with pytest.raises(ValueError, match="batch norms"):
        maml(net(nn.BatchNorm2d(4)))(tasks)


# ---- changes in place --------------------------------------------------------------------------


class InPlace(nn.Module):
    def __init__(self, read_after):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.read_after = read_after

    def forward(self, x):
        y = self.first(x)
        before = self.read_after(y)
        y += x
        y = F.leaky_relu(self.relu(y - 0.1) - 0.2, 0.2, inplace=True) * 2
        y.mul_(2)
        return self.second(y * before)


def test_what_is_changed_in_place_is_changed_for_all_who_hold_it():
    for read in (lambda y: y, lambda y: y.clone(), lambda y: y * 1):
        assert_exact_with_inputs(InPlace(read), (4,))


def test_a_view_of_what_is_changed_in_place_is_refused():
    model = InPlace(lambda y: y.view(-1, 4))
    assert "changes a tensor in place and reads a view of it after" in why_not(model, 4)


# ---- random networks ---------------------------------------------------------------------------


@st.composite
def conv_nets(draw):
    channels, side, layers = 2, 8, []
    for _ in range(draw(st.integers(1, 3))):
        outputs = draw(st.sampled_from([2, 4]))
        kernel, stride = draw(st.integers(1, 3)), draw(st.integers(1, 2))
        layers.append(nn.Conv2d(channels, outputs, kernel, stride, 1, bias=draw(st.booleans())))
        side = (side + 2 - kernel) // stride + 1
        norms = [nn.BatchNorm2d(outputs), nn.GroupNorm(2, outputs), nn.InstanceNorm2d(outputs)]
        norm = draw(st.sampled_from([*norms, nn.LayerNorm([outputs, side, side]), None]))
        layers += [norm] * (norm is not None and side > 1)
        layers.append(draw(st.sampled_from([nn.Tanh, nn.GELU, nn.Softplus, nn.Sigmoid]))())
        if side >= 2 and draw(st.booleans()):
            layers.append(draw(st.sampled_from([nn.MaxPool2d(2), nn.AvgPool2d(2)])))
            side //= 2
        channels = outputs
    head = [nn.Flatten(), nn.Linear(channels * side * side, 3)]
    return nn.Sequential(*layers, *head)


@given(
    model=conv_nets(),
    t=st.integers(1, 3),
    s=st.integers(2, 4),
    q=st.integers(2, 4),
    steps=st.integers(0, 3),
    order=st.sampled_from([1, 2]),
    learn=st.sampled_from([None, "tensor", "element"]),
    seed=st.integers(0, 1000),
)
def test_random_networks_equal_the_reference(model, t, s, q, steps, order, learn, seed):
    torch.manual_seed(seed)
    meta = maml(model, inner_steps=steps, order=order, learn_inner_lr=learn, inner_lr=0.1)
    tasks = classification_tasks([2, 8, 8], t, s, q)
    assert_exact(meta, tasks, with_inputs(meta, tasks), tolerance=1e-9)


# ---- what it promises beside the numbers -------------------------------------------------------


def test_auto_prefers_it_to_vmap_and_explains():
    choice = fm.explain(Functional())
    assert choice.name == "layered"
    assert choice.passed_over["vmap"] == "layered is faster"


def saved_bytes(steps):
    """Bytes that the forward keeps, and the most alive at once until the backward ends."""
    meta = maml(conv4(3, 2, 4, 8, layers=2), inner_steps=steps)
    tasks = classification_tasks([2, 8, 8])
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
    parameters = conv4(3, 2, 4, 8, layers=2).parameters()
    fast_weights = 3 * sum(p.numel() for p in parameters) * 8
    assert kept_many - kept_few == 20 * fast_weights
    assert most_many - most_few == 20 * fast_weights


def test_a_few_tasks_at_a_time_give_the_same(monkeypatch):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    model[0].bias.requires_grad_(False)
    calls = []
    run = Program.run

    def counted(self, parameters, x):
        calls.append(len(x))
        return run(self, parameters, x)

    monkeypatch.setattr(Program, "run", counted)
    for size, wanted in ((1, {1}), (2 * 5 * 72 * 8, {2, 1})):
        monkeypatch.setattr(layered, "_AT_ONCE_BYTES", size)
        meta, tasks = maml(model, learn_inner_lr="tensor"), classification_tasks([2, 6, 6], q=5)
        meta(tasks)
        calls.clear()
        assert_exact(meta, tasks, with_inputs(meta, tasks), tolerance=1e-10)
        assert set(calls) == wanted


def test_a_few_tasks_at_a_time_with_parameters_of_their_own(monkeypatch):
    model, tasks = conv4(3, 2, 3, 8, layers=2).double(), classification_tasks([2, 8, 8])
    parameters = {
        name: (p.detach() + 0.1 * torch.randn(3, *p.shape, dtype=DOUBLE)).requires_grad_()
        for name, p in model.named_parameters()
    }
    rates = {name: torch.full((1,), 0.1, dtype=DOUBLE) for name in list(parameters)[2:]}

    def slopes():
        fast = fm.functional.inner_sgd(
            model, parameters, tasks.support_x, tasks.support_y, lr=rates, steps=2,
            loss="cross_entropy",
        )  # fmt: skip
        total = sum(p.sin().sum() for p in fast.values())
        return torch.autograd.grad(total, list(parameters.values()))

    with fm.use_backend("reference"):
        right = slopes()
    for size in (1, 2**24):
        monkeypatch.setattr(layered, "_AT_ONCE_BYTES", size)
        torch.testing.assert_close(slopes(), right)


def test_two_threads_may_share_a_model():
    model, tasks = conv4(3, 2, 3, 8, layers=2).double(), classification_tasks([2, 8, 8])
    metas = [maml(model), maml(model, inner_steps=1)]
    inputs = list(model.parameters())
    right = [gradients(meta, tasks, inputs) for meta in metas]
    wrong = []

    def work(which):
        for _ in range(5):
            metas[which]._plans.clear()  # so that it traces again
            ours = gradients(metas[which], tasks, inputs)
            if not all(torch.equal(a, b) for a, b in zip(ours, right[which], strict=True)):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_tracing_leaves_other_threads_alone():
    others = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    seen = []

    class Slow(nn.Linear):
        def forward(self, x):
            thread = threading.Thread(
                target=lambda: seen.append((others(torch.ones(3, 2)), self.weight))
            )
            thread.start()
            thread.join()
            return super().forward(x)

    model = Slow(2, 3)
    assert isinstance(rewrite(model), Program)
    output, weight = seen[0]
    assert isinstance(output, torch.Tensor) and weight is model.weight


# ---- Python state ------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.factor, self.factors, self.function = 1.0, [2.0, {"a": 3.0}], torch.tanh

    def forward(self, x):
        return self.function(self.linear(x)) * self.factor * self.factors[0] * self.factors[1]["a"]


def test_python_state_is_read_anew_when_it_changes():
    model, tasks = Scaled(), classification_tasks([2])
    meta = maml(model)
    assert_exact(meta, tasks)
    model.factor = 0.5
    assert_exact(meta, tasks)
    model.factors[0] = -1.0
    assert_exact(meta, tasks)
    model.factors[1]["a"] = 0.1
    assert_exact(meta, tasks)
    model.function = torch.sigmoid
    assert_exact(meta, tasks)
    model.linear = nn.Sequential(nn.Linear(2, 4, dtype=DOUBLE), nn.Linear(4, 3, dtype=DOUBLE))
    assert_exact(maml(model), tasks)


def test_state_that_cannot_be_watched_any_more_is_refused():
    model, tasks = Scaled(), classification_tasks([2])
    meta = maml(model)
    meta(tasks)
    model.factors[1] = {"a": torch.ones(1)}
    with pytest.raises(RuntimeError, match='Scaled.factors is a list.*way out: engine="vmap"'):
        meta(tasks)


def test_buffers_are_read_at_every_call():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 3)
            self.register_buffer("shift", torch.ones(3))

        def forward(self, x):
            return (self.linear(x) + self.shift).tanh()

    model, tasks = Shifted(), classification_tasks([2])
    meta = maml(model)
    for _ in range(2):
        assert_exact(meta, tasks)
        model.shift = torch.randn(3, dtype=DOUBLE)
    model.shift.fill_(-1)
    assert_exact(meta, tasks)


# ---- refusals ----------------------------------------------------------------------------------


def test_higher_derivatives_are_refused_and_never_first_order():
    meta, tasks = maml(conv4(3, 2, 3, 8, layers=2)), classification_tasks([2, 8, 8])
    inputs = list(meta.parameters())
    with pytest.raises(RuntimeError, match=f"layered engine.*{REFERENCE}"):
        torch.autograd.grad(outer_loss(meta, tasks), inputs, create_graph=True)
    with fm.use_backend("reference"):
        torch.autograd.grad(outer_loss(meta, tasks), inputs, create_graph=True)



@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.Conv2d(2, 2, 3, groups=2), r"layer '1' \(Conv2d\) is padded with something else .*gr"),
        (nn.Conv2d(2, 2, 3, dilation=2), "dilated"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), "else than zeros"),
        (nn.Conv2d(2, 2, 2, padding="same"), "even kernels"),
        (nn.MaxPool2d(2, ceil_mode=True), "rounds up"),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), "divides by something else"),
        (nn.AdaptiveAvgPool2d((None, 2)), "keeps a size"),
        (nn.ConvTranspose2d(2, 2, 3), r"layer '1' \(ConvTranspose2d\) is not among the layers"),
        (parametrizations.weight_norm(nn.Conv2d(2, 2, 3)), r"\(ParametrizedConv2d\) is not among"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_layer_that_is_not_known_is_named(layer, said):
    model = nn.Sequential(nn.Conv2d(2, 2, 1), layer, nn.Flatten())
    width = model(torch.randn(1, 2, 6, 6)).shape[1]
    reason = why_not(model.append(nn.Linear(width, 3)), 2, 6, 6)
    assert_matches(said, reason)


def assert_matches(said, reason):
    with pytest.raises(ValueError, match=said):
        raise ValueError(reason)


class Calls(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.linear, self.call = nn.Linear(4, 3), call
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))

    def forward(self, x):
        return self.call(self, self.linear(x))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, y: y.cumsum(0), "its forward calls cumsum, which has no rule"),
        (lambda m, y: torch.fft.fft(y).real, "its forward calls fft_fft, which has no rule"),
        (lambda m, y: y if y.sum() > 0 else -y, "cannot trace its forward: symbolically traced"),
        (lambda m, y: y + torch.ones(3, dtype=DOUBLE), "a Tensor that is neither its input nor"),
        (lambda m, y: y[:, torch.tensor([2, 1, 0])], "a Tensor that is neither its input nor"),
        (lambda m, y: y[:, [2, 1, 0]], "indexing by a tensor or a list"),
        (lambda m, y: F.batch_norm(y, m.mean, m.var), "a batch_norm with running statistics"),
        (lambda m, y: y.new_ones(3) * y, "its forward calls new_ones"),
        (lambda m, y: y.T.T, "the attribute 'T'"),
        (lambda m, y: (y @ m.mean)[:, None] + y, "matmul of a vector"),
    ],
)
def test_a_call_that_is_not_known_is_named(call, said):
    model, tasks = Calls(call).double(), classification_tasks([4])
    meta = maml(model)
    with pytest.raises(ValueError, match=said):
        meta(tasks)


def test_hooks_are_not_bypassed():
    for position in ("", "1"):
        model = mlp([2, 4, 3])
        model.get_submodule(position).register_forward_hook(lambda layer, args, out: out + 1)
        assert f"it has hooks ({position!r})" in why_not(model, 2)


def test_an_object_whose_change_would_not_be_seen():
    class Settings:
        slope = 0.1

    class Configured(nn.Linear):
        settings = None

        def forward(self, x):
            return F.leaky_relu(super().forward(x), self.settings.slope)

    model = Configured(2, 3)
    model.settings = Settings()
    assert "Configured.settings is a Settings" in why_not(model, 2)


def test_other_numbers_are_refused():
    meta = fm.MAML(nn.Linear(2, 3).to(torch.bfloat16), engine="layered", loss="cross_entropy")
    with pytest.raises(ValueError, match="takes float32 or float64"):
        meta(classification_tasks([2]).to(dtype=torch.bfloat16))
    meta, tasks = fm.MAML(nn.Linear(2, 3), engine="layered"), classification_tasks([2])
    with torch.autocast("cpu"), pytest.raises(ValueError, match="autocast is on"):
        meta(tasks.to(dtype=torch.float32))


def test_a_loss_of_ones_own_and_one_that_learns():
    meta, tasks = maml(mlp([2, 4, 2], "tanh"), loss=F.huber_loss), regression_tasks()
    assert_exact(meta, tasks, with_inputs(meta, tasks))

    class Temperature(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0, dtype=DOUBLE))

        def forward(self, predictions, targets):
            return (self.scale * predictions - targets).square().mean()

    with pytest.raises(ValueError, match="not the module's parameters"):
        maml(mlp([2, 4, 2]), loss=Temperature())(tasks)
