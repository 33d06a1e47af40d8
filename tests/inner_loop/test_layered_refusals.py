"""What the layered engine must refuse, and with which words."""

import threading

import pytest
import torch
import torch.nn.functional as F
from layered_cases import REFERENCE, maml, why_not, with_inputs
from oracle import (
    DOUBLE,
    assert_exact,
    classification_tasks,
    outer_loss,
    regression_tasks,
)
from torch import nn
from torch.nn.utils import parametrizations

import fastmeta as fm
from fastmeta.models import conv4, mlp


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
        (
            nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
            r"layer '1' \(Conv2d\) is padded with something else than zeros",
        ),
        (nn.Conv2d(2, 2, 2, padding="same"), "even kernels"),
        (nn.MaxPool2d(2, ceil_mode=True), "rounds up"),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), "divides by something else"),
        (nn.AdaptiveAvgPool2d((None, 2)), "keeps a size"),
        (nn.ConvTranspose2d(2, 2, 3, groups=2), "is grouped"),
        (nn.LPPool2d(2, 2), r"layer '1' \(LPPool2d\) is not among the layers"),
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
        (lambda m, y: F.batch_norm(y, m.mean, m.var), "a batch_norm by running statistics"),
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
    class Settings(threading.local):
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
