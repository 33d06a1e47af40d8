"""What is measured: networks, task shapes and inner loops, declared as data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta.bench.device import CPU
from fastmeta.models import conv4, resnet12

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
}


def masked_mse(predictions: Tensor, targets: Tensor) -> Tensor:
    """The mean over the targets that are there: those of 0 or more."""
    there = targets >= 0
    return (there * (predictions - targets).square()).sum() / there.sum().clamp(min=1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "cross_entropy": F.cross_entropy,
    "huber": F.huber_loss,
    "masked_mse": masked_mse,
}
BLOCKS = 4


class Convolution(NamedTuple):
    """Of a block, in front of batch norm, ReLU and a 2x2 max-pool."""

    inputs: int  # that each output depends on
    outputs: int
    pixels: int  # of its output, before the pool
    taps: int = 9


@dataclass(frozen=True)
class Workload:
    """One meta-step of exact second-order MAML on linear layers, behind Conv4's blocks for images.

    A meta-step is forward and meta-gradient, averaged over the tasks, into every parameter and,
    with ``learns_inputs`` (a head on learned features, as in ANIL), into support and query inputs.
    """

    name: str
    family: str
    sizes: tuple[int, ...]  # of the linear layers
    activation: str
    loss: str
    tasks: int
    support: int
    query: int
    steps: int
    inner_lr: float = 0.01
    learns_inputs: bool = False
    image: tuple[int, ...] = ()  # (C, H, W); H = W
    filters: int = 0
    hidden: str = ""  # how a hidden layer differs from a linear one and its activation: see HIDDEN
    slopes: bool = False  # whether its one output's gradient by the sample is predicted, too
    blocks: str = ""  # how it differs from Conv4: one of BESIDE_CONV4, "residual" or "unet"

    @property
    def sample(self) -> tuple[int, ...]:
        """The shape of one input."""
        return self.image or self.sizes[:1]

    @property
    def outputs(self) -> int:
        """Numbers that are predicted of a sample, or of a pixel."""
        return self.sizes[-1] + (self.sizes[0] if self.slopes else 0)

    @property
    def convolutions(self) -> list[Convolution]:
        """Those of the blocks; none without images."""
        if not self.image:
            return []
        channels, *size = self.image
        if self.blocks == "unet":
            return _of_unet(channels, self.filters, self.sizes[-1], math.prod(size))
        pixels = [math.prod(n >> halved for n in size) for halved in range(BLOCKS)]
        if self.blocks == "residual":
            return _of_residual_blocks(channels, self.widths, pixels)
        inputs = [channels] + [self.filters] * (BLOCKS - 1)
        whole = [Convolution(i, self.filters, n) for i, n in zip(inputs, pixels, strict=True)]
        if self.blocks not in SEPARABLE:
            return whole
        group, all_of_them = SEPARABLE[self.blocks], self.filters
        apart = [
            (Convolution(group, all_of_them, n), Convolution(all_of_them, all_of_them, n, taps=1))
            for n in pixels[1:]
        ]
        return [whole[0], *(convolution for pair in apart for convolution in pair)]

    @property
    def widths(self) -> list[int]:
        """Channels after each residual block."""
        return [self.filters << block for block in range(BLOCKS)]

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of every linear layer."""
        if self.blocks == "unet":
            return []
        *hidden, outputs = self.sizes[1:]
        made = [n * (2 if self.hidden == "gated" else 1) for n in hidden]
        return list(zip(self.sizes[:-1], [*made, outputs], strict=True))

    @property
    def parameter_count(self) -> int:
        if self.blocks:
            return sum(p.numel() for p in self.module().parameters())
        # A convolution's bias, and the weight and bias of its norm
        of_blocks = sum((9 * c.inputs + 3) * c.outputs for c in self.convolutions)
        return of_blocks + sum((inputs + 1) * outputs for inputs, outputs in self.layers)

    def module(self) -> nn.Module:
        """The network as an ordinary module, freshly initialised."""
        if self.blocks:
            return _unlike_conv4(self)
        if self.image:
            channels, size, _ = self.image
            return conv4(self.sizes[-1], channels, self.filters, size)
        modules: list[nn.Module] = []
        for inputs, outputs in self.layers[:-1]:
            modules += HIDDEN[self.hidden](inputs, outputs, ACTIVATIONS[self.activation]())
        network = WithSlopes if self.slopes else nn.Sequential
        return network(*modules, nn.Linear(*self.layers[-1]))


class Gate(nn.Module):
    """Dauphin et al. 2017, equation 1, with an activation."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return self.activation(value) * torch.sigmoid(gate)


class WithSlopes(nn.Sequential):
    """Layers' one output and its gradient by the sample: Czarnecki et al. 2017."""

    def forward(self, input: Tensor) -> Tensor:
        x = input.detach().requires_grad_()
        value = super().forward(x)
        (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        return torch.cat([value, slope], 1)


class UnitRows(nn.Linear):
    """Each output by a weight of length 1: Salimans and Kingma 2016, equation 2, where g = 1."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, F.normalize(self.weight, dim=1), self.bias)


class Excitation(nn.Module):
    """Scales channels by what they are in the mean: Hu et al. 2018, section 3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // 4)
        self.excite = nn.Linear(channels // 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))
        return x * scale[:, :, None, None]


class StandardisedConv2d(nn.Conv2d):
    """Each output by a weight of mean 0 and deviation 1: Qiao et al. 2019, equation 4."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, standardised(self.weight), self.bias)


def standardised(weight: Tensor) -> Tensor:
    """[O, I, *kernel], over all but the first dimension."""
    centred = weight - weight.mean((1, 2, 3), keepdim=True)
    return centred / (centred.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-5)


class Film(nn.Module):
    """Scales and shifts channels by what a layer makes of a context: Zintgraf et al. 2019."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.zeros(100))
        self.make = nn.Linear(100, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.make(self.context)[:, None, None].chunk(2)
        return x * scale + shift


class CosineHead(nn.Module):
    """Ten times the cosines between features and a weight for each class: Chen et al. 2019."""

    def __init__(self, features: int, ways: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(features, ways).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return 10 * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


class UNet(nn.Module):
    """Scores of each pixel, by what is near and at half the resolution: Ronneberger et al. 2015."""

    def __init__(self, channels: int, filters: int, classes: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(*_twice(channels, filters))
        self.coarse = nn.Sequential(nn.MaxPool2d(2), *_twice(filters, 2 * filters))
        self.up = nn.ConvTranspose2d(2 * filters, filters, 2, stride=2)
        self.both = nn.Conv2d(2 * filters, filters, 3, padding=1)
        self.head = nn.Conv2d(filters, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        return self.head(torch.relu(self.both(torch.cat([fine, self.up(self.coarse(fine))], 1))))


def _twice(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(),
    ]  # fmt: skip


# Channels in a group of the 3x3 convolutions, which 1x1 convolutions mix: Howard et al. 2017, and
# Xie et al. 2017.
SEPARABLE = {"depthwise": 1, "grouped": 4}
BESIDE_CONV4 = "excitation", *SEPARABLE, "cosine", "standardised", "film"


def _of_residual_blocks(channels: int, widths: list[int], pixels: list[int]) -> list[Convolution]:
    """Three in a row, and the shortcut."""
    pairs = zip([channels, *widths[:-1]], widths, pixels, strict=True)
    return [
        convolution
        for i, o, n in pairs
        for convolution in (
            Convolution(i, o, n), *[Convolution(o, o, n)] * 2, Convolution(i, o, n, taps=1)
        )
    ]  # fmt: skip


def _of_unet(channels: int, filters: int, classes: int, pixels: int) -> list[Convolution]:
    """In the order of its parameters."""
    wide, few = 2 * filters, pixels // 4
    return [
        Convolution(channels, filters, pixels), Convolution(filters, filters, pixels),
        Convolution(filters, wide, few), Convolution(wide, wide, few),
        Convolution(wide, filters, pixels, taps=1),  # of its four each pixel has one
        Convolution(wide, filters, pixels), Convolution(filters, classes, pixels, taps=1),
    ]  # fmt: skip


def _unlike_conv4(workload: Workload) -> nn.Module:
    if workload.blocks == "unet":
        return UNet(workload.image[0], workload.filters, workload.sizes[-1])
    if workload.blocks == "residual":
        return resnet12(workload.sizes[-1], workload.image[0], workload.widths)
    modules: list[nn.Module] = []
    filters, inputs = workload.filters, workload.image[0]
    convolution = StandardisedConv2d if workload.blocks == "standardised" else nn.Conv2d
    for _ in range(BLOCKS):
        if workload.blocks in SEPARABLE and modules:
            groups = filters // SEPARABLE[workload.blocks]
            modules.append(nn.Conv2d(filters, filters, 3, padding=1, groups=groups))
            modules.append(nn.Conv2d(filters, filters, 1))
        else:
            modules.append(convolution(inputs, filters, 3, padding=1))
        modules.append(nn.BatchNorm2d(filters, track_running_stats=False))
        if workload.blocks == "film":
            modules.append(Film(filters))
        modules += [nn.ReLU(), nn.MaxPool2d(2)]
        if workload.blocks == "excitation":
            modules.append(Excitation(filters))
        inputs = filters
    head = CosineHead if workload.blocks == "cosine" else nn.Linear
    return nn.Sequential(*modules, nn.Flatten(), head(*workload.layers[-1]))


# (inputs, outputs, activation) -> the modules of a hidden layer, whose parameters are one linear
# layer's.
HIDDEN: dict[str, Callable[[int, int, nn.Module], list[nn.Module]]] = {
    "": lambda i, o, activation: [nn.Linear(i, o), activation],
    "gated": lambda i, o, activation: [nn.Linear(i, o), Gate(activation)],
    "layer norm": lambda i, o, activation: [
        nn.Linear(i, o), nn.LayerNorm(o, elementwise_affine=False), activation
    ],
    "unit rows": lambda i, o, activation: [UnitRows(i, o), activation],
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A workload with its numbers: parameters by name and a batch of tasks.

    ``support_x`` [T, S, I] or images [T, S, C, H, W], ``query_x`` with Q for S; targets [T, S, O]
    and [T, Q, O] for ``"mse"``, labels [T, S] and [T, Q] for ``"cross_entropy"``, of a U-Net
    [T, S, H, W] and [T, Q, H, W].
    """

    workload: Workload
    parameters: dict[str, Tensor]
    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor

    def double(self) -> Problem:
        """The same numbers in float64."""
        return replace(
            self,
            parameters={name: value.double() for name, value in self.parameters.items()},
            support_x=self.support_x.double(),
            support_y=_double_unless_labels(self.support_y),
            query_x=self.query_x.double(),
            query_y=_double_unless_labels(self.query_y),
        )

    def part(self, start: int, stop: int) -> Problem:
        """The problem with the tasks ``start`` to ``stop`` only."""
        kept = slice(start, stop)
        return replace(
            self,
            workload=replace(self.workload, tasks=len(range(self.workload.tasks)[kept])),
            support_x=self.support_x[kept],
            support_y=self.support_y[kept],
            query_x=self.query_x[kept],
            query_y=self.query_y[kept],
        )

    def module(self) -> nn.Module:
        """The network as an ordinary module with this problem's parameters (copied)."""
        module = self.workload.module().to(self.device, self.support_x.dtype)
        module.load_state_dict(self.parameters)
        return module

    @property
    def device(self) -> torch.device:
        return self.support_x.device

    @property
    def data_bytes(self) -> int:
        """Bytes that a meta-step must at least read (tasks) and write (input gradients)."""
        inputs = _bytes(self.support_x) + _bytes(self.query_x)
        targets = _bytes(self.support_y) + _bytes(self.query_y)
        return targets + inputs * (2 if self.workload.learns_inputs else 1)


def make_problem(workload: Workload, seed: int = 0, device: torch.device = CPU) -> Problem:
    """Draw parameters (the module's own initialisation) and tasks in float32, alike everywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parameters = {name: p.detach() for name, p in workload.module().named_parameters()}
        draw = _sinusoids if workload.family == "sinusoid" else _random_tasks
        tensors = [tensor.to(device) for tensor in draw(workload)]
    on_device = {name: p.to(device) for name, p in parameters.items()}
    return Problem(workload, on_device, *tensors)


def _sinusoids(workload: Workload) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    amplitude = torch.empty(workload.tasks, 1, 1).uniform_(0.1, 5.0)
    phase = torch.empty(workload.tasks, 1, 1).uniform_(0.0, torch.pi)
    x = torch.empty(workload.tasks, workload.support + workload.query, 1).uniform_(-5.0, 5.0)
    return _split(workload, x, amplitude * torch.sin(x - phase))


def _random_tasks(workload: Workload) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    samples = (workload.tasks, workload.support + workload.query)
    outputs = workload.outputs
    x = torch.randn(*samples, *workload.sample)
    if workload.blocks == "unet":
        return _split(workload, x, torch.randint(outputs, (*samples, *workload.image[1:])))
    if workload.loss == "cross_entropy":
        return _split(workload, x, torch.arange(samples[1]).remainder(outputs).expand(samples))
    return _split(workload, x, torch.randn(*samples, outputs))


def _split(workload: Workload, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    support = workload.support
    return (
        x[:, :support].contiguous(),
        y[:, :support].contiguous(),
        x[:, support:].contiguous(),
        y[:, support:].contiguous(),
    )


def _double_unless_labels(targets: Tensor) -> Tensor:
    return targets.double() if targets.is_floating_point() else targets


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
