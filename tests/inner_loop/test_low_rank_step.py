"""One inner step that makes no theta_1 (csrc/cpu/low_rank_step.h): packs, few samples a layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_rate import network, outcome, tasks_of

import fastmeta as fm

pytestmark = pytest.mark.skipif(
    fm.available_backends()["cpu"] is not True, reason="the native kernels are not built"
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    inputs=st.integers(1, 9),
    hidden=st.lists(st.sampled_from([1, 7, 20, 33]), min_size=1, max_size=3),
    tasks=st.integers(1, 70),
    shots=st.integers(1, 9),
    queries=st.integers(1, 12),
    bias=st.booleans(),
    with_inputs=st.booleans(),
    weighted=st.booleans(),
)
def test_it_agrees_with_the_reference(
    inputs: int, hidden: list[int], tasks: int, shots: int, queries: int, bias: bool,
    with_inputs: bool, weighted: bool,
) -> None:  # fmt: skip
    torch.manual_seed(inputs + 97 * shots + 31 * queries)
    model = network([inputs, *hidden, 24, 2], bias, torch.float64)
    batch = tasks_of(model, tasks, shots, queries, torch.float64)
    if weighted:
        weights = []
        for n in (shots, queries):
            weights.append(torch.rand(tasks, n, dtype=torch.float64) + 0.1)
            weights[-1][:, 1:] *= torch.rand(tasks, n - 1) > 0.3
        batch = fm.TaskBatch(
            batch.support_x, batch.support_y, batch.query_x, batch.query_y, *weights
        )
    meta = fm.MAML(model, inner_lr=0.05, inner_steps=1, loss="mse")
    coefficients = torch.arange(1.0, tasks + 1, dtype=torch.float64) / tasks
    ours, exact = (
        outcome(meta, batch, backend, coefficients, with_inputs) for backend in ("cpu", "reference")
    )
    for mine, theirs in zip(ours, exact, strict=True):
        assert (mine - theirs).norm() <= 1e-10 * theirs.norm() + 1e-14


@pytest.mark.parametrize("offset", [0, 30])
def test_float32_errs_no_more_than_twice_as_much_as_plain_pytorch(offset: float) -> None:
    """Over ten seeds: of a single number plain PyTorch may err by nothing."""
    squares = []
    for seed in range(10):
        torch.manual_seed(seed)
        model = network([3, 40, 40, 40, 1], True, torch.float32)
        batch = tasks_of(model, 64, 10, 10, torch.float32)
        batch = fm.TaskBatch(
            batch.support_x + offset, batch.support_y, batch.query_x + offset, batch.query_y
        )
        meta = fm.MAML(model, inner_lr=0.02, inner_steps=1, loss="mse")
        even = torch.full((64,), 1 / 64)
        ours, plain = (outcome(meta, batch, b, even, True) for b in ("cpu", "reference"))
        wide = fm.TaskBatch(
            *(t.double() for t in (batch.support_x, batch.support_y, batch.query_x, batch.query_y))
        )
        exact = outcome(meta.double(), wide, "reference", even.double(), True)
        squares.append(
            torch.tensor(
                [
                    [(found - right).norm() ** 2 for found, right in zip(some, exact, strict=True)]
                    for some in (ours, plain)
                ]
            )
        )
    mine, theirs = torch.stack(squares).sum(0)
    assert bool((mine <= 4 * theirs).all()), mine / theirs
