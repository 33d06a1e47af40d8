"""Whether a traced forward computes what the module does, where sums differ from run to run."""

import pytest
import torch
from torch import nn

import fastmeta as fm
from fastmeta.inner_loop.reading import differs as comparison
from fastmeta.inner_loop.reading.differs import differs


class Net(nn.Module):
    """The gradient of the convolution's bias is 0 but for rounding: a batch norm follows."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.layer = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, 3)

    def forward(self, x):
        return self.layer(torch.relu(self.norm(self.conv(x))).flatten(1))


class AskingForTensors(Net):
    """Its trace lacks a term, `share` of the output."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, x):
        y = super().forward(x)
        return y + self.share * y.tanh() if isinstance(y, torch.Tensor) else y


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class TurningOneGradient(Net):
    """A parameter of which the output hardly takes notice has a gradient of the wrong sign."""

    def __init__(self, share):
        super().__init__()
        self.share, self.small = share, nn.Parameter(torch.ones(3))

    def forward(self, x):
        small = self.small if isinstance(self.small, torch.fx.Proxy) else Reversed.apply(self.small)
        return super().forward(x) + self.share * small


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Gradients with an error of some last bits of the largest, another in each run."""
    exact = comparison._with_gradients

    def with_noise(y, theta):
        y, *gradients = exact(y, theta)
        scale = torch.finfo(y.dtype).eps * max(float(g.abs().max()) for g in gradients)
        return [y, *(g + scale * torch.randn_like(g) for g in gradients)]

    monkeypatch.setattr(comparison, "_with_gradients", with_noise)


def compare(net, dtype=torch.float32):
    torch.manual_seed(0)
    net = net.to(dtype)
    return differs(net, dict(net.named_parameters()), torch.randn(5, 1, 6, 6, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_that_is_noise_is_no_difference(as_on_a_gpu, dtype):
    for _ in range(5):
        assert compare(Net(), dtype) is None


def test_noise_decides_no_engine(as_on_a_gpu):
    batch = fm.TaskBatch(
        torch.randn(2, 6, 1, 6, 6), torch.arange(6).remainder(3).repeat(2, 1),
        torch.randn(2, 6, 1, 6, 6), torch.arange(6).remainder(3).repeat(2, 1),
    )  # fmt: skip
    fm.MAML(Net(), engine="layered")(batch)


@pytest.mark.parametrize("share", [1.0, 0.01])
def test_another_output_is_found_in_noise(as_on_a_gpu, share):
    assert "something else when torch.fx traces it" in compare(AskingForTensors(share))


@pytest.mark.parametrize("share", [1.0, 1e-3])
def test_another_gradient_is_found_in_noise(as_on_a_gpu, share):
    assert "something else when torch.fx traces it" in compare(TurningOneGradient(share))


@pytest.mark.parametrize("share", [1e-3, 1e-8])
def test_without_noise_a_gradient_has_its_own_scale_however_small(share):
    assert compare(Net()) is None
    assert "something else when torch.fx traces it" in compare(TurningOneGradient(share))


def test_a_module_that_never_repeats_itself_cannot_be_compared(monkeypatch):
    exact = comparison._with_gradients
    monkeypatch.setattr(
        comparison, "_with_gradients",
        lambda y, theta: [y, *(torch.randn_like(g) for g in exact(y, theta)[1:])],
    )  # fmt: skip
    assert compare(Net()) is not None
