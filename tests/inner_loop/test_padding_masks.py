"""Attention that leaves out places of a sample that its own numbers tell to be padding."""

import math

import pytest
import torch
import torch.nn.functional as F
from native_losses import assert_native
from oracle import DOUBLE
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")
WIDTH, HEADS = 8, 2


def padding(x):
    return x[..., 0] > 0.5


def numbers(mask, fill):
    return torch.zeros(mask.shape, dtype=DOUBLE).masked_fill(mask, fill)


def in_heads(x):
    return x.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2)


def attended(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def of_heads(q, k, v, pad):
    made = attended(*map(in_heads, (q, k, v)), ~pad[:, None, None, :])
    return made.transpose(1, 2).flatten(2)


def by_hand(q, k, v, pad):
    scores = q @ k.transpose(1, 2) / math.sqrt(WIDTH)
    return scores.masked_fill(pad[:, None, :], -1e9).softmax(-1) @ v


ATTENTION = {
    "truths": lambda q, k, v, pad: attended(q, k, v, ~pad[:, None, :]),
    "minus infinity": lambda q, k, v, pad: attended(q, k, v, numbers(pad, -math.inf)[:, None, :]),
    "large numbers": lambda q, k, v, pad: attended(q, k, v, numbers(pad, -1e9)[:, None, :]),
    "heads": of_heads,
    "by hand": by_hand,
}


class Attention(nn.Module):
    def __init__(self, attend):
        super().__init__()
        self.inputs, self.head = nn.Linear(3, 3 * WIDTH), nn.Linear(WIDTH, 2)
        self.attend = attend

    def forward(self, x):
        return self.head(self.attend(*self.inputs(x).chunk(3, -1), padding(x)).mean(1))


class Encoder(nn.Module):
    """The mean of what is no padding."""

    def __init__(self, layer):
        super().__init__()
        self.inputs, self.layer, self.head = nn.Linear(3, WIDTH), layer, nn.Linear(WIDTH, 2)

    def forward(self, x):
        pad, h = padding(x), self.inputs(x)
        if isinstance(self.layer, nn.MultiheadAttention):
            h = self.layer(h, h, h, key_padding_mask=pad, need_weights=False)[0]
        else:
            h = self.layer(h, src_key_padding_mask=pad)
        kept = (~pad)[..., None].to(h.dtype)
        return self.head((h * kept).sum(1) / kept.sum(1).clamp(min=1))


def padded_tasks(t=3, s=5, q=4, places=6):
    def x(n):
        x = torch.randn(t, n, places, 3, dtype=DOUBLE)
        lengths = torch.randint(1, places + 1, (t, n, 1))
        x[..., 0] = torch.where(torch.arange(places) < lengths, 0.0, 1.0)
        return x

    return fm.TaskBatch(x(s), torch.randint(2, (t, s)), x(q), torch.randint(2, (t, q)))


def maml(model):
    return fm.MAML(model.double(), loss="cross_entropy", inner_lr=0.1, inner_steps=2)


@pytest.mark.parametrize("attend", ATTENTION.values(), ids=ATTENTION)
def test_attention(attend):
    assert_native(maml(Attention(attend)), padded_tasks())


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
        lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, 16, dropout=0.0, batch_first=True),
        lambda: nn.TransformerEncoderLayer(
            WIDTH, HEADS, 16, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
        ),
    ],
)
def test_layers_of_pytorch(layer):
    assert_native(maml(Encoder(layer())), padded_tasks())


@pytest.mark.parametrize("attend", ["truths", "minus infinity", "heads"])
def test_nothing_but_padding_is_attended_to_as_nothing(attend):
    tasks = padded_tasks()
    tasks.support_x[0, 0, :, 0] = 1.0
    tasks.query_x[1, :2, :, 0] = 1.0
    meta = maml(Attention(ATTENTION[attend]))
    assert_native(meta, tasks)
    assert meta(tasks).loss.isfinite().all()


def test_what_is_made_and_changed_in_place_is_not_what_it_was_made_after():
    class Changing(Attention):
        def forward(self, x):
            zeros = torch.zeros_like(x)
            ones = torch.ones_like(zeros)
            zeros.masked_fill_(x > 0, 2.0).add_(ones)
            return super().forward(x * zeros + ones)

    assert_native(maml(Changing(by_hand)), padded_tasks())
