"""Forwards that are arithmetic on each sample's numbers, in the native kernels."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_exact, gradients, regression_tasks, relative_error
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop.arithmetic.forward_rules import FORWARD_RULES
from fastmeta.inner_loop.arithmetic.written import Written, written_of
from fastmeta.inner_loop.engines import networks

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")

INPUTS, OUTPUTS = 3, 2


def module(forward: Callable[..., Any], **parts: Any) -> nn.Module:
    """One whose forward is that function, with these parts; tensors become buffers."""
    made = type(forward.__name__, (nn.Module,), {"forward": forward})()
    for name, part in parts.items():
        if type(part) is torch.Tensor:
            made.register_buffer(name, part)
        else:
            setattr(made, name, part)
    return made.double()


def linear(inputs=INPUTS, outputs=6, bias=True):
    return nn.Linear(inputs, outputs, bias)


def row(*shape):
    return nn.Parameter(torch.randn(*shape) / 2)


def head():
    return linear(6, OUTPUTS)


# ---- forwards ------------------------------------------------------------------------------------


def gated(self, x):
    return self.head(torch.tanh(self.a(x)) * torch.sigmoid(self.b(x)))


def conditioned(self, x):  # Perez et al. 2018
    scale, shift = self.of_context(self.context).chunk(2, -1)
    return self.head(torch.relu(self.a(x) * (1 + scale) + shift))


def with_context(self, x):  # Zintgraf et al. 2019
    context = self.context.expand(x.shape[0], -1)
    return self.head(torch.relu(self.a(torch.cat([x, context], dim=1))))


def skipping(self, x):
    h = F.silu(self.a(x))
    return self.head(torch.cat((h, x), -1))


def by_hand(self, x):
    x = torch.relu(x @ self.w + self.b)
    return torch.addmm(self.d, x, self.v)


def tied(self, x):
    code = torch.tanh(F.linear(x, self.w, self.b))
    return self.head(F.linear(code, self.w.t()))


def tied_by_turns(self, x):
    return self.head(torch.tanh(x @ self.w.T) @ self.w.transpose(0, 1).mT)


def again(self, x):
    return self.head(torch.tanh(self.a(torch.tanh(self.a(x)))) - 0.5 * x)


def fourier(self, x):  # Tancik et al. 2020
    z = x @ self.frequencies
    return self.head(torch.cat([z.sin(), z.cos()], dim=-1))


def standardised(self, x):
    return self.head(torch.tanh(self.a((x - self.mean) / self.deviation)))


def normed(self, x):
    return self.head(self.norm(self.a(x)) * torch.tanh(self.b(x)))


def root_mean_square(self, x):
    h = self.a(x)
    return self.head(h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain)


def in_place(self, x):
    h = F.relu(self.a(x), inplace=True) * torch.sigmoid(self.b(x))
    h += 1
    return self.head(h.mul_(2).tanh_())


def attention_over_numbers(self, x):
    return self.head(torch.softmax(self.a(x), dim=1) * self.b(x))


def probabilities(self, x):
    return F.log_softmax(self.head(torch.tanh(self.a(x))), dim=-1)


def chosen(self, x):
    a, b = self.a(x), self.b(x)
    larger = torch.maximum(a, b).clamp(-2, 2)
    return self.head(torch.where(a > 0.1, larger, torch.minimum(a, 0.3 * b)))


def parts(self, x):
    first, rest = x[:, :1], x[:, 1:]
    powers = torch.cat([first, first**2, first**3, torch.ones_like(first)], dim=1)
    return self.head(torch.tanh(self.a(rest)) * self.b(powers) + x[:, -1:])


def positions(self, x):
    places = torch.relu(self.a(x.view(-1, 3, 1)))
    return self.head(places.mean(1)) + self.flat(places.flatten(1))


def scales(self, x):
    return self.head(torch.tanh(self.a(x) * self.gain + self.shift)) * self.scale.exp()


def kinds(self, x):
    a, b = self.a(x), self.b(x)
    h = F.elu(a, 0.7) + F.selu(a) * F.mish(b) + F.leaky_relu(b, 0.2) + F.softplus(a, 2)
    return self.head(h + F.relu6(3 * a) + F.gelu(b) + F.gelu(a, approximate="tanh") + F.hardtanh(b))


def recurrent(self, x):
    h = None
    for t in range(3):
        h = self.cell(x[:, t : t + 1], h)
    return self.head(h)


def remembering(self, x):
    state = None
    for t in range(3):
        state = self.cell(x[:, t : t + 1], state)
    return self.head(state[0])


def of_numbers(self, x):
    return self.head(self.a(x) * x.sum(1, keepdim=True) / (1 + x.abs().sum(-1, keepdim=True)))


def cosine(self, x):
    h = F.normalize(torch.relu(self.a(x)), dim=-1)
    return 3 * h @ F.normalize(self.w, dim=1).T


def lengths(self, x):
    h, none = self.a(x), torch.relu(self.b(x) - 9)  # of length 0
    places = torch.linalg.vector_norm(h.view(-1, 2, 3), dim=1).repeat(1, 2)
    return self.head(h * h.norm(dim=-1, keepdim=True) / (1 + places) + none.norm(dim=1)[:, None])


def powers(self, x):
    h = 1 + torch.sigmoid(self.a(x))
    return self.head(h**5 / 32 + h.pow(-1) + h**-2 + h.pow(-0.5) + torch.tanh(self.b(x)) ** 7)


FORWARDS: dict[str, Callable[[], nn.Module]] = {
    "gated": lambda: module(gated, a=linear(), b=linear(), head=head()),
    "film": lambda: module(
        conditioned, a=linear(), of_context=linear(4, 12), context=row(4), head=head()
    ),
    "cavia": lambda: module(with_context, a=linear(INPUTS + 4), context=row(4), head=head()),
    "skip": lambda: module(skipping, a=linear(), head=linear(6 + INPUTS, OUTPUTS)),
    "by hand": lambda: module(by_hand, w=row(INPUTS, 6), b=row(6), v=row(6, 2), d=row(2)),
    "tied": lambda: module(tied, w=row(5, INPUTS), b=row(5), head=linear(INPUTS, OUTPUTS)),
    "turned": lambda: module(tied_by_turns, w=row(5, INPUTS), head=linear(INPUTS, OUTPUTS)),
    "twice": lambda: module(again, a=linear(INPUTS, INPUTS), head=linear(INPUTS, OUTPUTS)),
    "fourier": lambda: module(
        fourier, frequencies=torch.randn(INPUTS, 4), head=linear(8, OUTPUTS)
    ),
    "standardised": lambda: module(
        standardised, mean=torch.randn(INPUTS), deviation=torch.rand(1, INPUTS) + 1, a=linear(),
        head=head(),
    ),
    "layer norm": lambda: module(normed, a=linear(), b=linear(), norm=nn.LayerNorm(6), head=head()),
    "rms norm": lambda: module(root_mean_square, a=linear(), gain=row(6), head=head()),
    "in place": lambda: module(in_place, a=linear(), b=linear(), head=head()),
    "softmax": lambda: module(attention_over_numbers, a=linear(), b=linear(), head=head()),
    "log softmax": lambda: module(probabilities, a=linear(), head=head()),
    "where": lambda: module(chosen, a=linear(), b=linear(), head=head()),
    "parts": lambda: module(parts, a=linear(2), b=linear(4), head=head()),
    "positions": lambda: module(
        positions, a=linear(1), head=head(), flat=linear(18, OUTPUTS, bias=False)
    ),
    "scales": lambda: module(scales, a=linear(), gain=row(6), shift=row(1, 6), scale=row(1),
                             head=head()),
    "a number": lambda: module(scales, a=linear(), gain=row(1), shift=row(6),
                               scale=nn.Parameter(torch.tensor(0.3)), head=head()),
    "kinds": lambda: module(kinds, a=linear(), b=linear(), head=head()),
    "gru": lambda: module(recurrent, cell=nn.GRUCell(1, 6), head=head()),
    "lstm": lambda: module(remembering, cell=nn.LSTMCell(1, 6), head=head()),
    "cosine": lambda: module(cosine, a=linear(), w=row(OUTPUTS, 6)),
    "lengths": lambda: module(lengths, a=linear(), b=linear(), head=head()),
    "powers": lambda: module(powers, a=linear(), b=linear(), head=head()),
    "numbers": lambda: module(of_numbers, a=linear(), head=head()),
    "prelu": lambda: nn.Sequential(linear(), nn.PReLU(6), head(), nn.PReLU()).double(),
    "glu": lambda: nn.Sequential(linear(INPUTS, 12), nn.GLU(), head(), nn.Softmax(-1)).double(),
}  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.cells = kind(INPUTS, 5, batch_first=True, **options)
        self.head = nn.Linear(5, OUTPUTS)

    def forward(self, x):
        values, _ = self.cells(x)
        return self.head(values[:, -1])


class LastState(Recurrent):
    def forward(self, x):
        return self.head(self.cells(x)[1][-1])


class BothWays(Recurrent):
    def forward(self, x):
        values, _ = self.cells(x)
        return self.head(values[:, -1, :5] + values[:, 0, 5:])


def of_sets(self, x):  # Zaheer et al. 2017
    return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean(1))


SEQUENCES: dict[str, Callable[[], nn.Module]] = {
    "rnn": lambda: Recurrent(nn.RNN),
    "gru": lambda: Recurrent(nn.GRU, num_layers=2),
    "lstm": lambda: Recurrent(nn.LSTM),
    "lstm without bias": lambda: Recurrent(nn.LSTM, bias=False),
    "two lstms": lambda: Recurrent(nn.LSTM, num_layers=2),
    "both ways": lambda: BothWays(nn.LSTM, bidirectional=True),
    "state": lambda: LastState(nn.GRU),
    "sets": lambda: module(of_sets, a=linear(), b=linear(6), head=head()),
}


def test_long_sequences():
    """Outputs of 40 steps are joined without a copy of all that came before at each."""
    steps = written_of(Recurrent(nn.RNN).double(), [40, INPUTS])
    assert isinstance(steps, Written)
    joined = sum(step[6] for step in steps.steps if step[0] == "join")
    assert joined <= 40 * 5 * 6


def sequences_of(t):
    def samples(n, *shape):
        return torch.randn(t, n, *shape, dtype=torch.float64)

    return fm.TaskBatch(
        samples(7, 4, INPUTS), samples(7, OUTPUTS), samples(5, 4, INPUTS), samples(5, OUTPUTS)
    )


@pytest.mark.parametrize("t", [2, 33])
@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences(name, t):
    model = SEQUENCES[name]().double()
    meta = fm.MAML(model, loss="mse", inner_steps=2, inner_lr=0.05, engine="resident")
    assert_exact(meta, sequences_of(t), [*model.parameters()])


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_in_float32(name):  # PyTorch has other operations for some
    model, tasks = SEQUENCES[name]().double(), sequences_of(3)
    right = _all_gradients(model, tasks, "reference")
    model = model.float()
    assert_native(fm.MAML(model, loss="mse", inner_lr=0.05), in_float(tasks), tolerance=1e-5)
    assert relative_error(_all_gradients(model, in_float(tasks), "cpu"), right) < 1e-5
    assert torch.backends.mkldnn.enabled


def tasks_of(t, s=7, q=5, **kwargs):
    return regression_tasks(t=t, s=s, q=q, inputs=INPUTS, outputs=OUTPUTS, **kwargs)


def assert_native(meta, tasks, tolerance=1e-11):
    choice = fm.explain(meta)
    assert choice.name == "resident", choice.passed_over["resident"]
    learned = [p for p in meta.parameters() if p.requires_grad]
    assert_exact(meta, tasks, learned, tolerance)
    engines = {plan.engine.__name__.rpartition(".")[2] for plan in meta._plans.values()}
    assert "resident" in engines


@pytest.mark.parametrize("t", [2, 33])  # lanes that are samples, and tasks
@pytest.mark.parametrize("name", FORWARDS)
def test_forwards(name, t):
    meta = fm.MAML(FORWARDS[name](), loss="mse", inner_steps=2, inner_lr=0.05)
    assert_native(meta, tasks_of(t))


@pytest.mark.parametrize("name", FORWARDS)
def test_forwards_in_float32(name):
    model, tasks = FORWARDS[name](), tasks_of(3)
    right = _all_gradients(model, tasks, "reference")
    model = model.float()
    assert_native(fm.MAML(model, loss="mse", inner_lr=0.05), in_float(tasks), tolerance=1e-5)
    assert relative_error(_all_gradients(model, in_float(tasks), "cpu"), right) < 1e-5


@pytest.mark.parametrize("t", [2, 33])
@pytest.mark.parametrize("name", ["gated", "cavia", "tied", "positions", "lstm"])
def test_learned_rates_many_samples_and_inputs_that_learn(name, t):
    meta = fm.MAML(
        FORWARDS[name](), loss="mse", inner_steps=2, inner_lr=0.05, learn_inner_lr="element",
        per_step_lr=True,
    )  # fmt: skip
    tasks = tasks_of(t, s=40, q=51, support_weight=torch.rand(t, 40, dtype=torch.float64))
    tasks.support_x.requires_grad_(), tasks.query_x.requires_grad_()
    learned = [*meta.parameters(), tasks.support_x, tasks.query_x]
    assert fm.explain(meta).name == "resident"
    assert_exact(meta, tasks, learned)


@pytest.mark.parametrize("t", [2, 33])
def test_first_order_and_no_step(t):
    for order, steps in ((1, 3), (2, 0)):
        meta = fm.MAML(
            FORWARDS["gated"](), loss="mse", inner_steps=steps, order=order, inner_lr=0.05,
            learn_inner_lr="tensor",
        )  # fmt: skip
        assert_native(meta, tasks_of(t))


@pytest.mark.parametrize("t", [2, 33])
def test_context_alone_adapts(t):
    model = FORWARDS["film"]()
    meta = fm.MAML(model, loss="mse", inner_steps=3, inner_lr=0.1, adapt_parameters=["context"])
    assert_native(meta, tasks_of(t))
    meta = fm.MAML(model, loss="mse", adapt_parameters=["of_context.weight", "head.bias"])
    assert_native(meta, tasks_of(t))


def test_what_follows_adaptation():
    meta = fm.MAML(FORWARDS["skip"](), loss="mse", inner_steps=2, inner_lr=0.05)
    tasks = tasks_of(3)
    learned = [*meta.parameters()]
    found = []
    for backend in ("cpu", "reference"):
        with fm.use_backend(backend):
            adapted = meta.adapt(tasks.support_x, tasks.support_y)
            value = adapted(tasks.query_x).sin().sum()
            found.append(torch.autograd.grad(value, learned))
    assert relative_error(*found) < 1e-11


def test_losses_of_ones_own():
    def huber(predictions, targets):
        return F.huber_loss(predictions, targets, delta=0.5)

    meta = fm.MAML(FORWARDS["gated"](), loss=huber, inner_steps=2, inner_lr=0.05)
    assert_native(meta, tasks_of(3))


def test_log_softmax_under_nll():
    model = nn.Sequential(linear(), nn.ReLU(), linear(6, 4), nn.LogSoftmax(dim=1)).double()
    x, y = torch.randn(2, 3, 8, INPUTS, dtype=torch.float64), torch.randint(4, (2, 3, 8))
    meta = fm.MAML(model, loss=F.nll_loss, inner_steps=2, inner_lr=0.05)
    assert_native(meta, fm.TaskBatch(x[0], y[0], x[1], y[1]))


@pytest.mark.parametrize("t", [1, 5, 33])
def test_the_threads_change_no_bit(t):
    meta = fm.MAML(FORWARDS["lstm"]().float(), loss="mse", inner_steps=2, inner_lr=0.05)
    tasks = fm.TaskBatch(*(torch.randn(t, 40, n) for n in (INPUTS, OUTPUTS) * 2))
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(gradients(meta, tasks, [*meta.parameters()]))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


def test_float32_is_as_exact_as_pytorch():
    ours, plain = [], []
    for seed in range(12):
        torch.manual_seed(seed)
        model = FORWARDS["gated"]()
        tasks = tasks_of(3)
        right = _all_gradients(model, tasks, "reference")
        model = model.float()
        ours.append(relative_error(_all_gradients(model, in_float(tasks), "cpu"), right))
        plain.append(relative_error(_all_gradients(model, in_float(tasks), "reference"), right))
    assert sorted(ours)[6] < 2 * sorted(plain)[6]


def in_float(tasks):
    names = ("support_x", "support_y", "query_x", "query_y")
    return fm.TaskBatch(*(getattr(tasks, name).float() for name in names))


def _all_gradients(model, tasks, backend):
    meta = fm.MAML(model, loss="mse", inner_steps=2, inner_lr=0.05)
    with fm.use_backend(backend):
        return [g.double() for g in gradients(meta, tasks, [*meta.parameters()])]


# ---- what may change -----------------------------------------------------------------------------


def test_buffers_are_read_anew():
    model = FORWARDS["standardised"]()
    meta, tasks = fm.MAML(model, loss="mse", inner_lr=0.05), tasks_of(3)
    assert_native(meta, tasks)
    model.mean.add_(1)
    assert_native(meta, tasks)
    model.mean = torch.randn(INPUTS, dtype=torch.float64)
    assert_native(meta, tasks)
    model.deviation = torch.rand(INPUTS, 1, dtype=torch.float64).t() + 1  # not contiguous
    assert_native(meta, tasks)


@pytest.mark.parametrize("shape", [(1, INPUTS), (1,), (3, INPUTS), ()])
def test_buffers_of_another_shape(shape):
    model = FORWARDS["standardised"]()
    meta, tasks = fm.MAML(model, loss="mse", inner_lr=0.05), tasks_of(3, s=3, q=3)
    assert_native(meta, tasks)
    model.mean = torch.randn(shape, dtype=torch.float64)  # [3, 3] is that of each sample
    assert_exact(meta, tasks, [*meta.parameters()])


def test_buffers_that_were_the_same():
    model = FORWARDS["standardised"]()
    model.deviation = model.mean
    meta, tasks = fm.MAML(model, loss="mse", inner_lr=0.05), tasks_of(3)
    assert_native(meta, tasks)
    model.deviation = torch.rand(INPUTS, dtype=torch.float64) + 1
    assert_native(meta, tasks)


def test_parameters_of_functional_call():
    model, tasks = FORWARDS["gated"](), tasks_of(3)
    meta = fm.MAML(model, loss="mse", inner_steps=0)
    state = {name: torch.randn_like(p) for name, p in meta.named_parameters()}
    loss = torch.func.functional_call(meta, state, (tasks,)).loss
    model.load_state_dict({name.removeprefix("model."): p for name, p in state.items()})
    with fm.use_backend("reference"):
        torch.testing.assert_close(loss, meta(tasks).loss)


def scaled_by(self, x):
    return self.head(torch.tanh(self.a(x)) * self.factor)


def test_attributes_are_watched():
    model = module(scaled_by, a=linear(), head=head(), factor=2.0)
    meta, tasks = fm.MAML(model, loss="mse", inner_lr=0.05), tasks_of(3)
    assert_native(meta, tasks)
    model.factor = -1.0
    assert_native(meta, tasks)


SHARE = 2.0


def swish(x):
    return SHARE * x * torch.sigmoid(x)


def bent_by_attributes(self, x):
    return self.options["scale"] * self.head(self.ends[0](self.bend(self.a(x))))


FUNCTIONS = [
    F.relu, torch.tanh, F.gelu, F.elu, swish, lambda x: x * x.sigmoid(),
    functools.partial(F.leaky_relu, negative_slope=0.1),
]  # fmt: skip


def bent_by(function):
    return module(
        bent_by_attributes, a=linear(), head=head(), bend=function, ends=[torch.sin],
        options={"scale": 2.0, "name": "bent", "kind": torch.float64},
    )  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_attributes_that_are_functions(function):
    assert_native(fm.MAML(bent_by(function), loss="mse", inner_lr=0.05), tasks_of(3))


def change_a_global(model, monkeypatch):
    monkeypatch.setitem(globals(), "SHARE", -1.0)


def change_the_function(model, monkeypatch):
    model.bend = torch.cos


def change_a_list(model, monkeypatch):
    model.ends[0] = torch.cos


def change_a_dict(model, monkeypatch):
    model.options["scale"] = -1.0


@pytest.mark.parametrize(
    "change", [change_a_global, change_the_function, change_a_list, change_a_dict]
)
def test_functions_and_containers_are_watched(change, monkeypatch):
    model = bent_by(swish)
    meta, tasks = fm.MAML(model, loss="mse", inner_lr=0.05), tasks_of(3)
    assert_native(meta, tasks)
    change(model, monkeypatch)
    assert_native(meta, tasks)


def test_a_method_of_a_list_is_not_watched():
    model = bent_by(torch.tanh)
    model.note = [].append
    meta = fm.MAML(model, loss="mse", inner_lr=0.05)
    assert "note is a builtin_function_or_method" in fm.explain(meta).passed_over["resident"]


def test_parameters_may_be_replaced():
    model = FORWARDS["by hand"]()
    meta, tasks = fm.MAML(model, loss="mse", inner_lr=0.05), tasks_of(3)
    assert_native(meta, tasks)
    model.w = nn.Parameter(torch.randn(6, INPUTS, dtype=torch.float64).t())
    assert_native(fm.MAML(model, loss="mse", inner_lr=0.05), tasks)


# ---- what is not read ----------------------------------------------------------------------------


def over_samples(self, x):
    h = self.a(x)
    return self.head(h - h.mean(0))


def between_samples(self, x):
    h = self.a(x)
    return self.head(torch.softmax(h @ h.T, dim=-1) @ h)


def by_count(self, x):
    return self.head(self.a(x)) / x.shape[0]


def no_sample_left(self, x):
    return (self.a(x) * x.sum(1, keepdim=True)).sum()


def overwriting(self, x):
    h = self.a(x)
    left = h[:, :3]
    h.mul_(2)
    return self.head(torch.cat([left, h[:, 3:]], 1))


def into_the_input(self, x):
    x.mul_(2)
    return self.head(self.a(x) * self.a(x))


def doubled(self, x):
    return self.head(self.a(x).float().double() * self.a(x))


def parts_of_what_is_read_again(self, x):
    h = self.a(x) * 1
    first, second = h.unsafe_chunk(2, 1)
    first.mul_(2)
    return self.head(self.a(x) + self.gate * torch.cat([h[:, :3], second], 1))


def repeated_samples(self, x):
    return self.head(self.a(x) + self.gate * self.w(x).repeat(2, 1).reshape(x.shape[0], 2)[:, :1])


def softmax_of_samples(self, x):
    return self.head(self.a(x) + self.gate * torch.softmax(self.w(x).squeeze(-1), 0).unsqueeze(1))


def sum_of_expanded(self, x):
    return self.head(self.a(x) + self.gate * self.w.expand(1, x.shape[0], 2).sum())


def by_size(self, x):
    return self.head(self.a(x) * {7: 2.0}.get(x.shape[0], 1.0) * self.a(x))


def view_of_a_part(self, x):
    part = self.a(x).unsafe_chunk(2, 1)[0]
    view = part.view_as(part)
    part.add_(1)
    return self.head(torch.cat([view, part], 1))


def gate():
    return {"gate": nn.Parameter(torch.zeros(1))}  # what it lets through comes later


UNREAD = {
    "samples again": (repeated_samples, {"w": linear(INPUTS, 1), **gate()}),
    "softmax of samples": (softmax_of_samples, {"w": linear(INPUTS, 1), "gate": torch.zeros(1)}),
    "a row for all samples": (sum_of_expanded, {"w": row(1, 1, 2), "gate": torch.zeros(1)}),
    "a view of a part": (view_of_a_part, {}),
    "a base of parts": (parts_of_what_is_read_again, gate()),
    "statistics of samples": (over_samples, {}),
    "attention over samples": (between_samples, {}),
    "the number of samples": (by_count, {}),
    "views that change": (overwriting, {}),
    "another dtype": (doubled, {}),
}


@pytest.mark.parametrize("forward", [no_sample_left, into_the_input, by_size])
def test_what_is_not_of_each_sample(forward):
    reason = written_of(module(forward, a=linear(), head=head()), [INPUTS])
    assert any(words in reason for words in ("over samples", "in place", "number of samples"))


class Added(Recurrent):
    def forward(self, x):
        return self.head(self.cells(x)[0].cumsum(1).mean(1))


def test_a_recurrent_layer_that_is_not_read_is_looked_at_once(monkeypatch):
    looked = []
    monkeypatch.setattr(networks, "written_of", lambda *_: looked.append(1) or "not now")
    meta = fm.MAML(Added(nn.GRU), loss="mse")
    tasks = fm.TaskBatch(*(torch.randn(2, 5, *shape) for shape in ((4, INPUTS), (OUTPUTS,)) * 2))
    for _ in range(3):
        meta(tasks).loss.mean().backward()
    assert len(looked) == 1


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_left_to_other_engines(name):
    forward, others = UNREAD[name]
    model = module(forward, **{"a": linear(), "head": head(), **others})
    reason = written_of(model, [INPUTS])
    assert isinstance(reason, str) and reason
    meta = fm.MAML(model, loss="mse", inner_lr=0.05)
    assert fm.explain(meta).name != "resident"
    assert_exact(meta, tasks_of(3), [p for p in model.parameters()], 1e-10)


def of_unit_length(self, x):  # no number of a sample of zeros
    return self.head(torch.tanh(self.a(x / x.pow(2).sum(1, keepdim=True).sqrt())) * x.abs().log())


def test_lanes_without_a_task():
    model = module(of_unit_length, a=linear(3, 3), head=linear(3, 2))
    for t in (1, 5, 17, 33, 47):
        assert_native(fm.MAML(model, loss="mse", inner_lr=0.01), tasks_of(t))


def of_many(self, x):
    return self.head(torch.tanh(self.a(x)) / self.b(x).pow(2).mean(1, keepdim=True).sqrt())


@pytest.mark.parametrize("t", [2, 16])
def test_wide_sums_in_float32(t):
    ours, plain = [], []
    for seed in range(5):
        torch.manual_seed(seed)
        model = module(of_many, a=linear(3, 6), b=linear(3, 1024), head=head())
        tasks = tasks_of(t)
        right = _all_gradients(model, tasks, "reference")
        for found, backend in ((ours, "cpu"), (plain, "reference")):
            made = _all_gradients(model.float(), in_float(tasks), backend)
            found.append(relative_error(made, right))
            model.double()
    assert sorted(ours)[2] < 2 * sorted(plain)[2]


def test_many_parameters_are_for_other_engines():
    layers = [layer for _ in range(260) for layer in (nn.Linear(1, 1), nn.Tanh())]
    assert "512 parameters" in written_of(nn.Sequential(*layers), [1])


def behind_a_gate(self, x):
    return self.head(self.a(x) + self.gate * torch.sigmoid(self.b(x)))


@pytest.mark.parametrize("of", [nn.Parameter, torch.Tensor.clone])
def test_a_program_is_tried_where_a_gate_is_open(of, monkeypatch):
    monkeypatch.setitem(FORWARD_RULES, "sigmoid", FORWARD_RULES["tanh"])  # a fault
    model = module(behind_a_gate, a=linear(), b=linear(), head=head(), gate=of(torch.zeros(6)))
    assert isinstance(written_of(model, [INPUTS]), Written)
    meta = fm.MAML(model, loss="mse", inner_lr=0.05)
    assert_exact(meta, tasks_of(3))
    assert "resident" not in {p.engine.__name__.rpartition(".")[2] for p in meta._plans.values()}


def test_hooks_are_called():
    model, calls = FORWARDS["gated"](), []
    model.a.register_forward_hook(lambda *_: calls.append(1))
    assert "hooks" in written_of(model, [INPUTS])
    fm.MAML(model, loss="mse")(tasks_of(2))
    assert calls


def test_programs_are_short():
    steps = written_of(FORWARDS["by hand"](), [INPUTS])
    assert isinstance(steps, Written)
    assert [step[0] for step in steps.steps] == ["linear", "activate", "linear"]
    assert steps.names == ("w", "v", "b", "d")


def test_no_native_form_is_made_of_too_many_numbers():
    model = module(gated, a=linear(3, 40_000), b=linear(3, 40_000), head=linear(40_000, 2))
    assert "numbers of a sample" in written_of(model, [INPUTS])
