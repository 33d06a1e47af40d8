"""Convolutions of groups of channels in the native kernels."""

import copy

import pytest
import torch
import torch.nn.functional as F
from native_losses import assert_native
from oracle import assert_exact, classification_tasks
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")

SAMPLE = (2, 9, 8)

LAYERS = {
    "of one": nn.Conv2d(8, 8, 3, 2, 1, groups=8),
    "of one, dilated": nn.Conv2d(24, 24, 3, 1, 2, dilation=2, groups=24, bias=False),
    "of two": nn.Conv2d(10, 10, (2, 3), (3, 2), groups=5),
    "of four": nn.Conv2d(12, 12, 3, padding=1, groups=3),
    "of four, one row": nn.Conv2d(36, 36, (1, 3), groups=9),
    "of eight": nn.Conv2d(24, 24, 3, 2, 1, groups=3, bias=False),
    "of eight, one pixel": nn.Conv2d(40, 40, 1, groups=5),
    "of sixteen": nn.Conv2d(32, 32, 3, padding=1, groups=2),
    "of sixteen to thirty-two": nn.Conv2d(32, 64, 3, 2, groups=2),
    "of thirty-two to sixteen": nn.Conv2d(64, 32, 2, padding="same", groups=2),
    "of one to two": nn.Conv2d(8, 16, 3, padding=1, groups=8),
    "of one to two, more than a vector": nn.Conv2d(18, 36, (9, 1), groups=18, bias=False),
    "of two to four": nn.Conv2d(20, 40, 3, 2, 1, groups=10),
    "of four to two": nn.Conv2d(36, 18, 3, padding=1, groups=9),
    "of eight to sixteen": nn.Conv2d(24, 48, 2, groups=3),
    "of sixteen to eight": nn.Conv2d(48, 24, 2, groups=3, bias=False),
    "transposed, of two to one": nn.ConvTranspose2d(40, 20, 3, 2, 1, groups=20),
    "transposed, of one": nn.ConvTranspose2d(8, 8, 3, 2, 1, groups=8),
    "transposed, of four": nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=2, bias=False),
    "transposed, of sixteen to thirty-two": nn.ConvTranspose2d(32, 64, 3, 2, 1, 1, groups=2),
}


def around(layer):
    return nn.Sequential(
        nn.Conv2d(2, layer.in_channels, 3, padding=1), nn.GELU(), copy.deepcopy(layer),
        nn.BatchNorm2d(layer.out_channels), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(layer.out_channels, 3),
    )  # fmt: skip


def tasks_with_inputs(sample=SAMPLE):
    tasks = classification_tasks(sample, t=2)
    return tasks, [tasks.support_x.requires_grad_(), tasks.query_x.requires_grad_()]


@pytest.mark.parametrize("name", LAYERS)
def test_groups_are_exact(variant, name):
    tasks, inputs = tasks_with_inputs()
    options = dict(inner_lr=0.2, inner_steps=2, learn_inner_lr="element")
    meta = fm.MAML(around(LAYERS[name]).double(), **options)
    assert_native(meta, tasks, [*meta.parameters(), *inputs], tolerance=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_as_the_first_layer(name):
    layer = LAYERS[name]
    tasks, inputs = tasks_with_inputs((layer.in_channels, 9, 8))
    model = nn.Sequential(copy.deepcopy(layer), nn.Tanh(), nn.AdaptiveMaxPool2d(1), nn.Flatten())
    head = nn.Linear(layer.out_channels, 3)
    meta = fm.MAML(nn.Sequential(model, head).double(), inner_lr=0.2, order=1)
    assert_native(meta, tasks, [*meta.parameters(), *inputs], tolerance=1e-10)


def test_sequences():
    layers = nn.Conv1d(2, 16, 3), nn.Tanh(), nn.Conv1d(16, 16, 5, padding=4, dilation=2, groups=4)
    head = nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 3)
    model = nn.Sequential(*layers, nn.ReLU(), *head)
    meta = fm.MAML(model.double(), inner_lr=0.2, inner_steps=2)
    assert_native(meta, classification_tasks((2, 14)), tolerance=1e-10)


class ResNeXt(nn.Module):
    """Xie et al. 2017: 32 channels in 8 groups, by functions where they may be."""

    def __init__(self):
        super().__init__()
        self.stem, self.down = nn.Conv2d(2, 32, 3, padding=1), nn.Conv2d(32, 32, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(32) for _ in range(3)])
        self.inner = nn.Parameter(0.2 * torch.randn(32, 4, 3, 3))
        self.up, self.head = nn.Conv2d(32, 32, 1, bias=False), nn.Linear(32, 3)

    def forward(self, x):
        x = F.relu(self.norms[0](self.stem(x)))
        h = F.relu(self.norms[1](self.down(x)))
        h = F.conv2d(h, self.inner, padding=1, groups=8)
        x = F.relu(x + self.up(F.relu(self.norms[2](h))))
        return self.head(x.mean((2, 3)))


def test_a_resnext_block_and_float32():
    tasks, _ = tasks_with_inputs()
    meta = fm.MAML(ResNeXt().double(), inner_lr=0.2, inner_steps=2)
    assert_native(meta, tasks, tolerance=1e-10)
    right = torch.autograd.grad(meta(tasks).loss.sum(), list(meta.parameters()))
    meta.float()
    support_x, query_x = tasks.support_x.float(), tasks.query_x.float()
    single = fm.TaskBatch(support_x, tasks.support_y, query_x, tasks.query_y)
    ours = torch.autograd.grad(meta(single).loss.sum(), list(meta.parameters()))
    for a, b in zip(ours, right, strict=True):
        assert (a - b).norm() < 1e-4 * b.norm() + 1e-6


def test_an_encoder_of_a_prototypical_network():
    layer = LAYERS["of four"]
    encoder = around(layer)[:-1].double()
    proto = fm.ProtoNet(encoder)
    support, query = torch.randn(2, 6, *SAMPLE).double(), torch.randn(2, 4, *SAMPLE).double()
    labels = torch.arange(6).expand(2, 6) % 3
    tasks = fm.TaskBatch(support, labels, query, torch.randint(0, 3, (2, 4)))
    assert fm.explain(proto, tasks).name == "resident"
    assert_exact(proto, tasks, tolerance=1e-10)


@pytest.mark.parametrize("layer", [nn.Conv2d(12, 36, 3, groups=4), nn.Conv2d(24, 24, 3, groups=2)])
def test_groups_that_fill_no_vector_run_elsewhere(layer):
    meta = fm.MAML(around(layer).double(), inner_lr=0.2, inner_steps=2)
    tasks, _ = tasks_with_inputs()
    choice = fm.explain(meta, tasks)
    assert choice.name == "layered"
    assert "the native kernels those of 1, 2, 4 or 8" in choice.passed_over["resident"]
    assert_exact(meta, tasks)
