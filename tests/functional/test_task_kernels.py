"""What runs under vmap on kernels of all tasks is what PyTorch makes of them one by one."""

import copy

import pytest
import torch
import torch.nn.functional as F
from oracle import DOUBLE
from torch import nn
from torch.autograd import gradcheck

from fastmeta.functional import task_kernels
from fastmeta.functional.forward import task_forward

T, S = 3, 4


class Told(nn.Module):
    """Something that vmap alone runs: its forward asks nobody to read it."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.told = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.told(self, x)


def conv(*args, **options):
    return nn.Conv2d(2, 4, *args, **options)


LAYERS = {
    "conv2d": (conv(3), [2, 6, 5]),
    "conv2d with everything": (conv((3, 2), (2, 1), 2, (1, 2), 2, bias=False), [2, 6, 5]),
    "conv2d by name": (conv(3, padding="same"), [2, 6, 5]),
    "conv2d circular": (conv(3, padding=1, padding_mode="circular"), [2, 6, 5]),
    "conv1d": (nn.Conv1d(2, 4, 3, 2, 2, 2), [2, 9]),
    "conv1d in groups": (nn.Conv1d(2, 4, 3, groups=2), [2, 9]),
    "transposed": (nn.ConvTranspose2d(2, 4, (3, 2), 2, 1), [2, 4, 5]),
    "transposed with more": (nn.ConvTranspose2d(2, 4, 4, 3, 2, 2, bias=False), [2, 4, 5]),
    "transposed, dilated": (nn.ConvTranspose2d(2, 4, 3, 1, 1, 0, 1, True, 2), [2, 4, 5]),
    "transposed, more than its stride": (
        nn.ConvTranspose2d(2, 4, 3, 1, 1, 1, 1, True, 2), [2, 4, 5],
    ),
    "transposed in groups": (nn.ConvTranspose2d(2, 4, 3, groups=2), [2, 4, 5]),
    "batch norm of images": (nn.BatchNorm2d(2), [2, 3, 4]),
    "batch norm without values": (nn.BatchNorm2d(2, affine=False), [2, 3, 4]),
    "batch norm of rows": (nn.BatchNorm1d(5), [5]),
    "group norm": (nn.GroupNorm(2, 4), [4, 3, 3]),
    "group norm of rows": (nn.GroupNorm(2, 4), [4]),
    "largest": (nn.MaxPool2d(2), [2, 5, 6]),
    "largest of more": (nn.MaxPool2d((3, 2), (2, 1), 1), [2, 5, 6]),
    "largest, rounding up": (nn.MaxPool2d(2, ceil_mode=True), [2, 5, 5]),
}  # fmt: skip


def one_by_one(module, parameters, x):
    tasks = []
    for t in range(len(x)):
        own = {n: p[t] if p.dim() > module.get_parameter(n).dim() else p
               for n, p in parameters.items()}
        tasks.append(torch.func.functional_call(module, own, (x[t],)))
    return torch.stack(tasks)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(monkeypatch, name, shared):
    layer, sample = LAYERS[name]
    module = Told(lambda self, x: self.layer(x).sin(), layer=copy.deepcopy(layer)).to(DOUBLE)
    torch.manual_seed(0)
    x = torch.randn(T, S, *sample, dtype=DOUBLE, requires_grad=True)
    parameters = {
        n: torch.randn(*([] if shared else [T]), *p.shape, dtype=DOUBLE, requires_grad=True)
        for n, p in module.named_parameters()
    }
    runs = []
    apply = task_kernels._OfAllTasks.apply
    monkeypatch.setattr(
        task_kernels._OfAllTasks, "apply", lambda *given: (runs.append(name), apply(*given))[1]
    )
    ours, right = task_forward(module, parameters, x), one_by_one(module, parameters, x)
    torch.testing.assert_close(ours, right)
    left_to_vmap = ("by name", "more than its", "transposed in", "of rows", "rounding")
    own = name == "batch norm of rows"
    assert bool(runs) == (own or not any(words in name for words in left_to_vmap)), runs
    inputs = [x, *parameters.values()]
    outer = torch.randn_like(right)

    def derivatives(y):
        first = torch.autograd.grad(y, inputs, outer, create_graph=True)
        return first, torch.autograd.grad(sum((g * g).sum() for g in first), inputs)

    torch.testing.assert_close(derivatives(ours), derivatives(right))


def assert_as_one_by_one(module, x):
    parameters = {
        n: torch.randn(T, *p.shape, dtype=DOUBLE) for n, p in module.named_parameters()
    }
    torch.testing.assert_close(
        task_forward(module, parameters, x), one_by_one(module, parameters, x)
    )


def test_a_forward_that_maps_over_its_samples():
    def forward(self, x):
        of_one = torch.func.vmap(lambda image: self.conv(image.unsqueeze(0)).squeeze(0))
        return of_one(x).relu()

    module = Told(forward, conv=conv(3)).to(DOUBLE)
    assert_as_one_by_one(module, torch.randn(T, S, 2, 5, 5, dtype=DOUBLE))


def test_a_forward_that_differentiates():
    def forward(self, x):
        return torch.func.grad(lambda z: F.max_pool2d(self.conv(z), 2).sin().sum())(x)

    module = Told(forward, conv=conv(3)).to(DOUBLE)
    assert_as_one_by_one(module, torch.randn(T, S, 2, 6, 6, dtype=DOUBLE))


def test_what_belongs_to_no_task():
    table = torch.randn(4, 2, 3, 3, dtype=DOUBLE)
    module = Told(lambda self, x: x + F.conv2d(torch.ones(1, 2, 3, 3, dtype=DOUBLE), table).sum())
    assert_as_one_by_one(module, torch.randn(T, S, 2, dtype=DOUBLE))


def test_samples_that_all_tasks_share():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv(3)
            self.register_buffer("image", torch.randn(1, 2, 4, 4))

        def forward(self, x):
            return x + self.conv(self.image).mean((2, 3))

    module = Constant().to(DOUBLE)
    x = torch.randn(T, S, 4, dtype=DOUBLE)
    weights = [
        torch.randn(T, *p.shape, dtype=DOUBLE, requires_grad=True) for p in module.parameters()
    ]
    names = [name for name, _ in module.named_parameters()]

    def call(*weights):
        return task_forward(module, dict(zip(names, weights, strict=True)), x)

    torch.testing.assert_close(
        call(*weights), one_by_one(module, dict(zip(names, weights, strict=True)), x)
    )
    assert gradcheck(call, weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_left_to_vmap(dtype):
    module = Told(lambda self, x: self.conv(x).relu(), conv=conv(3)).to(dtype)
    x = torch.randn(T, S, 2, 5, 5, dtype=dtype)
    parameters = {n: p.expand(T, *p.shape) for n, p in module.named_parameters()}
    torch.testing.assert_close(
        task_forward(module, parameters, x), one_by_one(module, parameters, x), rtol=0.1, atol=0.1
    )
