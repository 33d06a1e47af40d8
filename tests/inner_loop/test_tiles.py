"""Convolutions in Winograd's form, with weights that leave the cache and in lines of any length."""

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import classification_tasks, float32_error_ratio, gradients, relative_error
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu

pytestmark = pytest.mark.skipif(
    cpu.unavailable() is not None, reason=f"no native kernels: {cpu.unavailable()}"
)


def conv(inputs, outputs, padding=1, bias=True):
    return nn.Conv2d(inputs, outputs, 3, padding=padding, bias=bias)


def ending(channels):
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)]


def assert_as_reference(meta, batch, error=1e-10):
    """Rates that are learned are each another one."""
    for name, rates in meta.named_parameters():
        if not name.startswith("model."):
            nn.init.uniform_(rates, 0.05, 0.15)
    inputs = [*meta.parameters(), batch.support_x.requires_grad_(), batch.query_x.requires_grad_()]
    inputs = [p for p in inputs if p.requires_grad]
    with fm.use_backend("cpu"):
        ours, loss = gradients(meta, batch, inputs), meta(batch).loss
    with fm.use_backend("reference"):
        right, right_loss = gradients(meta, batch, inputs), meta(batch).loss
    assert relative_error([loss], [right_loss]) < 1e-12
    assert relative_error(ours, right) < error


@given(
    st.tuples(*[st.integers(4, 10)] * 2), st.sampled_from([32, 40, 64]), st.sampled_from([32, 50]),
    st.sampled_from([0, 1, 2, (1, 2), (2, 0)]), st.tuples(st.integers(1, 8), st.integers(1, 8)),
    st.sampled_from([1, 2]), st.sampled_from([None, "tensor", "element"]), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=25)
def test_random_convolutions_are_exact(side, inputs, outputs, padding, samples, order, learn, seed):
    torch.manual_seed(seed)
    between = [nn.Identity(), nn.BatchNorm2d(outputs), nn.GroupNorm(2, outputs)][seed % 3]
    layers = [conv(2, inputs), nn.Tanh(), conv(inputs, outputs, padding, seed % 2 == 0), between]
    model = nn.Sequential(*layers, nn.SiLU(), *ending(outputs)).double()
    if seed % 4 == 0:
        layers[2].weight.requires_grad_(False)
    meta = fm.MAML(
        model, inner_lr=0.1, inner_steps=2, order=order, learn_inner_lr=learn,
        per_step_lr=learn is not None and seed % 5 == 0,
    )  # fmt: skip
    s, q = samples
    assert_as_reference(meta, classification_tasks((2, *side), t=2, s=s, q=q))


@pytest.mark.parametrize("side", [3, 4, 7, 8, 11])
def test_every_instruction_set(variant, side):
    model = nn.Sequential(conv(1, 32), nn.Tanh(), conv(32, 40), nn.Tanh(), *ending(40)).double()
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2, learn_inner_lr="element")
    assert_as_reference(meta, classification_tasks((1, side, side), t=2, s=6, q=3))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = conv(3, 32), conv(32, 32), nn.Linear(32, 3)
        self.norm = nn.BatchNorm2d(32)

    def forward(self, x):
        x = self.first(x).tanh()
        return self.head((x + self.norm(self.second(x)).sigmoid()).mean((2, 3)))


def test_of_what_is_read_twice():
    meta = fm.MAML(Residual().double(), inner_lr=0.3, inner_steps=3)
    assert_as_reference(meta, classification_tasks((3, 9, 6), t=2, s=4, q=5))


@pytest.mark.parametrize("frozen", [False, True])
def test_of_features_that_are_given(frozen):
    """The samples themselves have the channels, and are read where they are."""
    model = nn.Sequential(conv(32, 48), nn.Tanh(), *ending(48)).double()
    model[0].weight.requires_grad_(not frozen)
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2)
    assert_as_reference(meta, classification_tasks((32, 6, 7), t=2, s=4, q=4))


@pytest.mark.parametrize("side, samples", [(2, 3), (3, 7), (4, 30), (7, 6)])
@pytest.mark.parametrize("learn", [None, "element"])
def test_weights_that_leave_the_cache(side, samples, learn):
    """Of 1.2 million numbers; their gradients end where they go, or chunk by chunk."""
    model = nn.Sequential(conv(8, 256), nn.Tanh(), conv(256, 528), nn.Tanh(), *ending(528)).double()
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=1, learn_inner_lr=learn)
    assert_as_reference(meta, classification_tasks((8, side, side), t=1, s=samples, q=2))


@pytest.mark.parametrize("lines", [1, 2, 5, 6, 9, 13, 17])
@pytest.mark.parametrize("channels", [24, 96, 272])
def test_lines_of_any_length(variant, lines, channels):
    """Strides keep these from going in tiles."""
    layer = nn.Conv2d(channels, channels, (3, 2), stride=(2, 1), padding=1)
    model = nn.Sequential(nn.Conv2d(1, channels, 1), nn.Tanh(), layer, nn.Tanh(), *ending(channels))
    meta = fm.MAML(model.double(), inner_lr=0.1, inner_steps=1)
    assert_as_reference(meta, classification_tasks((1, 3, lines), t=1, s=3, q=2))


@pytest.mark.parametrize("channels", [32, 96])
def test_float32_is_within_twice_the_error_of_pytorch(channels):
    ratios = []
    for seed in range(9):
        torch.manual_seed(seed)
        layers = [conv(3, channels), nn.Tanh(), conv(channels, channels), nn.BatchNorm2d(channels)]
        model = nn.Sequential(*layers, nn.SiLU(), *ending(channels))
        batch = classification_tasks((3, 9, 9), t=2, s=6, q=10)
        ratios.append(float32_error_ratio(model, batch))
    assert statistics.median(ratios) < 2
