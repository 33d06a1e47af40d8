"""Losses of users on predictions that are images: natively where they are sums over samples."""

import pytest
import torch
import torch.nn.functional as F
from native_losses import assert_native
from oracle import DOUBLE, assert_exact
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.functional.loss_programs import Unreadable, read_loss

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")
TWICE = torch.tensor([2.0], dtype=DOUBLE)
WEIGHTS = torch.tensor([2.0, 0.5], dtype=DOUBLE)


def decoder():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.GroupNorm(1, 3), nn.Tanh(),
        nn.ConvTranspose2d(3, 2, 2, stride=2),
    ).double()  # fmt: skip


def tasks_of_images(t=3, s=4, q=2, targets=2):
    torch.manual_seed(4)
    x = torch.randn(t, s + q, 1, 3, 2, dtype=DOUBLE)
    y = torch.rand(t, s + q, targets, 6, 4, dtype=DOUBLE)
    return fm.TaskBatch(x[:, :s], y[:, :s], x[:, s:], y[:, s:])


def dice(p, y):
    p, y = p.sigmoid().flatten(1), y.flatten(1)
    return (1 - (2 * (p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)).mean()


def laplace(p, y):
    """A mean and a logarithmic scale of each pixel, for one channel of targets."""
    mean, scale = p.chunk(2, 1)
    return ((mean - y[:, :1]).abs() * (-scale).exp() + scale).sum((1, 2, 3)).mean()


def by_channels(p, y):
    total = 0
    for channel, error in enumerate((p - y).square().unbind(1)):
        total = total + (channel + 1) * error.mean()
    return total


NATIVE = {
    "l1": F.l1_loss,
    "huber of module": nn.HuberLoss(delta=0.3),
    "charbonnier": lambda p, y: ((p - y) ** 2 + 1e-3).sqrt().mean(),
    "a sum": nn.MSELoss(reduction="sum"),
    "weighted": lambda p, y: F.binary_cross_entropy_with_logits(p, y, pos_weight=TWICE),
    "focal": lambda p, y: ((p.sigmoid() - y).abs() ** 2 * (p - y).square()).mean(),
    "dice of each": dice,
    "laplace": laplace,
    "by channels": by_channels,
    "slices": lambda p, y: (p[:, 1:] - y[:, :1]).abs().mean() + p[:, :-1].square().mean(),
    "select": lambda p, y: (p[:, 1] - y[:, 0]).abs().mean() + p[:, -1].square().mean(),
    "rows of one shape": lambda p, y: (
        (p.view(len(p), 12, 4) - y.reshape(len(y), 12, 4)).abs().mean()
    ),
    "split and joined": lambda p, y: (torch.cat(p.split(1, 1)[::-1], 1) - y).square().mean(),
}
REFUSED = {
    "dice of all": lambda p, y: 1 - 2 * (p.sigmoid() * y).sum() / (p.sigmoid().sum() + y.sum()),
    "channels over pixels": lambda p, y: (p.mean((2, 3)) - y.mean((2, 3))).square().mean(),
    "one channel to both": lambda p, y: ((p - y) * y[:, :1]).abs().mean(),
    "weights of channels": lambda p, y: ((p - y).square() * WEIGHTS.view(2, 1, 1)).mean(),
    "turned": lambda p, y: (p.transpose(2, 3) - y.transpose(2, 3)).square().mean(),
    "total variation": lambda p, y: (p[:, :, 1:] - p[:, :, :-1]).abs().mean() + F.l1_loss(p, y),
    "softmax of channels": lambda p, y: -(y * p.log_softmax(1)).sum(1).mean(),
    "samples together": lambda p, y: (p.mean(0) - y.mean(0)).square().mean(),
}


@pytest.mark.parametrize("t", [1, 3])
@pytest.mark.parametrize("name", NATIVE)
def test_natively(name, t):
    meta = fm.MAML(decoder(), loss=NATIVE[name], inner_steps=2, inner_lr=0.05)
    tasks = tasks_of_images(t)
    assert fm.explain(meta, tasks).name == "resident"
    assert_native(meta, tasks)


@pytest.mark.parametrize("name", REFUSED)
def test_by_another_engine(name):
    meta = fm.MAML(decoder(), loss=REFUSED[name], inner_steps=2, inner_lr=0.05)
    tasks = tasks_of_images()
    assert fm.explain(meta, tasks).name != "resident"
    assert_exact(meta, tasks)


def test_targets_of_fewer_channels_and_gradients_into_inputs():
    meta = fm.MAML(decoder(), loss=laplace, inner_steps=2, inner_lr=0.05, learn_inner_lr="tensor")
    tasks = tasks_of_images(targets=1)
    tasks.support_x.requires_grad_(), tasks.query_x.requires_grad_()
    assert_native(meta, tasks, [*meta.parameters(), tasks.support_x, tasks.query_x])


def test_too_many_numbers_are_refused():
    image = torch.zeros(2, 3, 128, 128)
    with pytest.raises(Unreadable, match=r"numbers of a sample, of 131,072 at most"):
        read_loss(F.l1_loss, image, image)
