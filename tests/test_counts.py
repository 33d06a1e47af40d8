"""Counts and seeds, wherever users give them."""

import re
from fractions import Fraction

import numpy as np
import pytest
import torch

import fastmeta as fm
from fastmeta.counts import check_seed, whole_number
from fastmeta.episodes import Sinusoid


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_whole_numbers_of_any_kind_are_ints(value):
    assert type(whole_number("shots", value)) is type(check_seed(value)) is int
    assert whole_number("shots", value) == check_seed(value) == 3


NO_COUNTS = [
    0, -1, 2.0, "2", None, True, torch.tensor(True), np.True_, torch.tensor(2.0), [2],
]  # fmt: skip


@pytest.mark.parametrize("value", NO_COUNTS)
def test_what_is_no_count(value):
    with pytest.raises(ValueError, match="shots must be a whole number of at least 1, not "):
        whole_number("shots", value)
    with pytest.raises(ValueError, match="n_tasks must be a whole number"):
        Sinusoid().sample(value)


def test_the_least_count_may_be_zero():
    assert whole_number("padding", 0, least=0) == 0
    with pytest.raises(ValueError, match="at least 0, not -1"):
        whole_number("padding", -1, least=0)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.5, "1", None, False])
def test_what_is_no_seed(seed):
    with pytest.raises(ValueError, match="seed must be a whole number of 64 bits, not "):
        Sinusoid(seed=seed)


@pytest.mark.parametrize("seed", [-(2**63), 2**64 - 1])
def test_seeds_of_64_bits(seed):
    Sinusoid(seed=seed).sample(1)


def test_a_number_of_steps_is_looked_at_in_each_call():
    steps = torch.tensor(1)
    meta = fm.MAML(fm.models.mlp([1, 3, 1]), loss="mse", inner_steps=steps)
    tasks = Sinusoid().sample(2)
    first = meta(tasks).loss
    steps.add_(4)
    assert not torch.equal(first, meta(tasks).loss)
    with pytest.raises(ValueError, match="inner_steps must be a whole number"):
        meta(tasks, inner_steps=2.5)
    with pytest.raises(ValueError, match="below 2\\^31"):
        meta(tasks, inner_steps=2**70)


def test_rates_are_real_numbers_of_any_kind():
    x = Sinusoid().sample(2)
    torch.manual_seed(0)
    model = fm.models.mlp([1, 3, 1])
    losses = [
        fm.MAML(model, loss="mse", inner_lr=rate)(x).loss
        for rate in (0.5, np.float32(0.5), np.float64(0.5), Fraction(1, 2))
    ]
    assert all(torch.equal(loss, losses[0]) for loss in losses)
    for rate in (True, "0.5", torch.tensor(0.5)):
        with pytest.raises(TypeError, match="the inner rate must be a number"):
            fm.MAML(model, inner_lr=rate)


@pytest.mark.parametrize("order", [np.int64(1), np.uint8(2), torch.tensor(1)])
def test_an_order_is_a_whole_number_of_any_kind(order):
    tasks, model = Sinusoid(seed=0).sample(2), fm.models.mlp([1, 3, 1])
    found = fm.MAML(model, loss="mse", order=order).forward_backward(tasks).loss
    assert torch.equal(found, fm.MAML(model, loss="mse", order=int(order))(tasks).loss)


def test_what_only_looks_like_an_option_is_refused():
    model = fm.models.mlp([1, 3, 1])
    for order in (True, 1.0, np.float64(2), "1", None):
        with pytest.raises(ValueError, match=f"order must be 1 or 2, not {re.escape(repr(order))}"):
            fm.MAML(model, order=order)
        with pytest.raises(ValueError, match="order must be 1 or 2"):
            fm.ProtoMAML(model, order=order)
    for learn in (1, 1.0, "no"):
        with pytest.raises(ValueError, match=f"learn_temperature must be True or .* {learn!r}"):
            fm.ProtoNet(model, learn_temperature=learn)
    with pytest.raises(ValueError, match="per_step_lr must be True or False, not '3'"):
        fm.MAML(model, learn_inner_lr="tensor", per_step_lr="3")
    for size in (3.0, None, "3", True):
        with pytest.raises(ValueError, match="a width of sizes must be a whole number"):
            fm.models.mlp([1, size, 1])
