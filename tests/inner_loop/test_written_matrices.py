"""Products with matrices that are computed from parameters, most of which need no numbers."""

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_exact, regression_tasks
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop.arithmetic.written import Written, written_of

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")

INPUTS, WIDTH, INNER, OUTPUTS = 5, 12, 9, 3


class Between(nn.Module):
    """Layers around whatever is told, which makes [S, INNER] of [S, WIDTH]."""

    def __init__(self, told):
        super().__init__()
        self.first, self.head = nn.Linear(INPUTS, WIDTH), nn.Linear(INNER, OUTPUTS)
        self.w = nn.Parameter(torch.randn(INNER, WIDTH) / 3)
        self.of_out, self.of_in = (nn.Parameter(torch.rand(n) + 0.5) for n in (INNER, WIDTH))
        self.one = nn.Parameter(torch.tensor(0.7))
        self.row = nn.Parameter(torch.randn(1, WIDTH) / 3)
        self.own = nn.Parameter(torch.randn(INNER, INNER) / 3)
        self.told = told

    def forward(self, x):
        return self.head(torch.tanh(self.told(self, torch.tanh(self.first(x)))))


def rows_of_length_one(m, h):
    return F.linear(h, F.normalize(m.w, dim=1), m.of_out)


def weight_norm(m, h):
    return F.linear(h, m.of_out[:, None] * m.w / m.w.norm(dim=1, keepdim=True))


def over_places(m, h):
    """Three places by one matrix whose outputs and inputs are scaled."""
    w = (m.w * m.of_out[:, None])[:, :8] * m.of_in[:8]
    places = torch.cat([h, h], 1).view(-1, 3, 8)
    return F.linear(places, w).sum(1)


def as_cosine(m, h):
    return 4 * F.normalize(h, dim=1) @ F.normalize(m.w, dim=1).t()


def twice(m, h):
    w = m.w * m.of_out[:, None]
    return F.linear(h, w) + F.linear(h.sin(), w) * w.sum()


def both_ways(m, h):
    return F.linear(h, m.w) * m.w.square().sum(1)


def of_other_parts(m, h):
    parts = F.linear(h.view(-1, 2, 6), m.w.view(18, 6)).flatten(1)
    return F.linear(h, m.w) + parts[:, :INNER]


def attends(m, h):
    keys, values = m.w.view(9, 3, 4).unbind(1)[:2]
    return (F.softmax(h.view(-1, 3, 4) @ keys.t(), -1) @ values[:, :3]).flatten(1)


# What computes no matrix, and what does.
SCALED = {
    "rows of length one": rows_of_length_one,
    "weight norm": weight_norm,
    "cosine": as_cosine,
    "outputs": lambda m, h: F.linear(h, m.w * m.of_out[:, None]),
    "inputs": lambda m, h: F.linear(h, m.w * m.of_in),
    "inputs, turned": lambda m, h: h @ (m.w.t() * m.of_in[:, None]),
    "outputs, turned": lambda m, h: h @ (m.of_out * m.w.t()),
    "divided": lambda m, h: F.linear(h, m.w / m.of_in / m.of_out[:, None]),
    "by a number": lambda m, h: F.linear(h, m.w * m.one / 3, m.of_out),
    "all at once": lambda m, h: h @ (m.w * m.of_in / m.of_out[:, None]).t() / m.one,
    "both ways": both_ways,
}
COMPUTED = {
    "twice": twice,
    "over places": over_places,
    "attention": attends,
    "divides a number": lambda m, h: F.linear(h, 1 / (2 + m.w.square())),
    "a number less it": lambda m, h: F.linear(h, m.one - m.w),
    "of another shape": lambda m, h: F.linear(h, m.w.view(WIDTH, INNER).t()),
    "a bias of itself": lambda m, h: F.linear(h, m.w, m.w[:, 0]),
    "its columns": lambda m, h: F.linear(h, m.w * m.w[:, :1]),
    "of two shapes": lambda m, h: F.linear(h, m.w) * (h[:, :INNER] @ m.w.view(INNER, WIDTH)[:, :1]),
    "in parts of another shape": of_other_parts,
    "a row, and turned": lambda m, h: F.linear(h.sin() @ m.row.t(), m.row.t())[:, :INNER],
    "a row, and twice it": lambda m, h: F.linear(h, m.w) + h @ (2 * m.row).t() + h @ m.row.t(),
    "a bias, and a column": lambda m, h: (
        F.linear(h, m.w, m.of_out) * (h[:, :INNER] @ m.of_out[:, None])
    ),
    "a bias, and a row": lambda m, h: F.linear(h, m.w, m.of_out) + F.linear(
        h[:, :INNER], (2 * m.of_out).view(1, INNER)
    ),
    "a matrix, and all its numbers": lambda m, h: F.linear(h, m.w) * F.linear(
        torch.cat([h] * INNER, 1), (2 * m.w).view(1, -1)
    ),
    "its square, symmetric": lambda m, h: F.linear(h[:, :INNER] @ (m.own + m.own.t()), m.own),
    "turned, and a row": lambda m, h: h[:, :INNER] @ (m.own.t() + m.of_out),
}


def model_of(name):
    torch.manual_seed(1)
    return Between((SCALED | COMPUTED)[name]).double()


@pytest.mark.parametrize("tasks", [1, 4, 21])
@pytest.mark.parametrize("name", SCALED | COMPUTED)
def test_as_the_reference(name, tasks):
    for s, q, order in ((5, 19, 2), (16, 3, 1)):
        meta = fm.MAML(
            model_of(name), loss="mse", inner_lr=0.1, inner_steps=2, order=order, engine="resident"
        )
        assert_exact(meta, regression_tasks(tasks, s, q, INPUTS, OUTPUTS))


@pytest.mark.parametrize("name", SCALED)
def test_scales_are_those_of_samples(name):
    written = written_of(model_of(name), [INPUTS])
    assert isinstance(written, Written)
    assert [step[0] for step in written.steps].count("linear") == 3
    wide = [step for step in written.steps if step[6] == WIDTH * INNER]
    squares = [step for step in wide if step[0] == "multiply" and step[1] == step[2]]
    assert {step[0] for step in wide if step not in squares} <= {"parameter"}


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_softmax_of_large_scores(size):
    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = nn.Linear(INPUTS, OUTPUTS)

        def forward(self, x):
            return F.softmax(self.scores(x) * size, dim=1)

    batch = regression_tasks(3, 2, 50, INPUTS, OUTPUTS)
    four = batch.support_x, batch.support_y, batch.query_x, batch.query_y
    meta = fm.MAML(Shares(), loss="mse", inner_lr=0.1, inner_steps=0, engine="resident")
    shares = meta(fm.TaskBatch(*(t.float() for t in four))).predictions
    torch.testing.assert_close(shares.sum(-1), torch.ones(3, 50), rtol=0, atol=5e-7)


@pytest.mark.parametrize("name", ["weight norm", "both ways", "twice"])
def test_with_rates_of_their_own_and_frozen(name):
    batch = regression_tasks(6, 5, 4, INPUTS, OUTPUTS)
    model = model_of(name)
    assert_exact(fm.MetaSGD(model, loss="mse", inner_lr=0.1, inner_steps=2), batch)
    assert_exact(fm.MAML(model, loss="mse", inner_lr=0.1, adapt_parameters=["w"]), batch)
    model.w.requires_grad_(False)
    assert_exact(fm.MAML(model, loss="mse", inner_lr=0.1, inner_steps=2), batch)
