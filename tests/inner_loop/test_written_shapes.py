"""Forwards that turn, part, repeat, sum and multiply the numbers of each sample as arrays."""

import random

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_exact
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.functional.row_programs import Unreadable
from fastmeta.inner_loop.arithmetic.forward_rows import MOST_NUMBERS, ForwardRows, most_numbers
from fastmeta.inner_loop.arithmetic.written import Written, written_of

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")

L, C, D, OUTPUTS = 4, 3, 6, 2  # places, channels, width


def module(forward, **parts):
    made = type(forward.__name__, (nn.Module,), {"forward": forward})()
    for name, part in parts.items():
        setattr(made, name, part)
    return made.double()


def row(*shape):
    return nn.Parameter(torch.randn(*shape) / 2)


def linear(inputs, outputs, bias=True):
    return nn.Linear(inputs, outputs, bias)


def head(width=D):
    return linear(width, OUTPUTS)


def tasks_of(t, *shape):
    def samples(n, *shape):
        return torch.randn(t, n, *shape, dtype=torch.float64)

    return fm.TaskBatch(samples(7, *shape), samples(7, OUTPUTS), samples(5, *shape),
                        samples(5, OUTPUTS))  # fmt: skip


# ---- forwards ------------------------------------------------------------------------------------


def attention(self, x):  # as in timm
    x = self.a(x)
    S, L, D = x.shape
    q, k, v = self.qkv(self.norm(x)).reshape(S, L, 3, 2, D // 2).permute(2, 0, 3, 1, 4).unbind(0)
    weights = ((q * (D // 2) ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
    x = x + self.out((weights @ v).transpose(1, 2).reshape(S, L, D))
    return self.head(x.mean(1))


def attention_by_chunks(self, x):  # as in nanoGPT
    S, L = x.shape[0], x.shape[1]
    q, k, v = self.qkv(self.a(x)).split(D, dim=2)
    q, k, v = (y.view(S, L, 2, D // 2).transpose(1, 2) for y in (q, k, v))
    weights = F.softmax(q @ k.transpose(-2, -1) / 3, dim=-1)
    y = (weights @ v).transpose(1, 2).contiguous().view(S, L, D)
    return self.head(self.out(y)[:, -1, :])


def with_a_token(self, x):
    x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.a(x)], dim=1) + self.places
    weights = torch.einsum("sic,sjc->sij", x, torch.tanh(x)).softmax(-1)
    return self.head(self.norm((weights @ x)[:, 0]))


def fused_attention(self, x):
    q, k, v = self.qkv(self.a(x)).chunk(3, dim=-1)
    y = F.scaled_dot_product_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1))
    return self.head(y.squeeze(1).mean(dim=1))


def mixer(self, x):  # Tolstikhin et al. 2021
    x = self.a(x)
    x = x + self.places(F.gelu(self.norm(x).transpose(1, 2))).transpose(1, 2)
    return self.head((x + self.channels(torch.tanh(x))).mean(dim=(1,)))


def bilinear(self, x):
    x = x.flatten(1)
    return self.head(torch.tanh(self.pairs(torch.tanh(self.a(x)), torch.sin(self.b(x)))))


def generated(self, x):  # weights that a context makes
    weight = self.of_context(self.context).view(D, C)
    return self.head(torch.relu(x @ weight.t()).sum(1))


def outer(self, x):
    a, b = self.a(x[:, 0]), self.b(x[:, 1])
    return self.head((a.unsqueeze(2) * b.unsqueeze(1)).flatten(1).tanh())


def pairs(self, x):
    apart = (x[:, :, None] - x[:, None]).pow(2).sum(-1)
    near = torch.exp(-apart * self.scale.exp())
    return self.head((near / near.sum(2, keepdim=True)) @ torch.tanh(self.a(x))).mean(1)


def pooled(self, x):
    x = self.a(x)
    y = torch.cat([x.mean(1), x.logsumexp(dim=1), (x * x.softmax(dim=1)).sum(1)], dim=1)
    return self.head(y * x.sum(dim=(1, 2)).unsqueeze(1)) + x.mean((1, 2), keepdim=True)[:, 0]


def moved(self, x):
    x = self.a(x)
    left, right = x[:, 1:3], x[..., 2:5]
    both = torch.stack([left, left * 2], dim=2).flatten(2).transpose(1, 2)
    y = torch.cat([both.reshape(x.shape[0], 6, 4), right.permute(0, 2, 1).repeat(1, 2, 1)], -1)
    return self.head(F.glu(y, dim=1).permute(2, 0, 1)[3] @ self.w)


def added(self, x):
    y = torch.baddbmm(self.w, x.transpose(1, 2), self.a(x))
    return self.head(F.layer_norm(y, (C, D)).sum(1))


def broadcast(self, x):
    x = self.a(x) * self.over_places + self.over_channels
    x = torch.where(x > self.w[:, :1], x, self.w * x)
    return self.head(torch.maximum(x, self.w).mean(1))


def by_pairs(self, x):
    pairs = torch.softmax(self.a(x).view(-1, 2), dim=-1).view(x.shape[0], -1)
    return self.head(self.a(x).flatten(1) + self.gate * pairs)


def normed_by_pairs(self, x):
    pairs = F.layer_norm(self.a(x).reshape(-1, 2), (2,)).reshape(x.shape[0], -1)
    return self.head(self.a(x).flatten(1) + self.gate * pairs)


def less_their_mean(self, x):
    pairs = self.a(x).view(-1, 2)
    less = (pairs - pairs.mean(1, keepdim=True)).view(x.shape[0], -1)
    return self.head(self.a(x).flatten(1) + self.gate * less)


def biased_by_numbers(self, x):
    each = F.linear(torch.tanh(self.a(x)).unsqueeze(-1), self.w, self.v.exp())
    return self.head(each.flatten(1) * 0.3)


def of_pytorch(self, x):  # nn.MultiheadAttention, which wants places first or samples
    x = self.a(x) if self.heads.batch_first else self.a(x).transpose(0, 1)
    y, weights = self.heads(x, x, x)
    y = y if self.heads.batch_first else y.transpose(0, 1)
    return self.head(y[:, 0] + weights.mean(1)[:, :1])


def of_layers(self, x):
    return self.head(self.layers(self.a(x)).mean(1))


def layers(**options):
    return nn.TransformerEncoderLayer(D, 2, 5, dropout=0.0, batch_first=True, **options)


def blocks():
    return {"a": linear(C, D), "qkv": linear(D, 3 * D), "out": linear(D, D), "head": head()}


FORWARDS = {
    "attention": lambda: module(attention, norm=nn.LayerNorm(D), **blocks()),
    "chunks": lambda: module(attention_by_chunks, **blocks()),
    "token": lambda: module(
        with_a_token, token=row(1, 1, D), places=row(1, L + 1, D), norm=nn.LayerNorm(D),
        a=linear(C, D), head=head(),
    ),
    "samples first": lambda: module(
        of_pytorch, a=linear(C, D), heads=nn.MultiheadAttention(D, 2, batch_first=True), head=head()
    ),
    "places first": lambda: module(
        of_pytorch, a=linear(C, D), heads=nn.MultiheadAttention(D, 3, bias=False), head=head()
    ),
    "encoder": lambda: module(of_layers, a=linear(C, D), layers=layers(), head=head()),
    "gelu encoder": lambda: module(
        of_layers, a=linear(C, D), layers=layers(norm_first=True, activation="gelu"), head=head()
    ),
    "mixer": lambda: module(
        mixer, a=linear(C, D), norm=nn.LayerNorm(D), places=linear(L, L), channels=linear(D, D),
        head=head(),
    ),
    "bilinear": lambda: module(
        bilinear, a=linear(L * C, 4), b=linear(L * C, 5), pairs=nn.Bilinear(4, 5, D), head=head()
    ),
    "generated": lambda: module(
        generated, of_context=linear(2, D * C), context=row(2), head=head()
    ),
    "outer": lambda: module(outer, a=linear(C, 2), b=linear(C, 3), head=head()),
    "pairs": lambda: module(pairs, a=linear(C, D), scale=row(1), head=head()),
    "pooled": lambda: module(pooled, a=linear(C, D), head=linear(3 * D, OUTPUTS)),
    "moved": lambda: module(moved, a=linear(C, D), w=row(3, D), head=head()),
    "added": lambda: module(added, a=linear(C, D), w=row(C, D), head=head()),
    "broadcast": lambda: module(
        broadcast, a=linear(C, D), over_places=row(L, 1), over_channels=row(D), w=row(L, D),
        head=head(),
    ),
    "softmax of pairs": lambda: module(by_pairs, a=linear(C, D), gate=row(1), head=head(L * D)),
    "norms of pairs": lambda: module(
        normed_by_pairs, a=linear(C, D), gate=row(1), head=head(L * D)
    ),
    "means of pairs": lambda: module(
        less_their_mean, a=linear(C, D), gate=row(1), head=head(L * D)
    ),
    "a row for each number": lambda: module(
        biased_by_numbers, a=linear(C, D), w=row(2, 1), v=row(2), head=head(2 * L * D)
    ),
}  # fmt: skip


@pytest.mark.parametrize("t", [2, 33])  # lanes that are samples, and tasks
@pytest.mark.parametrize("name", FORWARDS)
def test_forwards(name, t):
    model = FORWARDS[name]()
    found = written_of(model, [L, C])
    assert isinstance(found, Written), found
    if name != "a row for each number":  # without a batch its shape of samples is not guessed
        assert fm.explain(fm.MAML(model, loss="mse")).name == "resident"
    meta = fm.MAML(model, loss="mse", inner_steps=2, inner_lr=0.05, engine="resident")
    assert_exact(meta, tasks_of(t, L, C), [*model.parameters()])


def patched(self, x):  # a vision transformer's beginning
    h = self.patches(x).flatten(2).transpose(1, 2)
    return self.head(torch.tanh(self.pixels(h.mT).sigmoid().flatten(1)) * 2.0)


@pytest.mark.parametrize("bias", [False, True])
def test_patches_side_by_side(bias):
    model = module(
        patched, patches=nn.Conv2d(2, 3, (2, 3), (2, 3), bias=bias),
        pixels=nn.Conv1d(3, 2, 1, bias=bias), head=nn.Linear(8, OUTPUTS),
    ).double()  # fmt: skip
    tasks = tasks_of(3, 2, 4, 6)
    assert isinstance(written_of(model, (2, 4, 6)), Written)
    assert_exact(fm.MAML(model, loss="mse", inner_lr=0.05), tasks)
    for other in (nn.Conv2d(2, 3, 2), nn.Conv2d(2, 3, 2, 2, padding=2), nn.Conv2d(2, 3, 3, 3)):
        model.patches = other.double()
        assert "convolves" in str(written_of(model, (2, 4, 6)))


def test_gradients_of_inputs_and_rates():
    model = FORWARDS["attention"]()
    tasks = tasks_of(3, L, C)
    tasks.support_x.requires_grad_(), tasks.query_x.requires_grad_()
    meta = fm.MAML(
        model, loss="mse", inner_steps=2, inner_lr=0.05, learn_inner_lr="element", engine="resident"
    )
    assert_exact(meta, tasks, [*meta.parameters(), tasks.support_x, tasks.query_x])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_attention_of_pytorch(dtype):
    model = module(fused_attention, a=linear(C, D), qkv=linear(D, 3 * D), head=head()).to(dtype)
    assert isinstance(written_of(model, [L, C]), Written)
    model = model.double()
    meta = fm.MAML(model, loss="mse", inner_steps=2, inner_lr=0.05)
    tasks = tasks_of(3, L, C)
    with fm.use_backend("reference"), torch.nn.attention.sdpa_kernel(
        torch.nn.attention.SDPBackend.MATH
    ):
        meta(tasks).loss.mean().backward()
    right = [p.grad.clone() for p in model.parameters()]
    meta.zero_grad()
    meta(tasks).loss.mean().backward()
    for p, exact in zip(model.parameters(), right, strict=True):
        torch.testing.assert_close(p.grad, exact, rtol=1e-9, atol=1e-12)


def over_samples(self, x):
    return self.head(self.a(x).transpose(0, 1).softmax(1).transpose(0, 1).mean(1))


def between_samples(self, x):
    x = self.a(x).mean(1)
    return self.head(torch.softmax(x @ x.t(), 1) @ x)


def samples_as_places(self, x):  # batch_first forgotten
    return self.head(self.heads(*[self.a(x)] * 3)[0].mean(1))


def interleaved(self, x):
    return self.head(self.a(x).transpose(0, 1).reshape(x.shape[0], L, D).mean(1))


def outer_of_samples(self, x):
    x = self.a(x).mean(1)
    return self.head(torch.einsum("si,sj,tj->ti", x, x, x))


def by_count(self, x):
    return self.head(self.a(x)[:, : x.shape[0]].sum(1))


def by_size_of_parts(self, x):
    return self.head(self.a(x).split(x.size(0), dim=1)[0].sum(1))


def by_number_of_parts(self, x):
    return self.head(self.a(x).chunk(x.shape[0], dim=1)[0].sum(1))


def row_by_count(self, x):
    return self.head(self.a(x).mean(1) * self.a.bias[: x.shape[0]].sum())


def squeezed_in_place(self, x):
    y = self.a(x).sum(1).unsqueeze(1) * 2
    y.squeeze_((-3, 1))
    return self.head(y)


MIXED = [
    by_count, by_size_of_parts, by_number_of_parts, row_by_count, squeezed_in_place, over_samples,
    between_samples, samples_as_places, interleaved, outer_of_samples,
]  # fmt: skip


@pytest.mark.parametrize("forward", MIXED)
def test_what_is_not_of_each_sample(forward):
    more = {"heads": nn.MultiheadAttention(D, 2)} if forward is samples_as_places else {}
    model = module(forward, a=linear(C, D), head=head(), **more)
    assert isinstance(written_of(model, [L, C]), str)
    if forward is squeezed_in_place:
        return  # of a lone sample PyTorch itself makes something else
    meta = fm.MAML(model, loss="mse", inner_steps=1, inner_lr=0.05)
    assert fm.explain(meta).name != "resident"
    assert_exact(meta, tasks_of(2, L, C), [*model.parameters()], 1e-10)


PLACES = [  # ways through [L S, C] and the like, an examiner's
    lambda x: x.transpose(0, 1).reshape(-1, C).sum(1).view(x.shape[0], L),
    lambda x: x.transpose(0, 1).reshape(-1, C).unsqueeze(0).view(1, x.shape[0], L, C)[0],
    lambda x: x.transpose(0, 1).reshape(1, x.shape[0], -1, C).sum(0),
    lambda x: x.transpose(0, 1).reshape(2, 2 * x.shape[0], C)[0],
    lambda x: x.transpose(0, 1).repeat(1, 2, 1)[0],
    lambda x: torch.stack([x.transpose(0, 1)] * 3).reshape(1, x.shape[0], -1, C)[0],
]


@pytest.mark.parametrize("way", range(len(PLACES)))
def test_samples_that_lie_between_their_numbers(way):
    function = PLACES[way]

    def forward(self, x):
        y = function(x).reshape(x.shape[0], -1)
        return self.head(x.flatten(1)) + torch.relu(y - 3.5) @ self.w

    width = function(torch.zeros(5, L, C)).reshape(5, -1).shape[1]
    model = module(forward, head=head(L * C), w=row(width, OUTPUTS))
    tasks = tasks_of(2, L, C)
    tasks.support_x.mul_(6), tasks.query_x.mul_(6)
    meta = fm.MAML(model, loss="mse", inner_steps=1, inner_lr=0.001)
    assert_exact(meta, tasks, [*model.parameters()], 1e-10)


def test_reading_ends_where_a_sample_makes_too_many_numbers():
    rows = ForwardRows(torch.zeros(7, 4), {}, {})  # what it reads is kept, of hundreds of samples
    with pytest.raises(Unreadable, match=f"more than {MOST_NUMBERS} numbers"):
        while len(rows.steps) <= 2 * MOST_NUMBERS // 2048:
            rows.put("tanh", width=2048)


@pytest.mark.parametrize("operations, most", [
    (1, 1 << 17), (128, 1 << 17), (200, 204_800), (512, 1 << 19), (4096, 1 << 19)
])  # fmt: skip
def test_many_small_operations_may_make_more(operations, most):
    assert most_numbers(operations) == most


# ---- any sequence of them ------------------------------------------------------------------------


def drawn(seed):
    """A forward on [S, 2, 3, 2] of some operations, and what it reads."""
    draw, shape, rows, lines = random.Random(seed), [2, 3, 2], [], []
    while len(lines) < 6:
        line, row = _line(draw, shape, len(rows))
        like = torch.zeros(3, *shape, dtype=torch.float64)
        names = {"x": like, "torch": torch, "F": F, f"w{len(rows)}": row}
        after = [*eval(line.replace("self.", ""), names).shape[1:]]
        if torch.Size(after).numel() > 80:
            continue
        shape = after
        lines.append(line)
        rows += [] if row is None else [row]
    parts = {f"w{i}": row for i, row in enumerate(rows)}
    numel = torch.Size(shape).numel()
    text = "\n    x = ".join(["def forward(self, x):", *lines, "self.head(x.flatten(1))"])
    scope = {"torch": torch, "F": F}
    exec(text + "\n    return x", scope)
    return module(scope["forward"], **parts, head=linear(numel, OUTPUTS)), text


def _line(draw, shape, index):
    n, numel = len(shape), torch.Size(shape).numel()
    dim = draw.randrange(n)
    count = draw.randint(1, shape[dim])
    begin = draw.randint(0, shape[dim] - count)
    doubled = ", ".join(map(str, [*shape[:dim], 2, *shape[dim:]]))
    first = draw.choice([k for k in range(1, numel + 1) if numel % k == 0])
    lines = [
        f"x.permute(0, {', '.join(str(d + 1) for d in draw.sample(range(n), n))})",
        f"x.reshape(x.shape[0], {first}, {numel // first})",
        f"x.narrow({dim + 1}, {begin}, {count})",
        f"torch.cat([x, x.sin()], {dim + 1})",
        f"torch.stack([x, x.cos()], {dim + 1})",
        f"x.softmax({dim + 1}) + 0.1 * x",
        f"x.unsqueeze({dim + 1}).expand(-1, {doubled})",
        "F.layer_norm(x, x.shape[-1:], eps=0.3)",
        "x.transpose(0, 1).tanh().transpose(0, 1)",
        "x.tanh()",
    ]
    if n > 1:
        lines += [
            "torch.tanh(x) @ x.transpose(-1, -2) / 4", f"x.mean({dim + 1})",
            f"x.select({dim + 1}, -1) * 2", f"x * x.sum({dim + 1}, keepdim=True).tanh()",
        ]  # fmt: skip
    to, other = draw.randint(1, n), draw.randrange(n)
    other += other >= to
    lines += [  # with the samples elsewhere
        f"(x.movedim(0, {to}) * 2).softmax({other}).movedim({to}, 0)",
        f"torch.stack([x.movedim(0, {to})] * 2, {other}).sin().mean({other}).movedim({to}, 0)",
        f"torch.cat([x, x.cos()], {dim + 1}).movedim(0, {to}).narrow({other}, 0, 1).tanh()"
        f".expand({', '.join('2' if d == other else '-1' for d in range(n + 1))})"
        f".movedim({to}, 0)",
    ]
    line, row = draw.choice([*lines, "w", "w"]), None
    if line == "w":
        sides = [k if draw.random() < 0.6 else 1 for k in shape][draw.randrange(n) :]
        row = nn.Parameter(torch.randn(*sides, dtype=torch.float64) / 2)
        line = f"x * self.w{index} + self.w{index}"
    return line, row


@pytest.mark.parametrize("seeds", [range(n, n + 20) for n in range(0, 100, 20)], ids=str)
def test_sequences_drawn_at_random(seeds):
    for seed in seeds:
        torch.manual_seed(seed)
        model, text = drawn(seed)
        found = written_of(model, [2, 3, 2])
        assert isinstance(found, Written), f"{found}\n{text}"
        meta = fm.MAML(model, loss="mse", inner_steps=1, inner_lr=0.05, engine="resident")
        assert_exact(meta, tasks_of(2, 2, 3, 2), [*model.parameters()], 1e-10)
