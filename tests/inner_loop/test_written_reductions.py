"""Reductions, orders and functions of a sample's numbers, in forwards that are arithmetic."""

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_exact, gradients, regression_tasks, relative_error
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop.arithmetic.written import written_of

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")


class Network(nn.Module):
    """Two linear layers, what is made of their results [S, 6], and a third."""

    def __init__(self, made):
        super().__init__()
        self.a, self.b, self.own = nn.Linear(3, 6), nn.Linear(3, 6), nn.Parameter(torch.randn(6))
        self.made = made
        with torch.no_grad():
            width = made(self, torch.randn(5, 6), torch.randn(5, 6)).shape[1]
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        return self.head(self.made(self, a, b)) + 0.1 * (a * self.own).sum(1, True) * b[:, :2]


def arrays(x):
    return x.view(len(x), 2, 3)


REDUCTIONS = {
    "amax": lambda m, a, b: a.amax(1, keepdim=True),
    "amax of arrays": lambda m, a, b: arrays(a).amax((1, 2)).unsqueeze(1),
    "amax of rows": lambda m, a, b: arrays(a).amax(1),
    "amin": lambda m, a, b: torch.amin(arrays(a), dim=-1),
    "max": lambda m, a, b: a.max(1, keepdim=True)[0],
    "max of rows": lambda m, a, b: arrays(torch.relu(a)).max(1).values,
    "max of columns": lambda m, a, b: torch.max(arrays(a), 2)[0],
    "min": lambda m, a, b: a.min(dim=-1, keepdim=True).values,
    "largest and smallest": lambda m, a, b: (a - a.amin(1, True)) / (1 + a.amax(1, True)),
    "of two": lambda m, a, b: torch.max(a, b) + torch.min(a, m.own),
    "deviation": lambda m, a, b: a / (1 + a.std(1, keepdim=True)),
    "deviation of rows": lambda m, a, b: arrays(a).std((2,), unbiased=False),
    "variance": lambda m, a, b: arrays(a).var(1),
    "variance, biased": lambda m, a, b: a / (a.var(-1, unbiased=False, keepdim=True) + 0.1).sqrt(),
    "variance and mean": lambda m, a, b: torch.cat(torch.var_mean(arrays(a), 1), 1),
    "deviation and mean": lambda m, a, b: torch.cat(torch.std_mean(arrays(a), 2, correction=0), 1),
    "sums so far": lambda m, a, b: a.cumsum(1),
    "sums so far of rows": lambda m, a, b: arrays(a).cumsum(1).flatten(1) + b.cumsum(-1),
    "product": lambda m, a, b: a.prod(1, keepdim=True) + arrays(b).prod(1),
    "norm of order 1": lambda m, a, b: a.norm(1, dim=1, keepdim=True),
    "distance": lambda m, a, b: F.pairwise_distance(a, b)[:, None],
    "cosine": lambda m, a, b: F.cosine_similarity(a, b, dim=1)[:, None],
    "cosine of parameters": lambda m, a, b: F.cosine_similarity(a, m.own[None], -1).unsqueeze(1),
    "group norm": lambda m, a, b: F.group_norm(a, 2) * torch.sigmoid(b),
    "group norm alone": lambda m, a, b: F.group_norm(arrays(a), 1).flatten(1),
    "short cosines": lambda m, a, b: F.cosine_similarity(a, b, dim=1, eps=2.0)[:, None],
    "group norm of arrays": lambda m, a, b: F.group_norm(a.view(-1, 2, 3), 2, m.own[:2]).flatten(1),
}  # fmt: skip
ORDERS = {
    "flip": lambda m, a, b: a + b.flip(1),
    "flip of arrays": lambda m, a, b: arrays(a).flip((1, 2)).flatten(1),
    "flip of rows": lambda m, a, b: torch.flip(arrays(a), (1,)).transpose(1, 2).flatten(1),
    "roll": lambda m, a, b: a.roll(2, 1) + torch.roll(arrays(b), (1, -1), (1, 2)).flatten(1),
    "every other": lambda m, a, b: torch.cat([a[:, ::2], b[:, 1::2]], 1),
    "every third from behind": lambda m, a, b: a[:, -5::3] * arrays(b)[:, :, ::2].mean(2),
    "a list": lambda m, a, b: a[:, [0, 2, 1, -1]],
    "a list of rows": lambda m, a, b: arrays(a)[:, [1, 0]].flatten(1),
    "padded": lambda m, a, b: F.pad(a, (1, 2))[:, 1:7] + F.pad(b[:, :4], (1, 1), value=0.5),
    "padded and cut": lambda m, a, b: F.pad(a, (-1, 1)),
    "padded arrays": lambda m, a, b: F.pad(arrays(a), (1, 0, 0, 1), value=2.0).flatten(1),
    "a literal": lambda m, a, b: a * torch.tensor([1.0, 2, 3, 4, 5, 6], dtype=a.dtype),
    "samples behind": lambda m, a, b: F.pad(a.T.flip(0)[::2], (0, 0, 1, 1)).cumsum(0).T,
}  # fmt: skip
FUNCTIONS = {
    "bounds": lambda m, a, b: a.clamp(-b.abs(), b.abs()) + a.clamp(b, m.own.expand_as(b)),
    "a bound for all": lambda m, a, b: torch.clamp(a, min=m.own) + torch.clamp(b, max=m.own),
    "powers": lambda m, a, b: a.abs() ** 1.5 + (1 + b.abs()) ** -2.5,
    "powers of nothing": lambda m, a, b: torch.relu(a) ** 2.5 + torch.relu(b) ** 3.3,
    "odd powers": lambda m, a, b: (1 + a.abs()) ** 0.3 + (1 + b.abs()).pow(-0.7),
    "powers of numbers": lambda m, a, b: 2 ** torch.tanh(a) + 0.7**b + torch.exp2(a),
    "exponentials": lambda m, a, b: torch.expm1(a) + torch.cosh(b / 2) + torch.sinh(a.tanh()),
    "logarithms": lambda m, a, b: torch.log2(1 + a.abs()) + torch.log10(1 + b**2),
    "tangents": lambda m, a, b: torch.tan(torch.tanh(a)),
    "between": lambda m, a, b: torch.lerp(a, b, 0.3) + a.lerp(b, m.own.sigmoid()),
    "at once": lambda m, a, b: torch.addcmul(a, b, m.own, value=2)
    + torch.addcdiv(a, b, 1 + a.abs()),
    "thresholds": lambda m, a, b: F.threshold(a, 0.1, 0.0) + F.hardswish(b) + F.celu(a, 0.5),
    "products of weights": lambda m, a, b: F.linear(a, m.b.weight.T * m.own[:3, None], m.own[:3]),
}  # fmt: skip
ALL = {**REDUCTIONS, **ORDERS, **FUNCTIONS}


def assert_native(model, tasks, order=2, tolerance=1e-10):
    meta = fm.MAML(model.double(), loss="mse", inner_steps=2, inner_lr=0.03, order=order)
    choice = fm.explain(meta, tasks)
    assert choice.name == "resident", choice.passed_over["resident"]
    assert_exact(meta, tasks, tolerance=tolerance)


@pytest.mark.parametrize(("t", "order"), [(2, 1), (3, 2), (33, 2)])
@pytest.mark.parametrize("name", ALL)
def test_forwards(name, t, order):
    assert_native(Network(ALL[name]), regression_tasks(t=t, s=5, q=4, inputs=3), order)


# ---- ties, and what is no number -----------------------------------------------------------------


class Tied(nn.Module):
    """The largest of numbers that start as equals, of which each learns by itself."""

    def __init__(self, largest):
        super().__init__()
        self.a, self.head = nn.Linear(3, 7), nn.Linear(1, 2)
        self.largest = largest
        nn.init.zeros_(self.a.weight), nn.init.ones_(self.a.bias)

    def forward(self, x):
        return self.head(self.largest(self.a(x)))


TIES = {
    "amax": lambda a: a.amax(1, keepdim=True),
    "amin": lambda a: a.amin(1, keepdim=True),
    "max": lambda a: a.max(1, keepdim=True)[0],
    "min": lambda a: a.min(1, keepdim=True)[0],
    "max of rows": lambda a: a.view(-1, 7, 1).max(1)[0],
    "some": lambda a: a[:, [1, 0, 2, 6, 5, 4, 3]].max(1, keepdim=True)[0],
    "bounds": lambda a: a[:, :2].clamp(a[:, 2:4], a[:, 4:6]).sum(1, True),
}


@pytest.mark.parametrize("name", TIES)
def test_equals_share_a_slope_as_in_pytorch(name):
    assert_native(Tied(TIES[name]), regression_tasks(t=3, s=5, q=4, inputs=3))


@pytest.mark.parametrize("number", [0.0, 0.1, 2.9])
def test_the_slope_of_no_deviation(number):  # PyTorch has no second derivative there
    model = Tied(lambda a: a.std(1, keepdim=True)).double()
    nn.init.constant_(model.a.bias, number)
    assert_native(model, regression_tasks(t=3, s=5, q=4, inputs=3), order=1)


@pytest.mark.parametrize("name", ["amax", "amin", "max", "min"])
@pytest.mark.parametrize("at", range(7))
def test_what_is_no_number_is_the_largest_and_the_smallest(name, at):
    def made(m, a, b):
        return TIES[name](torch.cat([a, b[:, :1]], 1))

    model, tasks = Network(made).double(), regression_tasks(t=2, s=3, q=3, inputs=3)
    meta = fm.MAML(model, loss="mse", inner_steps=0)
    assert fm.explain(meta, tasks).name == "resident"
    bias = model.b.bias if at == 6 else model.a.bias
    with torch.no_grad():
        bias[at % 6] = torch.nan
    assert meta(tasks).loss.isnan().all()


def test_powers_in_losses():
    def loss(p, y):
        return ((p - y).abs() ** 1.5).sum(1).mean() + torch.log(torch.cosh(p - y)).mean()

    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    meta = fm.MAML(model, loss=loss, inner_steps=2, inner_lr=0.05)
    tasks = regression_tasks(inputs=3)
    tasks.support_y[0, 0] = model(tasks.support_x[0, 0]).detach()  # where the power is of 0
    assert fm.explain(meta, tasks).name == "resident"
    meta = fm.MAML(model, loss=loss, inner_steps=2, inner_lr=0.05, order=1)
    assert_exact(meta, tasks, tolerance=1e-7)  # whose slope is steep there
    assert_exact(fm.MAML(model, loss=loss, inner_steps=2), regression_tasks(inputs=3))


# ---- parameters that are read as matrices and number by number -----------------------------------


class Penalised(nn.Module):
    def __init__(self, *widths):
        super().__init__()
        self.net = fm.models.mlp([*widths])

    def forward(self, x):
        size = sum(p.square().sum() for p in self.net.parameters())
        return torch.cat([self.net(x), size.expand(len(x), 1)], -1)


def with_penalty(predictions, y):
    return F.mse_loss(predictions[:, :-1], y) + 0.01 * predictions[:, -1].mean()


@pytest.mark.parametrize("t", [2, 33])
@pytest.mark.parametrize("widths", [(3, 2), (3, 20, 2), (3, 9, 9, 2), (3, 40, 40, 2)])
def test_penalties_on_fast_weights(widths, t):
    tasks = regression_tasks(t=t, inputs=3)
    meta = fm.MAML(Penalised(*widths).double(), loss=with_penalty, inner_steps=2, inner_lr=0.1)
    assert fm.explain(meta, tasks).name == "resident"
    assert_exact(meta, tasks)


# ---- what has no form ----------------------------------------------------------------------------


def moved_without_gradients(m, a, b):
    moved = b.clone()
    with torch.no_grad():
        moved.mul_(2)
    return a * moved


REFUSED = {
    "moved without gradients": moved_without_gradients,
    "of samples": lambda m, a, b: a + a.amax(0, keepdim=True),
    "of all samples": lambda m, a, b: a + a.max(),
    "of samples and numbers": lambda m, a, b: a + a.amax((0, 1)),
    "variance of samples": lambda m, a, b: (a - a.mean(0)) / a.std(0),
    "variance of all": lambda m, a, b: a / a.var(),
    "sums of samples so far": lambda m, a, b: a.cumsum(0),
    "flipped samples": lambda m, a, b: a + b.flip(0),
    "rolled samples": lambda m, a, b: a + b.roll(1, 0),
    "rolled all": lambda m, a, b: a + b.roll(1),
    "every other sample": lambda m, a, b: a + b[::2].mean() * 0,
    "samples of a list": lambda m, a, b: a + b[[0, 1, 0]].sum(),
    "padded samples": lambda m, a, b: F.pad(a, (0, 0, 1, 0))[1:],
    "largest places": lambda m, a, b: a + a.argmax(1, keepdim=True),
    "places of the largest": lambda m, a, b: b.gather(1, a.max(1, keepdim=True)[1]),
    "cosines of samples": lambda m, a, b: F.cosine_similarity(a[:, None], b[None], -1)[:, :1],
    "powers of powers": lambda m, a, b: a.abs() ** b,
    "other norms": lambda m, a, b: a.norm(3, dim=1, keepdim=True),
    "too few": lambda m, a, b: a[:, :1].var(1, keepdim=True).nan_to_num() + a,
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_samples_is_refused(name):
    assert isinstance(written_of(Network(REFUSED[name]).double(), [3]), str)


def test_float32_is_as_exact_as_pytorch():
    errors = {"cpu": [], "reference": []}
    for seed in range(3):
        for name in ("exponentials", "powers", "deviation", "sums so far"):
            torch.manual_seed(seed)
            model, tasks = Network(ALL[name]).double(), regression_tasks(inputs=3)
            right = _gradients(model, tasks, "reference")
            model, tasks = model.float(), tasks.to(dtype=torch.float32)
            for backend, found in errors.items():
                found.append(relative_error(_gradients(model, tasks, backend), right))
    ours, plain = (sorted(found)[len(found) // 2] for found in errors.values())
    assert ours < 2 * plain


def _gradients(model, tasks, backend):
    meta = fm.MAML(model, loss="mse", inner_steps=2, inner_lr=0.03)
    with fm.use_backend(backend):
        found = gradients(meta, tasks, [*model.parameters()])
    return [gradient.double() for gradient in found]
