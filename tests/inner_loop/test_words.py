"""Models of words: nn.Embedding, which looks them up, below recurrent layers and others."""

import pytest
import torch
from oracle import assert_exact
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop import prefix
from fastmeta.inner_loop.reading.words import OneHot, of_one_hot

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")

VOCABULARY, LENGTH = 7, 5


class Reader(nn.Module):
    def __init__(self, kind=nn.GRU, **options):
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 4, **options)
        self.layer, self.head = kind(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.layer(self.table(x))[0].mean(1))


class Twice(Reader):
    def forward(self, x):
        return self.head(self.layer(self.table(x) + self.table(x.flip(1)))[0][:, -1])


class Measured(Reader):
    def forward(self, x):
        return super().forward(x) * (x > 0).sum(1, keepdim=True)


def tasks_of(t=3, s=4, q=5, dtype=torch.int64):
    def draw(n):
        x = torch.randint(VOCABULARY, (t, n, LENGTH), dtype=dtype)
        return x, torch.randint(3, (t, n))

    return fm.TaskBatch(*draw(s), *draw(q))


def meta_of(model, **options):
    return fm.MAML(model.double(), **{"inner_lr": 0.5, "inner_steps": 2, **options})


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
@pytest.mark.parametrize("padding", [None, 0, -1])
def test_words_are_exact(kind, padding):
    torch.manual_seed(0)
    model = Reader(kind, padding_idx=padding)
    nn.init.normal_(model.table.weight)  # that of the padding too, which learns nothing
    meta = meta_of(model)
    assert fm.explain(meta, tasks_of()).name == "resident"
    assert_exact(meta, tasks_of())
    assert_exact(meta, tasks_of(t=1, s=2, q=3))


@pytest.mark.parametrize("options", [
    {"order": 1}, {"learn_inner_lr": "element", "per_step_lr": True}, {"inner_steps": 0},
    {"adapt_parameters": ["head.weight", "head.bias"]}, {"adapt_parameters": ["table.weight"]},
], ids=str)  # fmt: skip
def test_options(options):
    torch.manual_seed(0)
    assert_exact(meta_of(Reader(), **options), tasks_of())


def test_short_whole_numbers_and_fast_weights():
    torch.manual_seed(0)
    meta, tasks = meta_of(Reader()), tasks_of(dtype=torch.int32)
    assert_exact(meta, tasks)
    fast = meta.adapt(tasks.support_x, tasks.support_y)
    torch.testing.assert_close(fast(tasks.query_x), meta(tasks).predictions)


def test_words_that_are_not_there():
    meta, tasks = meta_of(Reader()), tasks_of()
    meta(tasks)
    tasks.query_x[2, 1, 0] = VOCABULARY
    with pytest.raises(IndexError, match=r"in \[0, 7\), the rows of the model's nn.Embedding, and"):
        meta(tasks)


class Convolved(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.conv = nn.Embedding(VOCABULARY, 4), nn.Conv1d(4, 3, 2)

    def forward(self, x):
        return self.conv(self.table(x).transpose(1, 2)).mean(-1)


@pytest.mark.parametrize("word", [-1, VOCABULARY])
def test_no_word_is_looked_up_among_those_of_another_task(word):
    meta, tasks = meta_of(Convolved()), tasks_of()
    assert meta(tasks).loss.isfinite().all() and fm.explain(meta, tasks).name == "vmap"
    fast = meta.adapt(tasks.support_x, tasks.support_y)
    tasks.query_x[1, 0, 0] = word
    for call in (lambda: meta(tasks), lambda: fast(tasks.query_x)):
        with pytest.raises(IndexError, match="words must be in|out of range"):
            call()


@pytest.mark.parametrize("model", [
    Twice, Measured, lambda: Reader(max_norm=1.0), lambda: Reader(scale_grad_by_freq=True),
], ids=["twice", "measured", "renormed", "counted"])  # fmt: skip
def test_what_is_looked_up_as_it_is(model):
    assert of_one_hot(model()) is None


def test_other_models_stay_exact():
    torch.manual_seed(0)
    for model in (Twice(), Measured()):
        assert_exact(meta_of(model), tasks_of())


class Attending(nn.Module):
    """One head over words and their places."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 4, padding_idx=0)
        self.places = nn.Parameter(torch.randn(LENGTH, 4))
        self.qkv, self.norm, self.head = nn.Linear(4, 12), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.table(x) + self.places
        q, k, v = self.qkv(self.norm(h)).chunk(3, -1)
        return self.head((h + (q @ k.transpose(1, 2)).softmax(-1) @ v).mean(1))


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(VOCABULARY, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.table(x).mean(1).tanh())


def flat():
    return nn.Sequential(nn.Embedding(VOCABULARY, 2), nn.Flatten(), nn.Linear(10, 3))


@pytest.mark.parametrize("model", [Attending, Bag, flat])
def test_without_recurrent_layers(model, monkeypatch):
    torch.manual_seed(0)
    meta, tasks = meta_of(model()), tasks_of()
    assert fm.explain(meta, tasks).name == "resident"
    assert_exact(meta, tasks)
    monkeypatch.setattr(prefix, "_FEW_PLACES", VOCABULARY * LENGTH - 1)
    meta = meta_of(model())
    assert fm.explain(meta, tasks).name != "resident"
    assert_exact(meta, tasks)


def test_many_words_are_looked_up(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(prefix, "_MOST_NUMBERS", 3 * 9 * LENGTH * VOCABULARY - 1)
    meta = meta_of(Reader())
    assert fm.explain(meta, tasks_of()).name == "vmap"
    assert_exact(meta, tasks_of())


def test_later_tasks_with_more_words(monkeypatch):
    torch.manual_seed(0)
    meta = meta_of(Reader())
    assert_exact(meta, tasks_of())
    monkeypatch.setattr(prefix, "_MOST_NUMBERS", 3 * 9 * LENGTH * VOCABULARY)
    assert_exact(meta, tasks_of(t=4))
    assert meta.choice().name == "vmap"


def test_one_word():
    one = OneHot(3, torch.float32)(torch.tensor([[2, 0]]))
    assert one.tolist() == [[[0, 0, 1], [1, 0, 0]]]


def test_mostly_words_are_looked_up_and_few_are_not():
    class Mean(nn.Module):
        def __init__(self, vocabulary):
            super().__init__()
            self.table, self.head = nn.Embedding(vocabulary, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.table(x).mean(1))

    for vocabulary, name in ((8, "resident"), (400, "vmap")):  # of 5 words, 20 numbers and more
        meta = meta_of(Mean(vocabulary))
        assert fm.explain(meta, tasks_of()).name == name
        assert_exact(meta, tasks_of())
