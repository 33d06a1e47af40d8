"""Samples that are mostly zeros, words of a vocabulary: rows of a matrix that are looked up."""

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_exact
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")

VOCABULARY, LENGTH, WIDTH = 160, 3, 9
# (tasks, support, query): lanes are tasks, samples of one task, or some of both.
SIZES = [(1, 4, 3), (1, 40, 1), (2, 5, 9), (4, 20, 20), (9, 1, 6), (17, 6, 5), (33, 21, 30)]


class Words(nn.Module):
    def __init__(self, tied=False, bias=True, twice=False):
        super().__init__()
        self.table = nn.Parameter(torch.randn(VOCABULARY, WIDTH))
        self.shift = nn.Parameter(torch.randn(WIDTH)) if bias else None
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 4)
        self.tied, self.twice = tied, twice

    def forward(self, x):
        h = x @ self.table
        if self.shift is not None:
            h = h + self.shift
        if self.twice:
            h = h * (x @ self.table).tanh()
        h = torch.softmax(h @ h.mT, -1) @ torch.tanh(self.mix(h))
        if self.tied:
            return h.mean(1) @ self.table.T
        return self.head(h.mean(1))


def words(*sizes, fewest=0):
    places = torch.randint(VOCABULARY, (*sizes, LENGTH))
    x = F.one_hot(places, VOCABULARY).double()
    x[..., :fewest, :] = 0  # places without a word
    return x


def tasks_of(t, s, q, outputs=4, fewest=0):
    def draw(n):
        return words(t, n, fewest=fewest), torch.randint(outputs, (t, n))

    return fm.TaskBatch(*draw(s), *draw(q))


def assert_resident(model, tasks, **options):
    options = {"inner_lr": 0.3, "inner_steps": 2, **options}
    meta = fm.MAML(model.double(), engine="resident", **options)
    assert_exact(meta, tasks, tolerance=1e-10)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("order", [1, 2])
def test_words_are_exact_in_every_layout(variant, sizes, order):
    assert_resident(Words(), tasks_of(*sizes), order=order)


@pytest.mark.parametrize("sizes", SIZES[::2], ids=str)
@pytest.mark.parametrize("rates", ["tensor", "element"])
def test_with_learned_rates(sizes, rates):
    options = dict(learn_inner_lr=rates, per_step_lr=rates == "tensor")
    assert_resident(Words(bias=False), tasks_of(*sizes), **options)


@pytest.mark.parametrize("tied, twice", [(True, False), (False, True), (True, True)])
def test_a_table_that_is_read_more_than_once(tied, twice):
    for sizes in SIZES[1::2]:
        model = Words(tied, twice=twice)
        tasks = tasks_of(*sizes, outputs=VOCABULARY if model.tied else 4)
        assert_resident(model, tasks)


def test_places_without_a_word_and_a_table_that_stays():
    assert_resident(Words(), tasks_of(4, 3, 3, fewest=1))
    assert_resident(Words(), tasks_of(1, 3, 3, fewest=LENGTH))
    model = Words()
    model.table.requires_grad_(False)
    assert_resident(model, tasks_of(4, 3, 3))
    assert_resident(Words(), tasks_of(4, 3, 3), adapt_parameters=["head.weight", "head.bias"])


def test_numbers_of_any_kind_and_dense_ones():
    tasks = tasks_of(5, 4, 4)
    tasks.support_x.mul_(torch.randn_like(tasks.support_x))
    assert_resident(Words(), tasks)
    tasks.query_x.normal_()  # the support alone is looked up
    assert_resident(Words(), tasks)


@pytest.mark.parametrize("t", [1, 3, 17])
def test_one_word_of_more_samples_than_a_product_has_terms(t):
    tasks = tasks_of(t, 80, 70)
    tasks.support_x[:] = tasks.support_x[:1, :1].clone()
    tasks.query_x[:] = tasks.support_x[:1, :1].clone()
    assert_resident(Words(), tasks)


@pytest.mark.parametrize("t", [1, 3, 17])
def test_bags_of_more_words_than_a_product_has_terms(t):
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Parameter(torch.randn(1200, 5)), nn.Linear(5, 4)

        def forward(self, x):
            return self.head(torch.tanh(x @ self.table))

    x = torch.randn(t, 4, 1200, dtype=torch.float64)
    x[..., 90:] = 0  # 90 of 1,200, fewer than one in eight
    y = torch.randint(4, (t, 4))
    assert_resident(Bag(), fm.TaskBatch(x, y, x.flip(1), y.flip(1)))


def test_gradients_of_the_samples():
    tasks = tasks_of(5, 4, 4)
    inputs = [tasks.support_x.requires_grad_(), tasks.query_x.requires_grad_()]
    meta = fm.MAML(Words().double(), inner_lr=0.3, inner_steps=2, engine="resident")
    assert_exact(meta, tasks, [*meta.parameters(), *inputs], tolerance=1e-10)


def test_long_samples_go_in_chunks():
    class Long(Words):
        def forward(self, x):
            return super().forward(x.flatten(1).unflatten(1, (60, VOCABULARY)))

    x = F.one_hot(torch.randint(VOCABULARY, (2, 12, 60)), VOCABULARY).double()
    y = torch.randint(4, (2, 12))
    assert_resident(Long(), fm.TaskBatch(x, y, x.flip(0), y.flip(0)), inner_steps=1)
