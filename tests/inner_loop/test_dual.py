"""The first layer's dual form (csrc/network/dual.h): wide inputs, few samples, one rate."""

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
    inputs=st.integers(16, 80),
    hidden=st.lists(st.integers(1, 20), max_size=2),
    tasks=st.integers(1, 5),
    shots=st.integers(1, 9),
    queries=st.integers(1, 12),
    steps=st.integers(1, 4),
    order=st.sampled_from([1, 2]),
    bias=st.booleans(),
    even=st.booleans(),
    with_inputs=st.booleans(),
    weighted=st.booleans(),
)
def test_it_agrees_with_the_reference(
    inputs: int, hidden: list[int], tasks: int, shots: int, queries: int, steps: int, order: int,
    bias: bool, even: bool, with_inputs: bool, weighted: bool,
) -> None:  # fmt: skip
    torch.manual_seed(inputs + 97 * shots + 31 * queries)
    model = network([inputs, *hidden, 6], bias, torch.float64)
    batch = tasks_of(model, tasks, shots, queries, torch.float64)
    if weighted:
        weight = torch.rand(tasks, shots, dtype=torch.float64) + 0.1
        weight[:, 1:] *= torch.rand(tasks, shots - 1) > 0.3
        batch = fm.TaskBatch(
            batch.support_x, batch.support_y, batch.query_x, batch.query_y, weight
        )
    meta = fm.MAML(model, inner_lr=0.05, inner_steps=steps, loss="mse", order=order)
    coefficients = torch.ones(tasks) if even else torch.arange(1.0, tasks + 1)
    ours, exact = (
        outcome(meta, batch, backend, coefficients.double() / tasks, with_inputs)
        for backend in ("cpu", "reference")
    )
    for mine, theirs in zip(ours, exact, strict=True):
        assert (mine - theirs).norm() <= 1e-10 * theirs.norm() + 1e-14


@pytest.mark.parametrize("steps", [1, 5])
def test_float32_errs_no_more_than_twice_as_much_as_plain_pytorch(steps: int) -> None:
    """Over ten seeds: of a single number plain PyTorch may err by nothing."""
    squares = []
    for seed in range(10):
        torch.manual_seed(seed)
        model = network([300, 32, 1], True, torch.float32)
        batch = tasks_of(model, 3, 10, 20, torch.float32)
        meta = fm.MAML(model, inner_lr=0.02, inner_steps=steps, loss="mse")
        even = torch.full((3,), 1 / 3)
        ours, plain = (outcome(meta, batch, b, even, True) for b in ("cpu", "reference"))
        wide = fm.TaskBatch(
            *(t.double() for t in (batch.support_x, batch.support_y, batch.query_x, batch.query_y))
        )
        exact = outcome(meta.double(), wide, "reference", even.double(), True)
        errors = [
            [(found - right).norm() ** 2 for found, right in zip(some, exact, strict=True)]
            for some in (ours, plain)
        ]
        squares.append(torch.tensor(errors))
    mine, theirs = torch.stack(squares).sum(0)
    assert bool((mine <= 4 * theirs).all())


SPREADS = {
    "uniform": torch.rand,
    "off centre": lambda *shape: 3 + 0.1 * torch.randn(*shape),
    "near each other": lambda t, n, i: torch.randn(t, 1, i) + 0.01 * torch.randn(t, n, i),
}


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("widths", [[64, 8, 2], [300, 3]], ids=str)
def test_inputs_that_are_all_alike_cost_no_digits(spread: str, widths: list[int]) -> None:
    shots, queries, steps, seeds = 10, 20, 20, 6
    errors = torch.zeros(2, 2 + 2 * (len(widths) - 1) + 2)  # squares, of ours and of plain PyTorch
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = network(widths, True, torch.float32)
        batch = tasks_of(model, 3, shots, queries, torch.float32)
        x = [SPREADS[spread](3, n, widths[0]) for n in (shots, queries)]
        batch = fm.TaskBatch(x[0], batch.support_y, x[1], batch.query_y)
        rate = 0.5 * widths[-1] / float(x[0].square().sum(-1).mean())
        meta = fm.MAML(model, inner_lr=rate, inner_steps=steps, loss="mse")
        results = [outcome(meta, batch, b, torch.ones(3), True) for b in ("cpu", "reference")]
        wide = fm.TaskBatch(
            *(t.double() for t in (batch.support_x, batch.support_y, batch.query_x, batch.query_y))
        )
        exact = outcome(meta.double(), wide, "reference", torch.ones(3).double(), True)
        for row, result in zip(errors, results, strict=True):
            for i, (found, right) in enumerate(zip(result, exact, strict=True)):
                row[i] += float((found - right).norm() / right.norm()) ** 2
    ours, plain = errors.sqrt()
    assert (ours <= 2 * plain + seeds * torch.finfo(torch.float32).eps).all(), ours / plain


def test_threads_change_no_bit() -> None:
    torch.manual_seed(0)
    model = network([128, 32, 5], True, torch.float32)
    batch = tasks_of(model, 9, 5, 7, torch.float32)
    meta = fm.MAML(model, inner_lr=0.05, inner_steps=3, loss="mse")
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(outcome(meta, batch, "cpu", torch.ones(9), False))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
