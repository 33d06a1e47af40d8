"""Linear layers whose outputs are images: what decoders and generators begin with."""

import pytest
import torch
from oracle import DOUBLE, assert_exact
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")


class Of(nn.Module):
    """A forward written by hand."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.body = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.body(self, x)


def upwards():
    return nn.Sequential(nn.ConvTranspose2d(3, 2, 2, 2), nn.Tanh(), nn.Conv2d(2, 1, 3, padding=1))


def linear(bias=True, numbers=18):
    return nn.Linear(5, numbers, bias=bias)


NATIVE = {
    "unflatten": lambda: nn.Sequential(linear(), nn.Unflatten(1, (3, 3, 2)), upwards()),
    "activated": lambda: nn.Sequential(linear(), nn.ReLU(), nn.Unflatten(1, (3, 2, 3)), upwards()),
    "without a bias": lambda: nn.Sequential(linear(False), nn.Unflatten(1, (3, 1, 6)), upwards()),
    "two layers": lambda: nn.Sequential(
        nn.Linear(5, 5), nn.Tanh(), linear(), nn.Unflatten(1, (3, 3, 2)), nn.SiLU(), upwards()
    ),
    "with a norm": lambda: nn.Sequential(
        linear(), nn.Unflatten(1, (3, 3, 2)), nn.BatchNorm2d(3, track_running_stats=False),
        nn.ReLU(), upwards(),
    ),
    "view": lambda: Of(
        lambda m, x: m.up(m.lin(x).tanh().view(-1, 3, 3, 2)), lin=linear(), up=upwards()
    ),
    "a sequence": lambda: nn.Sequential(
        linear(), nn.Unflatten(1, (3, 6)), nn.ConvTranspose1d(3, 2, 4, 2), nn.Tanh(),
        nn.Conv1d(2, 1, 3),
    ),
    "pooled": lambda: nn.Sequential(
        linear(), nn.Unflatten(1, (3, 3, 2)), nn.MaxPool2d(2, 1), nn.Conv2d(3, 2, 1)
    ),
    "an image at once": lambda: nn.Sequential(
        nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 18), nn.Unflatten(1, (3, 3, 2))
    ),
    "flat again": lambda: nn.Sequential(
        linear(), nn.Unflatten(1, (3, 3, 2)), nn.Conv2d(3, 2, 2), nn.Tanh(), nn.Flatten(),
        nn.Linear(4, 3),
    ),
    "an autoencoder": lambda: Of(
        lambda m, x: m.up(m.lin(m.down(x[:, :, None, None]))),
        down=nn.Sequential(nn.Conv2d(5, 4, 1), nn.Tanh(), nn.Flatten(), nn.Linear(4, 5)),
        lin=nn.Sequential(linear(), nn.ReLU(), nn.Unflatten(1, (3, 3, 2))), up=upwards(),
    ),
    "added to": lambda: Of(
        lambda m, x: m.up(m.a(x).view(-1, 3, 3, 2) + m.b(x).view(-1, 3, 3, 2)),
        a=linear(), b=linear(False), up=upwards(),
    ),
}  # fmt: skip
OTHERWISE = {
    "normed while flat": lambda: nn.Sequential(
        linear(), nn.BatchNorm1d(18, track_running_stats=False), nn.Unflatten(1, (3, 3, 2)),
        upwards(),
    ),
    "read while flat too": lambda: Of(
        lambda m, x: m.up((h := m.lin(x)).view(-1, 3, 3, 2)) + m.flat(h).view(-1, 1, 6, 4),
        lin=linear(), up=upwards(), flat=nn.Linear(18, 24),
    ),
}


def tasks_for(model, t=3, s=5, q=4):
    torch.manual_seed(1)
    x = torch.randn(t, s + q, 5, dtype=DOUBLE)
    with torch.no_grad():
        y = torch.randn(t, s + q, *model(x[0]).shape[1:], dtype=DOUBLE)
    return fm.TaskBatch(x[:, :s], y[:, :s], x[:, s:], y[:, s:])


def learner(make, **options):
    torch.manual_seed(0)
    model = make().double()
    options = {"inner_lr": 0.1, "inner_steps": 2, "loss": "mse", **options}
    return fm.MAML(model, **options), tasks_for(model)


@pytest.mark.parametrize("name", NATIVE)
def test_natively(name):
    meta, tasks = learner(NATIVE[name])
    assert fm.explain(meta, tasks).name == "resident"
    assert_exact(meta, tasks)


@pytest.mark.parametrize("name", OTHERWISE)
def test_by_another_engine(name):
    meta, tasks = learner(OTHERWISE[name])
    assert fm.explain(meta, tasks).name != "resident"
    assert_exact(meta, tasks)


@pytest.mark.parametrize("adapts", [["0.weight"], ["0.bias"], ["2.0.weight"]])
def test_some_parameters_with_rates_of_their_own_and_gradients_into_inputs(adapts):
    meta, tasks = learner(
        NATIVE["unflatten"], adapt_parameters=adapts, learn_inner_lr="element", per_step_lr=True,
        inner_steps=3,
    )  # fmt: skip
    tasks.support_x.requires_grad_(), tasks.query_x.requires_grad_()
    assert fm.explain(meta, tasks).name == "resident"
    assert_exact(meta, tasks, [*meta.parameters(), tasks.support_x, tasks.query_x])


def test_fast_weights_come_in_their_own_shape():
    meta, tasks = learner(NATIVE["unflatten"])
    fast = meta.adapt(tasks.support_x, tasks.support_y)
    assert fast.parameters["0.weight"].shape == (3, 18, 5)
    with fm.use_backend("reference"):
        wanted = meta.adapt(tasks.support_x, tasks.support_y)
    for name, value in wanted.parameters.items():
        torch.testing.assert_close(fast.parameters[name], value)
