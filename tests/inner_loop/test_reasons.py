"""What fm.explain says of a module that the native kernels do not take."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop.arithmetic.forward_rows import MOST_NUMBERS

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")


class Rows(nn.Module):
    def __init__(self, forward, **parts):
        super().__init__()
        self.layer, self.head, self.told = nn.Linear(4, 4), nn.Linear(4, 2), forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.head(self.told(self, x))


class Images(Rows):
    def __init__(self, forward):
        super().__init__(forward, conv=nn.Conv2d(1, 1, 3, padding=1))

    def forward(self, x):
        return self.head(self.told(self, F.max_pool2d(self.conv(x), 2)).flatten(1))


def tasks_of(*sample):
    x, y = torch.randn(2, 5, *sample), torch.randn(2, 5, 2)
    return fm.TaskBatch(x, y, x, y)


def passed_over(model, *tasks):
    return fm.explain(fm.MAML(model, loss="mse"), *tasks).passed_over


def each_row(module, x):
    rows = []
    for row in module.layer(x):
        rows.append(row)
    return torch.stack(rows)


def wide(module, x):
    return module.wide(x).repeat_interleave(40, 1)[:, :4]


SAID = {
    "an operation": (
        lambda m, x: m.layer(x).erf(), "its forward calls erf, of which there is no native form",
    ),
    "numbers": (
        wide, f"its forward makes more than {MOST_NUMBERS} numbers of a sample, the most that the "
        "native kernels keep: shorter sequences or narrower layers make fewer",
    ),
    "data": (
        lambda m, x: m.layer(x).data, "its forward reads .data of a tensor, which the native "
        "kernels do not: they read .detach()",
    ),
    "out of PyTorch": (
        lambda m, x: torch.as_tensor(m.layer(x).detach().tolist()),
        "its forward takes a tensor's numbers out of PyTorch (tolist), where the native kernels do "
        "not follow: compute with tensors",
    ),
    "another attribute": (
        lambda m, x: m.layer(x) * x.is_leaf,
        "its forward asks a tensor for is_leaf, which the native kernels do not tell",
    ),
    "whole numbers": (
        lambda m, x: m.layer(x).long().to(x.dtype),
        "its forward makes whole numbers of real ones (.long(), .int()), which the native kernels "
        "do not",
    ),
    "the samples": (each_row, "its forward picks samples"),
}  # fmt: skip


@pytest.mark.parametrize("what", SAID)
def test_without_convolutions_the_reason_is_that_of_arithmetic(what):
    forward, said = SAID[what]
    model = Rows(forward, **({"wide": nn.Linear(4, 4000)} if forward is wide else {}))
    assert passed_over(model, tasks_of(4))["resident"] == said
    assert passed_over(model)["resident"] == said


def test_layers_that_are_none_of_theirs_are_named_too():
    class Bent(nn.Module):
        def forward(self, x):
            return x.erf()

    said = passed_over(nn.Sequential(nn.Linear(4, 4), nn.LPPool1d(2, 2), nn.Linear(2, 2)))
    assert said["resident"].startswith("its forward ")
    assert "As layers it is not read either: layer '1' (LPPool1d) is not" in said["resident"]
    said = passed_over(nn.Sequential(nn.Linear(4, 4), Bent(), nn.Linear(4, 2)))
    assert said["resident"] == "its forward calls erf, of which there is no native form"


def test_with_convolutions_the_reason_is_that_of_layers():
    model = Images(lambda m, h: h.erf())
    for tasks in ((), (tasks_of(1, 4, 4),)):
        said = passed_over(model, *tasks)["resident"]
        assert "it calls erf, which is none of the native kernels' layers" in said
        assert 'engine="auto"' in said and "arithmetic" not in said and "convolves" not in said
    grouped = nn.Conv2d(6, 6, 3, groups=2)
    said = passed_over(nn.Sequential(grouped, nn.Flatten(), nn.Linear(24, 2)), tasks_of(6, 4, 4))
    assert "layer '0' (Conv2d) has groups of 3 channels that give 3" in said["resident"]


def test_functions_that_convolve_count_as_convolutions():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.randn(1, 1, 3, 3)), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(F.conv2d(x, self.weight).erf().flatten(1))

    said = passed_over(Functional(), tasks_of(1, 4, 4))["resident"]
    assert "it calls erf" in said and "convolves" not in said


def test_patches_side_by_side_are_arithmetic():
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.head = nn.Conv2d(1, 4, 2, stride=2), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.patches(x).flatten(2).erf().mean(2))

    said = passed_over(Patches(), tasks_of(1, 4, 4))["resident"]
    assert said == "its forward calls erf, of which there is no native form"


def test_inputs_of_whole_numbers():
    model = Rows(lambda m, x: m.words(x).mean(1), words=nn.Embedding(9, 4))
    x, y = torch.randint(9, (2, 5, 3)), torch.randn(2, 5, 2)
    said = passed_over(model, fm.TaskBatch(x, y, x, y))["resident"]
    assert "support_x is torch.int64: words are read where one nn.Embedding is all that" in said
    rows = Rows(lambda m, x: m.layer.weight[x % 4].mean(1))
    said = passed_over(rows, fm.TaskBatch(x, y, x, y))["resident"]
    assert "support_x is torch.int64, and inputs of whole numbers" in said
    assert "inputs of whole numbers, as nn.Embedding does, which are not" in passed_over(model)[
        "resident"
    ]


def test_the_line_that_torch_fx_cannot_trace():
    said = passed_over(Rows(each_row), tasks_of(4))["layered"]
    assert said == "torch.fx cannot trace this line of its forward: for row in module.layer(x):"

    def either(module, x):
        return x if x.sum() > 0 else -x

    said = passed_over(Rows(either), tasks_of(4))["layered"]
    assert "control flow, in this line: return x if x.sum() > 0 else -x" in said
