from dataclasses import replace

import pytest
import torch
from tiny_workloads import FIRST_ORDER, TINY

from fastmeta.bench import gate
from fastmeta.bench.gate import errors, exact_outcome
from fastmeta.bench.rivals import FASTMETA, RIVALS, Outcome, loop
from fastmeta.bench.workloads import WORKLOADS, make_problem

INSTANT = [FASTMETA, *(rival for rival in RIVALS.values() if not rival.compiles)]
COMPILED = [rival for rival in RIVALS.values() if rival.compiles]
# JAX compiles for seconds: two workloads that between them have all it knows.
PAIRS = [
    pytest.param(rival, workload, id=f"{rival.name}-{workload.name}")
    for rival in INSTANT
    for workload in TINY.values()
    if rival.name != "jax" or workload.name in ("tanh", "deep-head")
]


def gated(rival, workload):
    reason = rival.why_not(workload)
    if reason is not None:
        pytest.skip(reason)
    problem = make_problem(workload)
    return errors(rival.build(problem)(), exact_outcome(problem)).wrong()


@pytest.mark.parametrize(("rival", "workload"), PAIRS)
def test_fastmeta_and_rivals_are_exact(rival, workload):
    assert gated(rival, workload) is None


@pytest.mark.slow
@pytest.mark.parametrize("rival", COMPILED, ids=lambda rival: rival.name)
def test_compiled_rivals_are_exact(rival):
    torch.compiler.reset()
    assert gated(rival, TINY["deep-head"]) is None


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=list(WORKLOADS))
def test_first_order_maml_is_caught_at_every_workload(workload):
    reason = gated(FIRST_ORDER, replace(workload, tasks=min(workload.tasks, 16)))
    assert "meta-gradient" in reason


@pytest.fixture
def outcome():
    return loop.build(make_problem(TINY["head"]))()


@pytest.fixture
def exact():
    return exact_outcome(make_problem(TINY["head"]))


def test_the_loss_is_checked(outcome, exact):
    assert "loss" in errors(Outcome(outcome.loss * 1.001, outcome.gradients), exact).wrong()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda gradient: gradient * 1.001,
        lambda gradient: gradient * float("nan"),
        lambda gradient: gradient[:1],
        lambda gradient: None,
    ],
    ids=["scaled", "nan", "shape", "missing"],
)
def test_one_spoilt_gradient_is_caught_and_named(outcome, exact, spoil):
    gradients = {**outcome.gradients, "0.bias": spoil(outcome.gradients["0.bias"])}
    assert "0.bias" in errors(Outcome(outcome.loss, gradients), exact).wrong()


def test_a_missing_input_gradient_is_caught(outcome, exact):
    gradients = {**outcome.gradients, "query_x": [None] * 4}
    assert "query_x" in errors(Outcome(outcome.loss, gradients), exact).wrong()


@pytest.mark.parametrize("name", ["relu", "head"])
def test_many_tasks_in_chunks_agree_with_the_loop(monkeypatch, name):
    monkeypatch.setattr(gate, "LOOPED_TASKS", 3)
    monkeypatch.setattr(gate, "CHUNK", 4)
    problem = make_problem(replace(TINY[name], tasks=10))
    found = errors(exact_outcome(problem), loop.build(problem.double())())
    assert max(found.loss, found.gradient) < 1e-12


def test_oracles_that_disagree_stop_the_run(monkeypatch):
    monkeypatch.setattr(gate, "LOOPED_TASKS", 3)
    monkeypatch.setattr(gate.vmap_forward, "build", FIRST_ORDER.build)
    with pytest.raises(RuntimeError, match="disagree"):
        exact_outcome(make_problem(replace(TINY["relu"], tasks=10)))
