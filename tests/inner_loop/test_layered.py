"""The layered engine against the reference in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from layered_cases import Functional, assert_exact_with_inputs, maml, why_not, with_inputs
from oracle import (
    DOUBLE,
    assert_exact,
    assert_slope,
    classification_tasks,
    gradients,
    outer_loss,
)
from torch import nn

import fastmeta as fm
from fastmeta.inner_loop import kept
from fastmeta.inner_loop.reading.rewrite import Program, rewrite
from fastmeta.models import conv4, mlp, omniglot_fc, resnet12, siren

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


@pytest.mark.usefixtures("graphs")
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
    nn.CELU(0.7),
    nn.Hardswish(),
    nn.LogSigmoid(),
    nn.Softsign(),
    nn.Tanhshrink(),
    nn.PReLU(),
    nn.PReLU(4),
    nn.Flatten(2),
]
OF_SEQUENCES = [
    nn.Conv1d(4, 5, 3, stride=2, padding=1),
    nn.Conv1d(4, 3, 3, padding="same", bias=False),
    nn.InstanceNorm1d(4, affine=True),
    nn.MaxPool1d(3, 2, 1),
    nn.MaxPool1d(2),
    nn.AvgPool1d(3, 2),
    nn.AdaptiveAvgPool1d(2),
    nn.PReLU(4),
]


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_every_layer(layer):
    model = nn.Sequential(nn.Conv2d(2, 4, 1), copy.deepcopy(layer), nn.Flatten())
    width = model(torch.randn(1, 2, 6, 6)).shape[1]
    assert_exact_with_inputs(model.append(nn.Linear(width, 3)), (2, 6, 6))


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("layer", OF_SEQUENCES, ids=repr)
def test_every_layer_of_sequences(layer):
    model = nn.Sequential(nn.Conv1d(2, 4, 1), copy.deepcopy(layer), nn.Flatten())
    width = model(torch.randn(1, 2, 7)).shape[1]
    assert_exact_with_inputs(model.append(nn.Linear(width, 3)), (2, 7))


def test_slopes_that_stay_or_are_given_to_each_task():
    model = nn.Sequential(nn.Linear(4, 6), nn.PReLU(6), nn.Linear(6, 3))
    assert_exact_with_inputs(model, (4,), adapt_parameters=["2.weight"])
    assert_exact_with_inputs(model, (4,), adapt_parameters=["1.weight"])


def test_one_dimensional_layers():
    layers = [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.LayerNorm(6), nn.GroupNorm(2, 6)]
    assert_exact_with_inputs(nn.Sequential(*layers, nn.Linear(6, 3)), (4,))
    channels = [nn.BatchNorm1d(5), nn.InstanceNorm1d(5, affine=True), nn.Flatten()]
    assert_exact_with_inputs(nn.Sequential(*channels, nn.Linear(20, 3)), (5, 4))


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
    room=st.sampled_from([0, 1 << 12, 1 << 28]),
)
def test_random_networks_equal_the_reference(model, t, s, q, steps, order, learn, seed, room):
    torch.manual_seed(seed)
    meta = maml(model, inner_steps=steps, order=order, learn_inner_lr=learn, inner_lr=0.1)
    tasks = classification_tasks([2, 8, 8], t, s, q)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "_MOST_BYTES", room)
        assert_exact(meta, tasks, with_inputs(meta, tasks), tolerance=1e-9)
