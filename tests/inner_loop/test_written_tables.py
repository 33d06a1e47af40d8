"""Masks, places and other tensors in a forward that depend on no sample and no parameter."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_exact, classification_tasks
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop.arithmetic.written import Written, written_of

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")

L, C, HEADS = 5, 4, 2


class Attends(nn.Module):
    """A block of a causal transformer, whose attention is told."""

    def __init__(self, told):
        super().__init__()
        self.project, self.out, self.head = nn.Linear(C, 3 * C), nn.Linear(C, C), nn.Linear(C, 3)
        self.register_buffer("truths", torch.ones(L, L).tril().bool())
        self.register_buffer("numbers", torch.ones(L, L).tril())
        self.register_buffer("places", torch.tensor([[3, 1], [4, 0]]))
        self.kept = torch.ones(L, L).tril()
        self.told = told

    def forward(self, x):
        q, k, v = self.project(x).split(C, dim=2)
        q, k, v = (t.view(-1, L, HEADS, C // HEADS).transpose(1, 2) for t in (q, k, v))
        y = self.told(self, q, k, v).transpose(1, 2).reshape(-1, L, C)
        return self.head((x + self.out(y)).mean(1))


def scores(q, k):
    return q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])


def filled(mask):
    def told(module, q, k, v):
        hidden = mask(module, q) == 0
        return F.softmax(scores(q, k).masked_fill(hidden, float("-inf")), -1) @ v

    return told


def added(mask):
    return lambda module, q, k, v: F.softmax(scores(q, k) + mask(module, q), -1) @ v


def attention(mask):
    def told(module, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask(module, q))

    return told


def in_place(module, q):
    mask = torch.zeros(L, L, dtype=q.dtype)
    mask += torch.full((L, L), -3.0, dtype=q.dtype).triu(1)
    mask[0, 0] = 0.5
    mask.fill_diagonal_(0.25)
    return mask


CAUSAL = {
    "is_causal": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "a buffer of truths": filled(lambda m, q: m.truths[:L, :L]),
    "a buffer of numbers": filled(lambda m, q: m.numbers),
    "an attribute": filled(lambda m, q: m.kept),
    "made in the forward": filled(lambda m, q: torch.tril(torch.ones(L, L))),
    "by places": filled(lambda m, q: torch.arange(L)[:, None] >= torch.arange(L)),
    "added": added(lambda m, q: torch.triu(torch.full((L, L), -1e9, dtype=q.dtype), 1)),
    "added in place": added(in_place),
    "a bias by distance": added(
        lambda m, q: -0.3 * (torch.arange(L)[:, None] - torch.arange(L)).abs().to(q.dtype)
    ),
    "attention by truths": attention(lambda m, q: m.truths),
    "attention by casts": attention(lambda m, q: m.numbers.bool()),
    "attention by numbers": attention(
        lambda m, q: q.new_zeros(L, L).masked_fill(m.numbers == 0, float("-inf"))
    ),
    "where": lambda m, q, k, v: F.softmax(
        torch.where(m.truths, scores(q, k), torch.finfo(q.dtype).min), -1
    ) @ v,
}  # fmt: skip


def exact(model, sample):
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2, engine="resident")
    assert_exact(meta, classification_tasks(sample, t=3, s=4))


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_attention(name):
    model = Attends(CAUSAL[name]).double()
    assert isinstance(written_of(model, (L, C)), Written)
    exact(model, (L, C))


@pytest.mark.parametrize("masked", ["truths", "numbers", "causal"])
def test_encoders_of_pytorch_with_masks(masked):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(C, HEADS, 6, 0.0, batch_first=True)
            self.head = nn.Linear(C, 3)

        def forward(self, x):
            mask = nn.Transformer.generate_square_subsequent_mask(x.size(1), dtype=x.dtype)
            mask = mask.isinf() if masked == "truths" else mask
            return self.head(self.layer(x, src_mask=mask, is_causal=masked == "causal").mean(1))

    exact(Encoder().double(), (L, C))


class Told(nn.Module):
    def __init__(self, told):
        super().__init__()
        self.layer, self.head, self.told = nn.Linear(4, 6), nn.Linear(6, 3), told
        self.register_buffer("places", torch.tensor([[3, 1, 0], [4, 0, 5]]))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.bias = nn.Parameter(torch.randn(6))

    def forward(self, x):
        return self.head(self.told(self, torch.tanh(self.layer(x))))


def frequencies(module, h):
    parts = [torch.sin(f * h) for f in 2.0 ** torch.linspace(0, 2, 3)]
    return torch.stack(parts).sum(0)


def positions(module, h):
    at = torch.arange(6)[:, None] / 10000 ** (torch.arange(0, 2) / 2)
    return h + torch.cat([at.sin(), at.cos()], 1).sum(1).to(h.dtype)


READ = {
    "frequencies": frequencies,
    "positions": positions,
    "by a table of places": lambda m, h: m.bias[m.places].reshape(6) * h,
    "by negative places": lambda m, h: h[:, m.places[0] - 6].repeat(1, 2),
    "by truths": lambda m, h: h[:, torch.arange(6) % 2 == 0].repeat(1, 2),
    "identity": lambda m, h: h @ torch.eye(6, dtype=h.dtype).roll(1, 0),
    "a list": lambda m, h: h * torch.tensor([1.0, -2.0, 0.5, 3.0, -0.0, 1.0], dtype=h.dtype),
    "zeros of a shape": lambda m, h: torch.cat([h[:, :3], h.new_zeros(len(h), 3)], 1),
}


@pytest.mark.parametrize("name", READ)
def test_tables_are_read(name):
    model = Told(READ[name]).double()
    assert isinstance(written_of(model, (4,)), Written)
    exact(model, (4,))


def written_over(module, h):
    table = torch.zeros(6, dtype=h.dtype)
    wide = table.expand(len(h), 6)
    table += 1
    return h * wide


def shared_over(module, h):
    table = torch.zeros(6, dtype=h.dtype)
    part = table[:3]
    table += module.bias
    return h * part.repeat(2)


def filled_with_parameters(module, h):
    table = torch.zeros(6, dtype=h.dtype)
    table += module.bias
    return h * table


def counting(module, h):
    module.calls += 1
    return h


NOT_READ = {
    "rows written over": written_over,
    "a table with a parameter in it": filled_with_parameters,
    "parts written over": shared_over,
    "the number of samples": lambda m, h: h * torch.full((6,), float(len(h)), dtype=h.dtype),
    "places of samples": lambda m, h: h + torch.arange(len(h))[:, None].to(h.dtype),
    "random numbers": lambda m, h: h * torch.rand_like(torch.ones(6, dtype=h.dtype)),
    "its buffers": counting,
}


@pytest.mark.parametrize("name", NOT_READ)
def test_what_is_no_table(name):
    assert isinstance(written_of(Told(NOT_READ[name]).double(), (4,)), str)


def in_data(tensor):
    tensor.data[0] = 5 - tensor.data[0]


def new_buffer(model):
    model.places = 5 - model.places


CHANGES = {
    "in place": lambda model: model.places.add_(1).remainder_(6),
    "in its data": lambda model: in_data(model.places),
    "anew": new_buffer,
    "loaded": lambda model: model.load_state_dict(
        {**model.state_dict(), "places": 5 - model.places}
    ),
}


@pytest.mark.parametrize("how", CHANGES)
def test_buffers_of_places_may_change(how):
    model = Told(lambda m, h: m.bias[m.places].reshape(6) * h).double()
    meta, tasks = fm.MAML(model, inner_lr=0.1, engine="resident"), classification_tasks((4,))
    assert_exact(meta, tasks)
    before = meta(tasks).loss
    CHANGES[how](model)
    assert not torch.allclose(meta(tasks).loss, before)
    assert_exact(meta, tasks)


def test_attributes_of_truths_may_change():
    model = Attends(CAUSAL["an attribute"]).double()
    meta, tasks = fm.MAML(model, inner_lr=0.1, engine="resident"), classification_tasks((L, C))
    before = meta(tasks).loss
    model.kept.fill_(1)
    assert not torch.allclose(meta(tasks).loss, before)
    assert_exact(meta, tasks)
