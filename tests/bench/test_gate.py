from dataclasses import replace

import pytest
import torch
from tiny_workloads import FIRST_ORDER, TINY

from fastmeta.bench import gate
from fastmeta.bench.catalogue import LARGE, WORKLOADS
from fastmeta.bench.device import CPU
from fastmeta.bench.gate import errors, exact_outcome, judge
from fastmeta.bench.rivals import FASTMETA, FASTMETA_DIRECT, RIVALS, Outcome, Rival, loop
from fastmeta.bench.rivals.rival import always
from fastmeta.bench.workloads import make_problem

WRONG = RIVALS["vmap-fused"]
INSTANT = [
    FASTMETA,
    FASTMETA_DIRECT,
    *(rival for rival in RIVALS.values() if rival.compiles is not always and rival is not WRONG),
]
COMPILED = [rival for rival in RIVALS.values() if rival.compiles is always]
# JAX compiles for seconds: workloads that between them have all it knows.
PAIRS = [
    pytest.param(
        rival,
        workload,
        id=f"{rival.name}-{workload.name}",
        marks=pytest.mark.slow if (rival.name, workload.name) == ("jax", "conv") else (),
    )
    for rival in INSTANT
    for workload in TINY.values()
    if rival.name != "jax" or workload.name in ("tanh", "deep-head", "conv", "slopes")
]
# The shapes of one family are alike to the gate.
ONE_OF_A_SHAPE = [
    workload
    for workload in WORKLOADS.values()
    if workload not in LARGE
    and (not workload.image or workload.name in ("conv32-T4-K1-S5-Q25", "mini-T1-K5-S5-Q75"))
]


def gated(rival, workload):
    reason = rival.why_not(workload) or rival.why_not_on(CPU)
    if reason is not None:
        pytest.skip(reason)
    problem = make_problem(workload)
    return judge(rival, workload, rival.build(problem)(), exact_outcome(problem)).reason


@pytest.mark.parametrize(("rival", "workload"), PAIRS)
def test_fastmeta_and_rivals_are_exact(rival, workload):
    if rival.name == "jax" and workload.image:  # whose steps JAX compiles one by one
        workload = replace(workload, steps=1)
    assert gated(rival, workload) is None


@pytest.mark.slow
@pytest.mark.parametrize("rival", COMPILED, ids=lambda rival: rival.name)
def test_compiled_rivals_are_exact(rival):
    torch.compiler.reset()
    assert gated(rival, TINY["deep-head"]) is None


def test_norms_within_a_vmap_that_is_differentiated_are_caught():
    assert "meta-gradient" in gated(WRONG, TINY["conv"])


@pytest.mark.parametrize("workload", ONE_OF_A_SHAPE, ids=lambda workload: workload.name)
def test_first_order_maml_is_caught_at_every_workload(workload):
    less = dict(tasks=1, query=15) if workload.image else dict(tasks=min(workload.tasks, 16))
    reason = gated(FIRST_ORDER, replace(workload, **less))
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


def spoilt_where_it_is_large(workload):
    """Right on few samples, but not on the workload itself."""

    def build(problem):
        step = loop.build(problem)
        factor = 1.3 if problem.workload == workload else 1.0

        def spoilt():
            loss, gradients = step()
            return Outcome(loss, {name: g * factor for name, g in gradients.items()})

        return spoilt

    return Rival("spoilt", "is wrong at one shape", build)


def test_images_are_judged_at_the_workload_itself_too():
    assert "the meta-gradient is off by 3.0e-01" in gated(
        spoilt_where_it_is_large(TINY["conv"]), TINY["conv"]
    )


def test_one_decision_the_other_way_is_no_error():
    """Of the draws on few samples one may be off, of the whole workload the gradient a little."""
    drawn = []

    def build(problem):
        step = loop.build(problem)
        drawn.append(problem)
        factor = 1.02 if len(drawn) <= 2 else 1.0

        def decided_otherwise():
            loss, gradients = step()
            return Outcome(loss, {name: g * factor for name, g in gradients.items()})

        return decided_otherwise

    assert gated(Rival("unlucky", "decides otherwise twice", build), TINY["conv"]) is None
    assert len(drawn) == 3


def test_a_gradient_that_is_zero_is_held_against_the_largest():
    def outcome(bias):
        return Outcome(1.0, {"bias": torch.full((2,), bias), "weight": torch.ones(2)})

    assert errors(outcome(1e-6), outcome(1e-17)).wrong() is None
    assert "bias is off by 1.0e-03" in errors(outcome(1e-3), outcome(1e-17)).wrong()
