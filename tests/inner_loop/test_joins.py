"""Networks of images whose forwards multiply results, put channels side by side, or look afar."""

import copy

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_exact, classification_tasks
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop.reading.stages import stages_of

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")

C, SIZE = 2, 8


class Network(nn.Module):
    """Two convolutions, something that is told, and a linear layer over the mean of its pixels."""

    def __init__(self, told, channels=5, **parts):
        super().__init__()
        self.first, self.norm = nn.Conv2d(C, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.second, self.head = nn.Conv2d(5, 5, 3, padding=1), nn.Linear(channels, 3)
        self.told = told
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        h = torch.tanh(self.norm(self.first(x)))
        return self.head(self.told(self, h).mean((2, 3)))


def assert_resident(model, sample=(C, SIZE, SIZE), order=2, **options):
    meta = fm.MAML(model.double(), inner_lr=0.1, inner_steps=2, order=order, **options)
    tasks = classification_tasks(sample, t=2, s=4)
    for x in (tasks.support_x, tasks.query_x):
        x.requires_grad_()
    choice = fm.explain(meta, tasks)
    assert choice.name == "resident", choice.passed_over["resident"]
    inputs = [p for p in meta.parameters() if p.requires_grad]
    assert_exact(meta, tasks, [*inputs, tasks.support_x, tasks.query_x], tolerance=1e-9)


def squeezed(self, h):
    """Squeeze and excitation, Hu et al. 2018."""
    b, c, _, _ = h.size()
    s = F.adaptive_avg_pool2d(h, 1).view(b, c)
    s = torch.sigmoid(self.out(F.relu(self.into(s)))).view(b, c, 1, 1)
    return h * s.expand_as(h)


def of_channels(self, h):
    s = self.out(F.relu(self.into(h.mean((2, 3)))))
    return h * torch.sigmoid(s)[:, :, None, None]


def by_linear_layers():
    return {"into": nn.Linear(5, 3), "out": nn.Linear(3, 5)}


def of_rows(self, h):
    return h * self.one(h).mean(3, keepdim=True)


def convolved(channels, kernel=1, **options):
    return nn.Conv2d(5, channels, kernel, padding=kernel // 2, **options)


def in_place(self, h):
    y = self.second(h)
    y *= torch.sigmoid(self.one(h))
    return y


def dense(self, h):
    h = torch.cat([h, F.relu(self.second(h))], 1)
    return torch.cat((h, torch.tanh(self.third(h)), h), dim=-3)


JOINS = {
    "squeeze and excitation": (squeezed, 5, by_linear_layers()),
    "a gate for each channel": (of_channels, 5, by_linear_layers()),
    "a gate for each pixel": (lambda m, h: h * m.one(h).sigmoid(), 5, {"one": convolved(1)}),
    "a gate for each row": (of_rows, 5, {"one": convolved(1)}),
    "a gate for all": (
        lambda m, h: m.one(h).mean((2, 3), keepdim=True) * m.second(h), 5, {"one": convolved(1)},
    ),
    "a gate for each number": (
        lambda m, h: m.second(h) * m.one(h).sigmoid(), 5, {"one": convolved(5)},
    ),
    "in place": (in_place, 5, {"one": convolved(1)}),
    "a square": (lambda m, h: h * h, 5, {}),
    "a square of what is made": (lambda m, h: (lambda y: y * y)(m.second(h)), 5, {}),
    "a product of three": (lambda m, h: h * m.second(h) * h.mean((2, 3), keepdim=True), 5, {}),
    "a difference": (lambda m, h: h - m.second(h), 5, {}),
    "a difference in place": (lambda m, h: m.second(h).sub_(h), 5, {}),
    "less its mean": (lambda m, h: h - h.mean((2, 3), keepdim=True).tanh(), 5, {}),
    "a mean less them": (lambda m, h: h.mean((2, 3), True) - h * h, 5, {}),
    "a sum with a row": (lambda m, h: (m.second(h) + h.mean(2, keepdim=True)).tanh(), 5, {}),
    "channels": (lambda m, h: torch.cat([h, m.second(h)], 1).relu(), 10, {}),
    "channels of three": (dense, 27, {"third": nn.Conv2d(10, 7, 3, padding=1)}),
    "channels of itself": (lambda m, h: torch.cat([h, h], 1).sigmoid(), 10, {}),
    "one alone": (lambda m, h: torch.cat([m.second(h)], 1), 5, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", JOINS)
def test_joins_are_exact(name):
    told, channels, parts = JOINS[name]
    assert_resident(Network(told, channels, **parts))


@pytest.mark.parametrize("order", [1, 2])
def test_joins_of_order_1_and_with_rates_that_are_learned(order):
    model = Network(of_channels, **by_linear_layers())
    assert_resident(model, order=order, learn_inner_lr="element")


def test_joins_with_parameters_that_do_not_adapt():
    model = Network(of_channels, **by_linear_layers())
    names = [name for name, _ in model.named_parameters() if not name.startswith("first")]
    assert_resident(model, adapt_parameters=names)


def test_gates_of_the_input():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.conv = nn.Conv2d(C, 1, 3, padding=1), nn.Conv2d(2 * C, 4, 3)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            h = torch.cat([x * torch.sigmoid(self.one(x)), x], 1)
            return self.head(self.conv(h).relu().mean((2, 3)))

    assert_resident(Gated())


class UShaped(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(C, 6, 3, padding=1), nn.Conv2d(6 + C, 4, 3, padding=1)
        self.head = nn.Linear(4 * 64, 3)

    def forward(self, x):
        return self.head(self.up(torch.cat([self.down(x).relu(), x], 1)).flatten(1))


def test_a_skip_over_a_convolution():
    assert_resident(UShaped())


OTHERS = {
    "samples": lambda m, h: torch.cat([h, h], 0)[: len(h)],
    "rows": lambda m, h: torch.cat([h, h], 2),
    "an outer product": lambda m, h: h.mean(2, keepdim=True) * h.mean(3, keepdim=True),
    "a product of ranks": lambda m, h: h * h.mean((0, 1)),
    "a quotient": lambda m, h: h / (2 + h.mean((2, 3), keepdim=True)),
    "alpha": lambda m, h: torch.add(h, m.second(h), alpha=0.5),
    "what is spread": lambda m, h: h.mean((2, 3), keepdim=True).expand_as(h) * m.second(h),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_joins_are_exact_in_other_engines(name):
    model = Network(OTHERS[name]).double()
    assert isinstance(stages_of(model, (C, SIZE, SIZE)), str)
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2)
    assert_exact(meta, classification_tasks((C, SIZE, SIZE), t=2, s=4), tolerance=1e-9)


# ---- kernels and windows -------------------------------------------------------------------------


def of_layers(*layers, kind=nn.AdaptiveAvgPool2d):
    first = nn.Conv2d(C, 5, 3, padding=1) if kind is nn.AdaptiveAvgPool2d else nn.Conv1d(C, 5, 3)
    return nn.Sequential(first, nn.Tanh(), *layers, kind(1), nn.Flatten(), nn.LazyLinear(3))


def built(model, sample):
    model(torch.zeros(2, *sample))
    return model


IMAGES = {
    "dilation": nn.Conv2d(5, 4, 3, dilation=2),
    "dilation and stride": nn.Conv2d(5, 4, 3, 2, padding=4, dilation=3),
    "dilation within the stride": nn.Conv2d(5, 4, 2, 4, padding=1, dilation=2),
    "two dilations": nn.Conv2d(5, 17, (3, 2), (1, 2), (2, 1), dilation=(2, 3)),
    "the same size": nn.Conv2d(5, 4, 4, padding="same"),
    "of a whole image": nn.Conv2d(5, 17, (SIZE, SIZE + 1)),
    "of whole lines": nn.Conv2d(5, 4, (3, SIZE + 3), (2, 1), (1, 1), bias=False),
    "of whole columns, dilated": nn.Conv2d(5, 4, (4, 3), (3, 2), (1, 0), dilation=(3, 2)),
    "depthwise, of a whole image": nn.Conv2d(5, 5, (SIZE, SIZE + 1), groups=5),
    "the same size, dilated": nn.Conv2d(5, 4, (2, 3), padding="same", dilation=(3, 2)),
    "depthwise": nn.Conv2d(5, 5, 3, padding=1, groups=5),
    "depthwise, strided and dilated": nn.Conv2d(5, 5, 3, 2, 2, dilation=2, groups=5, bias=False),
    "transposed": nn.ConvTranspose2d(5, 4, 4, 2, 1),
    "transposed and cut off": nn.ConvTranspose2d(5, 4, 2, 2, padding=2),
    "transposed by one": nn.ConvTranspose2d(5, 17, (2, 3), bias=False),
    "transposed with everything": nn.ConvTranspose2d(5, 4, 3, (3, 2), (1, 2), (1, 0), dilation=2),
    "overlapping maxima": nn.MaxPool2d(3, 2, 1),
    "overlapping means": nn.AvgPool2d((3, 2), 1),
    "means with zeros": nn.AvgPool2d(2, padding=1),
    "maxima of some rows": nn.MaxPool2d((2, 3), (3, 1), (1, 0)),
}


@pytest.mark.parametrize("name", IMAGES)
def test_kernels_and_windows_of_images(variant, name):
    layer = copy.deepcopy(IMAGES[name])
    model = of_layers(layer, nn.BatchNorm2d(getattr(layer, "out_channels", 5)), nn.ReLU())
    assert_resident(built(model, (C, SIZE, SIZE + 1)), (C, SIZE, SIZE + 1))


SEQUENCES = {
    "dilation": nn.Conv1d(5, 5, 3, dilation=4),
    "depthwise": nn.Conv1d(5, 5, 3, groups=5, padding=2),
    "the same size": nn.Conv1d(5, 5, 2, padding="same", dilation=2),
    "transposed": nn.ConvTranspose1d(5, 5, 4, 3, 2, 1),
    "overlapping maxima": nn.MaxPool1d(3, 2),
    "means with zeros": nn.AvgPool1d(2, padding=1),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_kernels_and_windows_of_sequences(name):
    model = of_layers(copy.deepcopy(SEQUENCES[name]), nn.Sigmoid(), kind=nn.AdaptiveAvgPool1d)
    assert_resident(built(model, (C, 20)), (C, 20))


@pytest.mark.parametrize("groups", [1, 3])
def test_a_decoder_from_a_single_pixel(groups):
    up = nn.ConvTranspose2d(6, 6, (4, 3), (2, 3), (1, 0), (0, 2), groups, dilation=(2, 1))
    layers = nn.Conv2d(C, 6, (SIZE, SIZE)), nn.Tanh(), up, nn.Softplus(), nn.Conv2d(6, 3, (2, 1))
    assert_resident(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()))


def test_a_decoder_by_functions():
    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Conv2d(C, 6, 3, 2, 1), nn.Parameter(torch.randn(6, 4, 4, 4))
            self.head = nn.Linear(4 + C, 3)

        def forward(self, x):
            h = F.conv_transpose2d(self.down(x).relu(), self.up, stride=2, padding=1)
            return self.head(torch.cat([h.tanh(), x], 1).mean((2, 3)))

    assert_resident(ByHand())


def test_transposed_convolutions_in_groups_are_exact_in_other_engines():
    model = of_layers(nn.ConvTranspose2d(5, 15, 3, groups=5), nn.Tanh())
    model = built(model, (C, SIZE, SIZE)).double()
    assert isinstance(stages_of(model, (C, SIZE, SIZE)), str)
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2)
    assert_exact(meta, classification_tasks((C, SIZE, SIZE), t=2, s=4), tolerance=1e-9)


def test_depthwise_separable_layers_by_functions():
    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.depth, self.head = nn.Parameter(torch.randn(C, 1, 3, 3)), nn.Linear(C, 3)

        def forward(self, x):
            h = F.conv2d(x, self.depth, padding=2, dilation=2, groups=C)
            return self.head(F.avg_pool2d(F.relu(h), 3, 2, 1).mean((2, 3)))

    assert_resident(ByHand())


# ---- borders, parts of images, pixels again and again --------------------------------------------


class Causal(nn.Module):
    """Bai et al. 2018: dilated convolutions that see no later steps."""

    def __init__(self, chomps):
        super().__init__()
        self.chomps = chomps
        self.layers = nn.ModuleList(
            nn.Conv1d(6 if i else C, 6, 3, dilation=2**i, padding=2 * 2**i * chomps)
            for i in range(3)
        )
        self.side, self.head = nn.Conv1d(C, 6, 1), nn.Linear(6, 3)

    def forward(self, x):
        h = x
        for i, layer in enumerate(self.layers):
            if self.chomps:
                h = torch.relu(layer(h)[:, :, : -2 * 2**i])
            else:
                h = torch.relu(layer(F.pad(h, (2 * 2**i, 0))))
        return self.head((h + self.side(x))[:, :, -1])


@pytest.mark.parametrize("chomps", [0, 1])
def test_causal_convolutions(chomps):
    assert_resident(Causal(chomps), (C, 15))


PARTS = {
    "padding": (lambda m, h: m.second(F.pad(h, (2, 1, 0, 3))), 5, {}),
    "padding by a layer": (
        lambda m, h: m.second(m.pad(h)), 5, {"pad": nn.ZeroPad2d((1, 0, 2, 1))},
    ),
    "a part": (lambda m, h: m.second(h)[:, :, 1:-2, 3:].relu(), 5, {}),
    "every other pixel": (lambda m, h: h[..., ::2, 1::3], 5, {}),
    "a row, kept": (lambda m, h: h * h[:, :, 2:3], 5, {}),
    "half of it twice as large": (
        lambda m, h: h + F.interpolate(F.max_pool2d(h, 2), scale_factor=2), 5, {},
    ),
    "upsampled": (lambda m, h: m.second(m.up(h)), 5, {"up": nn.Upsample(scale_factor=(1, 3))}),
    "to a size": (
        lambda m, h: torch.cat([h, m.up(h.mean((2, 3), keepdim=True))], 1), 10,
        {"up": nn.Upsample(size=SIZE)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_parts_and_borders_are_exact(name):
    told, channels, parts = PARTS[name]
    assert_resident(Network(told, channels, **parts))


def test_a_corner():
    model = Network(lambda m, h: m.second(h)[:, :, -1, 0:1, None])
    assert_resident(Network(lambda m, h: m.second(h)[:, :, 3:4, -1:]))
    assert isinstance(stages_of(model.double(), (C, SIZE, SIZE)), str)


OTHER_PARTS = {
    "another number around": lambda m, h: m.second(F.pad(h, (1, 1), value=2.0)),
    "reflected": lambda m, h: m.second(F.pad(h, (1, 1, 1, 1), mode="reflect")),
    "cut off": lambda m, h: m.second(F.pad(h, (-1, 1))),
    "channels around": lambda m, h: F.pad(h, (0, 0, 0, 0, 1, 0))[:, 1:],
    "padded, for the largest": lambda m, h: F.pad(h, (1, 0)).amax((2, 3), keepdim=True),
    "padded and pooled": lambda m, h: F.max_pool2d(F.pad(h, (1, 1, 1, 1)), 2),
    "bilinear": lambda m, h: F.interpolate(h, scale_factor=2, mode="bilinear"),
    "in part": lambda m, h: F.interpolate(h, size=(12, 8)),
    "every other channel": lambda m, h: torch.cat([h[:, ::2], h[:, 1::2]], 1),
    "a place": lambda m, h: h * h[:, :, 0, 0, None, None],
}


@pytest.mark.parametrize("name", OTHER_PARTS)
def test_other_parts_are_exact_in_other_ways(name):
    model = Network(OTHER_PARTS[name]).double()
    assert isinstance(stages_of(model, (C, SIZE, SIZE)), str)
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2)
    assert_exact(meta, classification_tasks((C, SIZE, SIZE), t=2, s=4), tolerance=1e-9)


LAYERED = {
    **{name: Network(*PARTS[name][:2], **PARTS[name][2]) for name in PARTS},
    "causal": Causal(0),
    "transposed": of_layers(IMAGES["transposed"], nn.Tanh()),
    "transposed with everything": of_layers(IMAGES["transposed with everything"], nn.Tanh()),
    "a sequence": of_layers(SEQUENCES["transposed"], nn.Tanh(), kind=nn.AdaptiveAvgPool1d),
    "groups": of_layers(nn.Conv2d(5, 10, 3, groups=5, dilation=2), nn.Tanh()),
}


@pytest.mark.parametrize("name", LAYERED)
def test_the_layered_engine_has_them_too(name):
    sample = (C, 15) if name in ("causal", "a sequence") else (C, SIZE, SIZE)
    model = built(copy.deepcopy(LAYERED[name]), sample).double()
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2, engine="layered")
    assert_exact(meta, classification_tasks(sample, t=2, s=4), tolerance=1e-9)


def test_what_no_stage_reads_is_said():
    model = Network(lambda m, h: h.view(m.second(h).size(0), 5, SIZE, SIZE)).double()
    assert "nothing but the shape" in stages_of(model, (C, SIZE, SIZE))
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2)
    assert_exact(meta, classification_tasks((C, SIZE, SIZE), t=2, s=4), tolerance=1e-9)


def test_an_image_that_is_padded_at_last():
    model = nn.Sequential(nn.Conv2d(C, 3, 3), nn.ZeroPad2d(1)).double()
    assert "padded at last" in stages_of(model, (C, SIZE, SIZE))
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2, loss="mse")
    x, y = torch.randn(2, 2, 3, C, SIZE, SIZE).double(), torch.randn(2, 2, 3, 3, 8, 8).double()
    assert_exact(meta, fm.TaskBatch(x[0], y[0], x[1], y[1]), tolerance=1e-9)


SIZES = {
    "times": lambda m, h: h.view(h.size(0) * 5, -1).mean(1).view(h.size(0), 5, 1, 1),
    "folded": lambda m, h: m.second(h.view(h.size(0) * 1, *h.shape[1:])),
    "arange": lambda m, h: h[torch.arange(h.size(0)), :, 0, 0][:, :, None, None],
    "a root": lambda m, h: h / h.size(3) ** 0.5,
    "a power": lambda m, h: h.tanh() ** (1 + 1 / h.size(0)) if h.size(0) > 99 else h,
    "a remainder": lambda m, h: h[:, :, h.size(2) % 3 :],
    "a remainder around": lambda m, h: m.second(F.pad(h, (0, h.size(3) % 3, 0, 0))),
    "a half": lambda m, h: h[:, :, -h.size(2) // 2 :],
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_are_computed(name):
    model = Network(SIZES[name]).double()
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2)
    assert_exact(meta, classification_tasks((C, SIZE, SIZE), t=2, s=4), tolerance=1e-9)


HARD_SWISHES = {
    "layer": lambda self, h: self.unit(h),
    "in place": lambda self, h: self.inplace(h),
    "function": lambda self, h: F.hardswish(h) + h,
    "by hand": lambda self, h: h * F.relu6(h + 3) / 6,
}


@pytest.mark.parametrize("name", HARD_SWISHES)
def test_hard_swish(name):
    units = {"unit": nn.Hardswish(), "inplace": nn.Hardswish(inplace=True)}
    model = Network(HARD_SWISHES[name], **units)
    with torch.no_grad():
        model.norm.weight.fill_(9.0)  # so that all three pieces are met
        model.second.weight.mul_(4.0)
    model.told = lambda self, h: HARD_SWISHES[name](self, self.second(4 * h))
    assert_resident(model)


def test_hard_swish_of_flat_features():
    layers = nn.Conv2d(C, 4, 3), nn.Hardswish(), nn.Flatten(), nn.Linear(144, 5), nn.Hardswish()
    assert_resident(nn.Sequential(*layers, nn.Linear(5, 3)))
