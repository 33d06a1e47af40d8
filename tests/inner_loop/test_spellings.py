"""Ways to spell global pools, flattening and the shape of samples, in convolutional networks."""

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_exact, classification_tasks
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop.engines import networks
from fastmeta.inner_loop.reading.stages import never_fits, stages_of

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")


class Network(nn.Module):
    """Convolutions, something that is told, and a linear layer."""

    def __init__(self, forward, outputs=6, **parts):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.second, self.norm = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.classifier = nn.Linear(outputs, 3)
        self.told = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        h = F.max_pool2d(F.relu(self.features(x)), 2)
        return self.classifier(self.told(self, torch.tanh(self.norm(self.second(h)))))


def meta_of(model, order=2):
    return fm.MAML(model.double(), inner_lr=0.1, inner_steps=2, order=order)


def assert_resident(model, sample, order=2):
    meta, tasks = meta_of(model, order), classification_tasks(sample, t=2, s=4)
    choice = fm.explain(meta, tasks)
    assert choice.name == "resident", choice.passed_over["resident"]
    assert never_fits(model) is None
    assert_exact(meta, tasks, tolerance=1e-9)


def in_parts(self, h):
    n, c, height, width = h.shape
    return F.avg_pool2d(h, (height, width)).view(n, c)


# ---- of features [6, 4, 4], their means ----------------------------------------------------------

MEANS = {
    "row by row": lambda self, h: h.mean(3).mean(2),
    "column by column": lambda self, h: h.mean(2).mean(2),
    "the last, twice": lambda self, h: h.mean(-1).mean(-1),
    "by names": lambda self, h: h.mean(dim=2).mean(dim=-1),
    "both": lambda self, h: h.mean((2, 3)),
    "both, kept": lambda self, h: h.mean([-1, -2], keepdim=True).view(h.size(0), -1),
    "kept one by one": lambda self, h: h.mean(3, keepdim=True).mean(2, True).flatten(1),
    "torch.mean": lambda self, h: torch.mean(h, dim=[2, 3]),
    "of flat pixels": lambda self, h: torch.mean(h.flatten(2), 2),
    "of a view": lambda self, h: h.view(h.size(0), h.size(1), -1).mean(-1),
    "of a product": lambda self, h: h.view(len(h), h.size(1), h.size(2) * h.size(3)).mean(2),
    "of a row's sequence": lambda self, h: F.avg_pool1d(h.mean(2), 2).mean(-1),
    "of a column's sequence": lambda self, h: F.avg_pool1d(h.mean(3), 2, 2).mean(-1),
    "of sums of rows": lambda self, h: (h.mean(2) + torch.sigmoid(h).mean(2)).mean(-1),
    "shape": lambda self, h: F.avg_pool2d(h, h.shape[2:]).flatten(1),
    "size": lambda self, h: F.avg_pool2d(h, h.size()[2:]).view(h.size(0), -1),
    "a keyword": lambda self, h: F.avg_pool2d(h, kernel_size=h.size()[-2:]).squeeze(3).squeeze(2),
    "two sides": lambda self, h: F.avg_pool2d(h, (h.size(2), h.size(3)))[:, :, 0, 0],
    "one side": lambda self, h: F.avg_pool2d(h, h.shape[-1]).squeeze(),
    "taken apart": in_parts,
    "a number": lambda self, h: F.avg_pool2d(h, 4).view(-1, 6),
    "a stride that goes nowhere": lambda self, h: F.avg_pool2d(h, 4, 1).reshape(-1, 6),
    "adaptive": lambda self, h: F.adaptive_avg_pool2d(h, 1).view(h.shape[0], -1),
    "adaptive, both sides": lambda self, h: F.adaptive_avg_pool2d(h, (1, 1))[..., 0, 0],
    "len": lambda self, h: F.adaptive_avg_pool2d(h, 1).view(len(h), -1),
    "squeezed": lambda self, h: F.adaptive_avg_pool2d(h, 1).squeeze(),
    "squeezed twice": lambda self, h: torch.squeeze(F.adaptive_avg_pool2d(h, 1).squeeze(-1), -1),
    "squeezed at once": lambda self, h: F.adaptive_avg_pool2d(h, 1).squeeze((2, 3)),
    "from behind": lambda self, h: F.adaptive_avg_pool2d(h, 1)[:, :, -1][..., 0],
    "torch.flatten": lambda self, h: torch.flatten(F.adaptive_avg_pool2d(h, 1), 1),
    "there and back": lambda self, h: h.mean((2, 3)).unsqueeze(-1).unsqueeze(2).flatten(1),
    "unflattened": lambda self, h: h.mean((2, 3)).unflatten(1, (6, 1, 1)).flatten(-3),
    "no dropout": lambda self, h: F.dropout(h, 0.5, training=False).mean((2, 3)),
    "no dropout of channels": lambda self, h: F.dropout2d(h, 0.0, self.training).mean((2, 3)),
    "contiguous": lambda self, h: h.contiguous().clone().mean((2, 3)),
    "in place": lambda self, h: h.mean(3).relu_().mean(2),
    "largest": lambda self, h: F.max_pool2d(h, h.shape[2:]).flatten(1),
    "largest, adaptive": lambda self, h: F.adaptive_max_pool2d(h, 1).flatten(1),
    "instance norm": lambda self, h: F.instance_norm(h).sigmoid().mean((2, 3)),
    "layer norm": lambda self, h: F.layer_norm(h, h.shape[1:]).sigmoid().mean((2, 3)),
    "layer norm of pixels": lambda self, h: F.layer_norm(h, h.size()[2:]).sigmoid().mean((2, 3)),
    "batch norm": lambda self, h: F.batch_norm(h.relu(), None, None, training=True).mean((2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", MEANS)
def test_means_of_pixels(name, order):
    assert_resident(Network(MEANS[name]), (1, 8, 8), order)


LAYERS = {
    "adaptive": lambda: (nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten()),
    "adaptive, largest": lambda: (nn.AdaptiveMaxPool2d(1), nn.Flatten()),
    "a lone window": lambda: (nn.AvgPool2d(4, stride=1, padding=0), nn.Flatten(1)),
    "a lone window of many": lambda: (nn.MaxPool2d((3, 4), stride=(3, 1)), nn.Flatten(-3)),
    "nothing": lambda: (nn.Dropout(0.0), nn.Identity(), nn.AvgPool2d(4), nn.Flatten()),
    "unflattened": lambda: (
        nn.AvgPool2d(4), nn.Flatten(), nn.Unflatten(1, (6, 1, 1)), nn.Flatten(),
    ),
}  # fmt: skip


def of_layers(name):
    def forward(self, h):
        for layer in self.layers:
            h = layer(h)
        return h

    return Network(forward, layers=nn.ModuleList(LAYERS[name]()))


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    assert_resident(of_layers(name), (1, 8, 8))


MORE = {  # what a pool makes of [6, 4, 4], and how many numbers
    "halves": (lambda self, h: F.adaptive_avg_pool2d(h, 2).flatten(1), 24),
    "one side": (lambda self, h: F.adaptive_max_pool2d(h, (None, 1)).flatten(1), 24),
    "half a side": (lambda self, h: F.max_pool2d(h, h.size(2) // 2).reshape(len(h), -1), 24),
    "rounding up what fits": (lambda self, h: F.avg_pool2d(h, 2, ceil_mode=True).flatten(1), 24),
    "far apart": (lambda self, h: F.max_pool2d(h, 1, 3).flatten(1), 24),
    "all": (lambda self, h: h.reshape(h.shape[0], h.shape[1] * 4 * h.shape[3]), 96),
    "views of views": (lambda self, h: h.view(len(h), 6, 16).view(-1, 6, 4, 4).view(-1, 96), 96),
}


@pytest.mark.parametrize("name", MORE)
def test_pools_that_leave_more(name):
    forward, outputs = MORE[name]
    assert_resident(Network(forward, outputs), (1, 8, 8))


class Begins(Network):
    def __init__(self, begin):
        super().__init__(lambda self, h: h.mean((2, 3)))
        self.begin = begin

    def forward(self, x):
        return super().forward(self.begin(x))


BEGINS = {
    "view": (lambda x: x.view(-1, 1, 8, 8), (64,)),
    "of images": (lambda x: x.view(-1, 1, 8, 8), (8, 8)),
    "inferred": (lambda x: x.reshape(x.size(0), 1, 8, -1), (64,)),
    "a tuple": (lambda x: torch.reshape(x, (len(x), 1, 8, 8)), (64,)),
    "unsqueezed": (lambda x: x.unsqueeze(1), (8, 8)),
    "from behind": (lambda x: torch.unsqueeze(x, -3), (8, 8)),
    "an index": (lambda x: x[:, None], (8, 8)),
    "unflattened": (lambda x: x.unflatten(-1, (1, 8, 8)), (64,)),
    "a layer": (nn.Unflatten(1, (1, 8, 8)), (64,)),
    "there and back": (lambda x: x.flatten(1).view(x.shape[0], 1, x.shape[2], -1), (1, 8, 8)),
}


@pytest.mark.parametrize("name", BEGINS)
def test_beginnings(name):
    begin, sample = BEGINS[name]
    assert_resident(Begins(begin), sample)


def test_features_of_a_perceptron():
    class Perceptron(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(12, 5), nn.Linear(5, 3)

        def forward(self, x):
            x = x.view(x.size(0), x.size(1) * x.size(2))
            return self.second(F.relu(self.first(x)).view(-1, 5))

    assert_resident(Perceptron(), (3, 4))


# ---- what looks alike ----------------------------------------------------------------------------

OTHERS = {
    "of channels": (lambda self, h: h.mean(1).flatten(1), 16),
    "of channels and rows": (lambda self, h: h.mean((1, 2)), 4),
    "of channels, from behind": (lambda self, h: h.mean(-3).flatten(1), 16),
    "of flat numbers": (lambda self, h: h.flatten(1).mean(1, keepdim=True), 1),
    "of channels of pixels": (lambda self, h: h.flatten(2).mean(1), 16),
    "of samples": (lambda self, h: (h + h.mean(0, keepdim=True)).mean((2, 3)), 6),
    "of everything": (lambda self, h: h.mean((2, 3)) + h.mean(), 6),
    "sums": (lambda self, h: h.sum((2, 3)), 6),
    "the largest, shared": (lambda self, h: h.amax((2, 3)), 6),
    "rounding up": (lambda self, h: F.avg_pool2d(h, 3, ceil_mode=True).flatten(1), 24),
    "padded": (
        lambda self, h: F.avg_pool2d(h, 2, padding=1, count_include_pad=False).flatten(1), 54,
    ),
    "uneven": (lambda self, h: F.adaptive_avg_pool2d(h, 3).flatten(1), 54),
    "larger": (lambda self, h: F.adaptive_avg_pool2d(h, 8).flatten(1), 384),
    "a channel": (lambda self, h: h[:, 0].flatten(1), 16),
    "every other channel": (lambda self, h: h[:, ::2].flatten(1), 48),
    "channels last": (lambda self, h: h.permute(0, 2, 3, 1).reshape(len(h), -1), 96),
    "turned": (lambda self, h: h.transpose(2, 3).flatten(1), 96),
    "other channels": (lambda self, h: F.max_pool2d(h.view(-1, 16, 2, 3), (1, 3)).flatten(1), 32),
    "channels and rows": (lambda self, h: h.flatten(1, 2).mean(2), 24),
    "sequences of pixels": (lambda self, h: F.avg_pool1d(h.flatten(2), 2).flatten(1), 48),
    "rows of others": (
        lambda self, h: h.mean((2, 3)).view(-1, 3).sigmoid().view(-1, 2, 3).mean(2), 2,
    ),
    "one of samples": (lambda self, h: h.mean((2, 3)) + h[:1].mean((2, 3)), 6),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_looks_alike_is_no_stage_and_exact(name):
    forward, outputs = OTHERS[name]
    model = Network(forward, outputs).double()
    assert isinstance(stages_of(model, (1, 8, 8)), str)
    assert_exact(meta_of(model), classification_tasks((1, 8, 8), t=2, s=4), tolerance=1e-9)


FAILING = {
    "other samples": (lambda x: x.view(-1, 1, 4, 4), (1, 8, 8)),
    "too few numbers": (lambda x: x.view(-1, 1, 9, 9), (1, 8, 8)),
    "the number of another": (lambda x: x.view(4, 1, 8, 8), (64,)),
    "two unknown sides": (lambda x: x.view(-1, 1, -1, 8), (64,)),
    "squeezed samples": (lambda x: x.squeeze(0), (1, 8, 8)),
    "unsqueezed samples": (lambda x: x.unsqueeze(0), (8, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILING)
def test_shapes_that_are_none_of_samples(name):
    begin, sample = FAILING[name]
    assert isinstance(stages_of(Begins(begin).double(), sample), str)


def test_the_size_of_a_parameter_is_no_number_of_samples():
    def forward(self, h):
        return h.mean((2, 3)).view(self.classifier.weight.size(0), -1)

    assert "of what is no layer's result" in stages_of(Network(forward).double(), (1, 8, 8))


def test_lone_samples_are_not_squeezed():
    meta = meta_of(Network(MEANS["squeezed"]))
    lone = classification_tasks((1, 8, 8), t=2, s=1)
    with pytest.raises(ValueError, match="one prediction a sample"):
        fm.explain(meta, lone)
    assert fm.explain(meta, classification_tasks((1, 8, 8), t=2)).name == "resident"
    with pytest.raises(ValueError, match="one sample"):
        meta(lone)


def test_a_window_is_lone_for_some_images_alone():
    model = of_layers("a lone window")
    meta = meta_of(model)
    for size in (8, 10, 8):
        meta.model.classifier = nn.Linear(6 * (size // 2 - 3) ** 2, 3).double()
        tasks = classification_tasks((1, size, size), t=2, s=4)
        assert fm.explain(meta, tasks).name == "resident"
        assert_exact(meta_of(model), tasks, tolerance=1e-9)


def test_what_is_misread_as_stages_is_found(monkeypatch):
    right, wrong = Network(MEANS["both"]).double(), Network(MEANS["largest"]).double()
    misread = stages_of(wrong, (1, 8, 8))
    monkeypatch.setattr(networks, "stages_of", lambda module, sample: misread)
    monkeypatch.setattr(networks, "headed_of", lambda module, sample: "not asked")
    choice = fm.explain(meta_of(right), classification_tasks((1, 8, 8)))
    assert "read as layers, gives something else" in choice.passed_over["resident"]
