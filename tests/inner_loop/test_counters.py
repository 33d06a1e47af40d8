"""Numbers that a forward counts up in its module."""

import math

import pytest
import torch.nn.functional as F
from oracle import assert_exact, classification_tasks
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop.arithmetic.written import Written, written_of
from fastmeta.inner_loop.reading.stages import Stages, stages_of

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")


def nothing(module, out):
    return out


class Counts(nn.Module):
    """As the blocks of MetaOptNet do, for their DropBlock."""

    def __init__(self, told=nothing, start=0, drop_rate=0.0):
        super().__init__()
        self.num_batches_tracked, self.drop_rate = start, drop_rate
        self.told, self.share = told, 0.5

    def count(self):
        self.num_batches_tracked += 1


class Block(Counts):
    def __init__(self, inplanes, planes, downsample=None, **options):
        super().__init__(**options)
        self.conv1, self.bn1 = nn.Conv2d(inplanes, planes, 3, 1, 1, bias=False), norm(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False), norm(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False), norm(planes)
        self.relu, self.maxpool = nn.LeakyReLU(0.1), nn.MaxPool2d(2)
        self.downsample = downsample

    def forward(self, x):
        self.count()
        residual = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            residual = self.downsample(x)
        out += residual
        out = self.told(self, self.maxpool(self.relu(out)))
        if self.drop_rate > 0:
            rate = max(1.0 - self.drop_rate / 40000 * self.num_batches_tracked, 0.9)
            out = F.dropout(out, p=1 - rate, training=self.training, inplace=True)
        return out


def norm(planes):
    return nn.BatchNorm2d(planes)


class ResNet(nn.Module):
    def __init__(self, **options):
        super().__init__()
        downsample = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), norm(4))
        self.layer1, self.layer2 = Block(3, 4, downsample, **options), Block(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.layer2(self.layer1(x))
        return self.head(x.view(x.size(0), -1))


class Gated(Counts):
    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.gate, self.head = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        self.count()
        return self.head(self.told(self, self.first(x).tanh() * self.gate(x).sigmoid()))


IMAGE, ROW = (3, 4, 4), (5,)
KINDS = {"stages": (ResNet, IMAGE), "arithmetic": (Gated, ROW)}


def counters(model):
    return [m.num_batches_tracked for m in model.modules() if isinstance(m, Counts)]


def reading(kind, **options):
    make, sample = KINDS[kind]
    read = stages_of if kind == "stages" else written_of
    model = make(**options).double()
    before = counters(model)
    found = read(model, sample)
    assert counters(model) == before
    return found


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_counter_of_which_nothing_comes_keeps_no_module_from_the_kernels(kind, order):
    make, sample = KINDS[kind]
    model, tasks = make().double(), classification_tasks(sample, t=2, s=4, q=3)
    meta = fm.MAML(model, inner_lr=0.05, inner_steps=2, order=order)
    choice = fm.explain(meta, tasks)
    assert choice.name == "resident", choice.passed_over["resident"]
    assert fm.explain(fm.MAML(make().double())).name == "resident"
    assert_exact(meta, tasks)


@pytest.mark.parametrize("kind", KINDS)
def test_calls_leave_counters_alone_and_read_the_module_once(kind, monkeypatch):
    from fastmeta.inner_loop.engines import networks

    make, sample = KINDS[kind]
    model, tasks = make().double(), classification_tasks(sample, t=2, s=4, q=3)
    meta, read = fm.MAML(model, inner_lr=0.05), []
    monkeypatch.setattr(
        networks, "_network", lambda *of, own=networks._network: read.append(of) or own(*of)
    )
    for _ in range(3):
        meta.forward_backward(tasks)
    assert len(read) == 1 and not any(counters(model))
    model(tasks.support_x[0])
    assert all(count == 1 for count in counters(model))
    assert_exact(meta, tasks)


DEPENDS = {
    "a factor": lambda m, out: out * (1 + 0.01 * m.num_batches_tracked),
    "a condition": lambda m, out: out.tanh() if m.num_batches_tracked > 0 else out,
    "a late condition": lambda m, out: out if m.num_batches_tracked < 3000 else out.tanh(),
    "one call alone": lambda m, out: out.tanh() if m.num_batches_tracked == 500 else out,
    "every hundredth": lambda m, out: out if m.num_batches_tracked % 100 else out.tanh(),
    "its truth": lambda m, out: out if m.num_batches_tracked else out.tanh(),
    "a schedule": lambda m, out: out * max(0.5, 1 - m.num_batches_tracked / 10_000),
    "a curve": lambda m, out: out * math.exp(-1e-3 * m.num_batches_tracked),
    "a type": lambda m, out: (
        out.tanh() if isinstance(m.num_batches_tracked, int) and m.num_batches_tracked > 99 else out
    ),
    "a type and a call": lambda m, out: (
        out if not isinstance(m.num_batches_tracked, int) or m.num_batches_tracked != 50 else -out
    ),
    "a table": lambda m, out: out * {500: 2.0}.get(m.num_batches_tracked, 1.0),
    "a list": lambda m, out: out.tanh() if m.num_batches_tracked in (500, 600) else out,
    "a text": lambda m, out: out if len(f"{m.num_batches_tracked}") < 9 else out.tanh(),
    "another number": lambda m, out: (
        setattr(m, "share", m.num_batches_tracked / 100), out * m.share
    )[1],
}  # fmt: skip


@pytest.mark.parametrize("start", [0, 7])
@pytest.mark.parametrize("how", DEPENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_depends_on_a_counter_is_refused(kind, how, start):
    assert isinstance(reading(kind, told=DEPENDS[how], start=start), str)


def test_a_counter_is_not_taken_for_the_number_of_samples():
    assert "something else each time" in reading("arithmetic", told=DEPENDS["a factor"])


def test_dropout_that_goes_by_a_counter_is_refused():
    assert "changes what it reads" in reading("stages", drop_rate=0.1)


def of_a_layer(module, out):
    module.relu.negative_slope *= 0.5
    return module.relu(out)


def a_list(module, out):
    module.seen = [*getattr(module, "seen", ()), 1]
    return out


def a_truth(module, out):
    module.training = not module.training
    return out


CHANGES = {"of a layer": of_a_layer, "a list": a_list, "a truth": a_truth}


@pytest.mark.parametrize("how", CHANGES)
def test_what_else_a_forward_changes_is_refused(how):
    meta = fm.MAML(ResNet(told=CHANGES[how]).double(), inner_lr=0.05)
    choice = fm.explain(meta, classification_tasks(IMAGE, t=2, s=4, q=3))
    assert "changes what it reads" in choice.passed_over["resident"]


def as_a_float(module, out):
    module.share = module.share * 0.99 + 0.01
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_other_counters(kind):
    make, sample = KINDS[kind]
    model = make(told=as_a_float).double()
    read = stages_of if kind == "stages" else written_of
    assert isinstance(read(model, sample), (Stages, Written))
    assert all(part.share == 0.5 for part in model.modules() if isinstance(part, Counts))


@pytest.mark.parametrize("kind", KINDS)
def test_a_counter_that_begins_in_its_class(kind):
    def told(module, out):
        module.calls += 1
        return out

    kinds = {type(m) for m in KINDS[kind][0]().modules() if isinstance(m, Counts)}
    for each in kinds:
        each.calls = 0
    try:
        assert isinstance(reading(kind, told=told), (Stages, Written))
    finally:
        for each in kinds:
            del each.calls
