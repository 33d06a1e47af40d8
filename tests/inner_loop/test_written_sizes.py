"""Forwards that take sizes for Python's numbers: all but the number of samples is known."""

import math
import random

import pytest
import torch
from oracle import assert_exact
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop.arithmetic.written import Written, written_of
from fastmeta.inner_loop.arithmetic.written_trial import miscomputed

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")

L, C, D, OUTPUTS = 4, 3, 6, 2  # places, channels, width


def module(forward, **parts):
    made = type(forward.__name__, (nn.Module,), {"forward": forward})()
    for name, part in {"head": nn.Linear(D, OUTPUTS), **parts}.items():
        if type(part) is torch.Tensor:
            made.register_buffer(name, part)
        else:
            setattr(made, name, part)
    return made.double()


def row(*shape):
    return nn.Parameter(torch.randn(*shape) / 2)


def tasks_of(places=L, t=2, s=5, q=3):
    def samples(n, *shape):
        return torch.randn(t, n, *shape, dtype=torch.float64)

    return fm.TaskBatch(
        samples(s, places, C), samples(s, OUTPUTS), samples(q, places, C), samples(q, OUTPUTS)
    )


def engines_of(meta):
    """Those that have run, but for the reference that others are compared with."""
    return {p.engine.__name__.rpartition(".")[2] for p in meta._plans.values()} - {"reference"}


def maml(model):
    return fm.MAML(model, loss="mse", inner_steps=2, inner_lr=0.05)


# ---- sizes as numbers ----------------------------------------------------------------------------


def over_places(self, x):
    state = None
    for t in range(x.shape[1]):
        state = self.cell(x[:, t], state)
    return self.head(state if isinstance(state, torch.Tensor) else state[0])


def over_parts(self, x):
    state = None
    for part in x.unbind(1):
        state = self.cell(part, state)
    return self.head(state)


def over_turned(self, x):
    state = x.new_zeros(len(x), D)
    for part in x.transpose(0, 1):
        state = self.cell(part, state)
    return self.head(state)


def from_zeros(self, x):
    state = torch.zeros(x.shape[0], D, dtype=x.dtype)
    for t in range(x.size(1)):
        state = self.cell(x[:, t], state)
    return self.head(state)


def from_two_zeros(self, x):
    state = [torch.zeros(x.size(0), D, dtype=x.dtype) for _ in range(2)]
    for t in reversed(range(x.size(1))):
        state = self.cell(x[:, t], state)
    return self.head(state[0])


def layer_from_zeros(self, x):
    values, _ = self.cells(x, torch.zeros(1, x.size(0), D, dtype=x.dtype))
    return self.head(values[:, -1])


def checked(self, x):
    assert x.shape[-1] == C, "samples of another width"
    if x.dim() == 2:
        x = x[:, None]
    if x.ndim != 3 or x.size(-1) < 2:
        raise ValueError("no sequence")
    return self.head(torch.tanh(self.a(x)).mean(1))


def scaled(self, x):
    h = torch.tanh(self.a(x)) * x.size(1) ** -0.5
    return self.head(h.sum(1) / (1 + x.shape[-1])) + math.log(x.shape[1]) * self.gain


def placed(self, x):
    n = x.shape[1]
    return self.head((torch.tanh(self.a(x)) + self.p[torch.arange(n)]).mean(1))


def embedded(self, x):
    places = torch.arange(1, x.shape[1], device=x.device)
    return self.head((torch.tanh(self.a(x))[:, places] * self.places(places)).mean(1))


def joined(self, x):
    ones = torch.ones(len(x), x.shape[1], 1, dtype=x.dtype)
    return self.head(torch.relu(self.b(torch.cat([x, ones], -1))).sum(1))


def cell(kind):
    return {"cell": kind(C, D)}


def linear(inputs=C):
    return nn.Linear(inputs, D)


SIZES = {
    "range": lambda: module(over_places, **cell(nn.GRUCell)),
    "range lstm": lambda: module(over_places, **cell(nn.LSTMCell)),
    "unbind": lambda: module(over_parts, **cell(nn.RNNCell)),
    "turned": lambda: module(over_turned, **cell(nn.GRUCell)),
    "zeros": lambda: module(from_zeros, **cell(nn.GRUCell)),
    "two zeros": lambda: module(from_two_zeros, **cell(nn.LSTMCell)),
    "layer": lambda: module(layer_from_zeros, cells=nn.GRU(C, D, batch_first=True)),
    "assert": lambda: module(checked, a=linear()),
    "numbers": lambda: module(scaled, a=linear(), gain=row(OUTPUTS)),
    "arange": lambda: module(placed, a=linear(), p=row(9, D)),
    "embedding": lambda: module(embedded, a=linear(), places=nn.Embedding(9, D)),
    "ones": lambda: module(joined, b=linear(C + 1)),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_numbers(name):
    meta = maml(SIZES[name]())
    assert fm.explain(meta).name == "resident"
    for places, s in ((L, 5), (7, 1), (2, 40), (L, 3)):  # of another shape it is read anew
        assert_exact(meta, tasks_of(places, s=s, q=s + 1), [*meta.parameters()])
    assert engines_of(meta) == {"resident"}


@pytest.mark.parametrize("name", ["range", "assert", "arange"])
def test_many_tasks(name):
    meta = maml(SIZES[name]())
    assert_exact(meta, tasks_of(t=33), [*meta.parameters()])
    assert engines_of(meta) == {"resident"}


# ---- the number of samples -----------------------------------------------------------------------


def by_count(self, x):
    return self.head(torch.tanh(self.a(x)).sum(1)) * (2.0 if x.shape[0] == 5 else 1.0)


def by_length(self, x):
    return self.head(torch.tanh(self.a(x)).sum(1)) / len(x)


def by_caught_count(self, x):
    try:
        few = x.shape[0] < 4
    except Exception:
        few = False
    return self.head(torch.tanh(self.a(x)).sum(1)) * (2.0 if few else 1.0)


def by_looked_up_count(self, x):
    try:
        factor = {5: 2.0}[x.shape[0]]
    except (KeyError, TypeError):
        factor = 1.0
    return self.head(torch.tanh(self.a(x)).sum(1)) * factor


def by_logarithm_of_count(self, x):
    return self.head(torch.tanh(self.a(x)).sum(1)) * math.log(x.shape[0])


def by_digits_of_count(self, x):  # past all that a number can refuse
    return self.head(torch.tanh(self.a(x)).sum(1)) * (2.0 if len(str(x.shape[0])) < 3 else 1.0)


def by_range_of_count(self, x):
    h = self.a(x).sum(1)
    for _ in range(x.shape[0]):
        h = torch.tanh(h)
    return self.head(h)


def by_each_sample(self, x):
    return torch.stack([self.head(torch.tanh(self.a(x[i])).sum(0)) for i in range(len(x))])


def by_places_of_samples(self, x):
    return self.head(torch.tanh(self.a(x)).sum(1) + self.w[torch.arange(x.shape[0])])


def by_value(self, x):
    h = self.a(x).sum(1)
    return self.head(torch.tanh(h) if self.w[0, 0] > 0 else h)


def by_number_of_a_parameter(self, x):
    return self.head(torch.tanh(self.a(x)).sum(1) * float(self.w[0, 0]))


@pytest.mark.parametrize(
    "forward",
    [
        by_count, by_length, by_caught_count, by_looked_up_count, by_logarithm_of_count,
        by_digits_of_count, by_range_of_count, by_each_sample, by_places_of_samples, by_value,
        by_number_of_a_parameter,
    ],
)  # fmt: skip
def test_what_depends_on_samples_is_left_to_other_engines(forward):
    meta = maml(module(forward, a=linear(), w=torch.randn(9, D)))
    assert_exact(meta, tasks_of(), [*meta.parameters()], 1e-10)
    assert "resident" not in engines_of(meta)


# ---- what the dispatcher does not tell -----------------------------------------------------------


class Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class TurnedInPlace(Turned):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x


class TurnedWithGradients(Turned):
    @staticmethod
    def forward(ctx, x):
        with torch.enable_grad():
            return x * 1


def doubling_hook(x):
    if x.requires_grad:
        x.register_hook(lambda gradient: 2 * gradient)
    return x


def doubling_saved(x):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: 2 * t):
        return x.tanh() * x


def without_gradients(x):
    with torch.no_grad():
        return x * 2


@pytest.mark.parametrize(
    "change",
    [
        Turned.apply, TurnedInPlace.apply, TurnedWithGradients.apply, doubling_hook,
        doubling_saved, without_gradients,
    ],
    ids=["view", "in place", "with gradients", "hook", "saved", "without"],
)  # fmt: skip
def test_other_gradients_are_seen(change):
    def forward(self, x):
        return self.head(change(self.a(x) * 1).sum(1) + self.gate * self.a(x).sum(1))

    meta = maml(module(forward, a=linear(), gate=row(1)))
    assert_exact(meta, tasks_of(), [*meta.parameters()], 1e-10)
    assert "resident" not in engines_of(meta)


def test_gradients_behind_a_closed_gate_are_seen():
    def forward(self, x):
        return self.head(self.a(x).sum(1) + self.gate * doubling_saved(self.b(x)).sum(1))

    model = module(forward, a=linear(), b=linear(), gate=nn.Parameter(torch.zeros(1)))
    read = written_of(model, [L, C])
    assert isinstance(read, Written)
    assert "another gradient" in miscomputed(read, model, [L, C])


def test_the_trial_of_a_long_recurrence_is_no_chaos():
    torch.manual_seed(2)
    cells, head = nn.RNN(4, 64, batch_first=True), nn.Linear(64, 2)
    model = module(lambda self, x: self.head(self.cells(x)[0][:, -1]), cells=cells, head=head)
    read = written_of(model.float(), [40, 4])
    assert isinstance(read, Written)
    assert miscomputed(read, model, [40, 4]) is None


def test_reading_changes_nothing():
    def forward(self, x):
        self.w.add_(1)
        self.count.add_(1)
        return self.head(torch.tanh(self.a(x)).sum(1))

    model = module(forward, a=linear(), w=torch.zeros(3), count=torch.tensor(0))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert isinstance(written_of(model, [L, C]), str)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_drawn_numbers_are_not_kept():
    def forward(self, x):
        drawn = random.random() < 2  # the same for all, but drawn
        return self.head(torch.tanh(self.a(x)).sum(1)) * float(drawn)

    assert "draws random numbers" in written_of(module(forward, a=linear()), [L, C])


def test_what_is_not_read_is_said():
    def forward(self, x):
        state = torch.zeros(x.shape[0], D, dtype=x.dtype)
        return self.head((state + self.a(x).sum(1)).atan())

    said = fm.explain(maml(module(forward, a=linear()))).passed_over
    assert "state = torch.zeros(x.shape[0], D, dtype=x.dtype)" in said["layered"]
    assert "atan" in said["resident"] and "positional" not in said["resident"]
    narrow = written_of(module(checked, a=linear()), [L, C + 1])
    assert "AssertionError: samples of another width" in narrow


def test_a_first_call_under_a_checkpoint_saves_what_the_next_one_does():
    meta, tasks = maml(SIZES["range"]()), tasks_of()
    loss = checkpoint(lambda: meta(tasks).loss.sum(), use_reentrant=False)
    ours = torch.autograd.grad(loss, [*meta.parameters()])
    right = torch.autograd.grad(meta(tasks).loss.sum(), [*meta.parameters()])
    torch.testing.assert_close(ours, right)
    assert engines_of(meta) == {"resident"}
