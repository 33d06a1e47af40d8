"""Prototypes and their loss: a loop over tasks and classes in float64 is what is right."""

import math
from contextlib import nullcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import DOUBLE, relative_error
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap

import fastmeta as fm
from fastmeta import functional as fmF
from fastmeta.backends import cpu
from fastmeta.backends import prototypes as native
from fastmeta.functional import prototype_checks

METRICS = ("sqeuclidean", "euclidean", "cosine", "dot")
needs_native = pytest.mark.skipif(
    native.can_run() is not None, reason=f"the native kernels cannot run: {native.can_run()}"
)


def labels_of(t, s, n):
    """In random order, at least one sample a class."""
    drawn = [torch.cat([torch.arange(n), torch.randint(n, (s - n,))]) for _ in range(t)]
    return torch.stack([each[torch.randperm(s)] for each in drawn])


def problem(t=2, n=3, s=7, q=5, d=4, dtype=DOUBLE, offset=0.0):
    return {
        "support": torch.randn(t, s, d, dtype=dtype) + offset,
        "support_y": labels_of(t, s, n),
        "query": torch.randn(t, q, d, dtype=dtype) + offset,
        "query_y": torch.randint(n, (t, q)),
        "n_way": n,
    }


def plain_distance(x, y, metric):
    """x [Q, D], y [N, D]"""
    difference = x[:, None] - y[None]
    if metric == "sqeuclidean":
        return difference.square().sum(-1)
    if metric == "euclidean":
        return torch.linalg.vector_norm(difference, dim=-1)
    if metric == "cosine":
        return 1 - F.cosine_similarity(x[:, None], y[None], dim=-1, eps=1e-30)
    return -(x @ y.T)


def plain_loss(support, support_y, query, query_y, n_way, metric, temperature=1.0, weights=None):
    """Task after task, class after class."""
    w, v = weights or (torch.ones_like(support_y), torch.ones_like(query_y))
    tau = torch.as_tensor(temperature, dtype=query.dtype).expand(len(query))
    losses, all_logits = [], []
    for t in range(len(query)):
        members = [support_y[t] == n for n in range(n_way)]
        means = [
            (support[t][m] * w[t][m][:, None]).sum(0) / w[t][m].sum() for m in members
        ]
        logits = -plain_distance(query[t], torch.stack(means), metric) / tau[t]
        each = F.cross_entropy(logits, query_y[t], reduction="none")
        losses.append((each * v[t]).sum() / v[t].sum())
        all_logits.append(logits)
    return torch.stack(losses), torch.stack(all_logits)


def in_double(task):
    return {
        name: x.detach().double() if torch.is_tensor(x) and x.is_floating_point() else x
        for name, x in task.items()
    }


def gradients(function, task, outer, **options):
    """Loss, logits, and the gradients of outer . loss for support and query."""
    task = {**task, "support": task["support"].detach().requires_grad_(),
            "query": task["query"].detach().requires_grad_()}  # fmt: skip
    loss, logits = function(**task, **options)
    found = torch.autograd.grad((loss * outer.to(loss)).sum(), (task["support"], task["query"]))
    return [loss.detach(), logits.detach(), *found]


# ---- against the loop --------------------------------------------------------------------------


@given(
    shape=st.fixed_dictionaries(
        {"t": st.integers(1, 4), "n": st.integers(1, 21), "d": st.integers(1, 70)}
    ),
    shots=st.integers(0, 30),
    queries=st.integers(1, 70),
    metric=st.sampled_from(METRICS),
    dtype=st.sampled_from([torch.float32, DOUBLE]),
    seed=st.integers(0, 1000),
)
def test_random_shapes_equal_the_loop(shape, shots, queries, metric, dtype, seed):
    torch.manual_seed(seed)
    task = problem(s=shape["n"] + shots, q=queries, dtype=dtype, **shape)
    outer, tau = torch.rand(shape["t"]), 0.5 + 3 * shape["d"] ** 0.5 * torch.rand(1).item()
    ours = gradients(fmF.prototype_loss, task, outer, metric=metric, temperature=tau)
    right = gradients(plain_loss, in_double(task), outer, metric=metric, temperature=tau)
    scale = max(1.0, float(right[1].abs().max()))  # of what is exponentiated
    eps = torch.finfo(dtype).eps
    for mine, exact in zip(ours, right, strict=True):
        size = max(float(exact.abs().max()), eps)
        assert float((mine - exact).abs().max()) <= 40 * eps * scale * max(size, 1e-3)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "n, d, offset", [(20, 64, 0.0), (20, 64, 1e4), (60, 256, 0.0), (5, 64, 0.0), (6, 300, 0.0)]
)
def test_twice_the_error_of_plain_pytorch_at_most(metric, n, d, offset):
    if metric in ("cosine", "dot") and offset:
        pytest.skip("not a function of differences: plain PyTorch is lost too")
    torch.manual_seed(1)
    task = problem(t=3, n=n, s=5 * n, q=80, d=d, dtype=torch.float32, offset=offset)
    outer, tau = torch.rand(3), {"sqeuclidean": d, "dot": d}.get(metric, 1.0)
    right = gradients(plain_loss, in_double(task), outer, metric=metric, temperature=tau)
    ours = gradients(fmF.prototype_loss, task, outer, metric=metric, temperature=tau)
    plain = gradients(plain_loss, task, outer, metric=metric, temperature=tau)
    names = ("loss", "logits", "support", "query")
    for name, *values in zip(names, ours, plain, right, strict=True):
        mine, theirs = (relative_error([v.double()], [values[2]]) for v in values[:2])
        assert mine <= max(2 * theirs, 1e-7), name


def test_a_large_offset_costs_nothing():
    torch.manual_seed(2)
    task = problem(t=2, n=5, s=20, q=40, d=64, dtype=torch.float32)
    task["support_y"] = torch.stack([torch.arange(20)[torch.randperm(20)] % 5 for _ in range(2)])
    # Multiples of 2^-5, whose means of four are of 2^-7: moved by 1e4, they stay exact.
    for name in ("support", "query"):
        task[name] = (task[name] * 32).round() / 32
    moved = {**task, "support": task["support"] + 1e4, "query": task["query"] + 1e4}
    outer = torch.ones(2)
    for metric in ("sqeuclidean", "euclidean"):
        right = gradients(plain_loss, in_double(task), outer, metric=metric, temperature=9)
        ours = gradients(fmF.prototype_loss, moved, outer, metric=metric, temperature=9)
        for mine, exact in zip(ours, right, strict=True):
            assert relative_error([mine.double()], [exact]) < 5e-6
    assert torch.equal(
        fmF.pairwise_distance(task["query"], task["support"]),
        fmF.pairwise_distance(moved["query"], moved["support"]),
    )


@pytest.mark.parametrize("metric", METRICS)
def test_weights_weigh_and_padding_is_ignored(metric):
    task = problem()
    weights = torch.rand(2, 7, dtype=DOUBLE) + 0.1, torch.rand(2, 5, dtype=DOUBLE)
    outer = torch.rand(2)
    right = gradients(plain_loss, task, outer, metric=metric, weights=weights)
    nothing = torch.full((2, 1, 4), math.nan, dtype=DOUBLE)
    zero, far = torch.zeros(2, 1, dtype=DOUBLE), torch.full((2, 1), -9)
    padded = {
        "support": torch.cat([nothing, task["support"]], 1),
        "support_y": torch.cat([far, task["support_y"]], 1),
        "query": torch.cat([task["query"], nothing], 1),
        "query_y": torch.cat([task["query_y"], far], 1),
        "n_way": 3,
        "support_weight": torch.cat([zero, weights[0]], 1),
        "query_weight": torch.cat([weights[1], zero], 1),
    }
    ours = gradients(fmF.prototype_loss, padded, outer, metric=metric)
    assert not ours[2][:, 0].any() and not ours[3][:, -1].any()
    kept = [ours[0], ours[1][:, :-1], ours[2][:, 1:], ours[3][:, :-1]]
    for mine, exact in zip(kept, right, strict=True):
        torch.testing.assert_close(mine, exact)
    means = fmF.prototypes(
        padded["support"], padded["support_y"], 3, weight=padded["support_weight"]
    )
    plain = fmF.prototypes(task["support"], task["support_y"], 3, weight=weights[0])
    torch.testing.assert_close(means, plain)


def test_half_precision_is_summed_in_float32():
    task = problem(dtype=torch.bfloat16)
    loss, logits = fmF.prototype_loss(**task)
    right, _ = plain_loss(**in_double(task), metric="sqeuclidean")
    assert loss.dtype is logits.dtype is torch.float32
    torch.testing.assert_close(loss.double(), right, rtol=1e-5, atol=1e-5)
    x = task["support"].requires_grad_()
    fmF.prototype_loss(**{**task, "support": x})[0].sum().backward()
    assert x.grad.dtype is torch.bfloat16


@pytest.mark.parametrize("size", [dict(n=1, s=1), dict(q=1), dict(d=1), dict(n=300, s=301, q=9)])
@pytest.mark.parametrize("metric", METRICS)
def test_extreme_sizes(size, metric):
    task, outer = problem(**size), torch.rand(2)
    ours = gradients(fmF.prototype_loss, task, outer, metric=metric)
    right = gradients(plain_loss, task, outer, metric=metric)
    for mine, exact in zip(ours, right, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-12)


# ---- derivatives -------------------------------------------------------------------------------


def loss_of(support, query, temperature, task, metric):
    return fmF.prototype_loss(
        **{**task, "support": support, "query": query}, metric=metric, temperature=temperature
    )


@pytest.mark.parametrize("metric", METRICS)
def test_first_and_second_derivatives(metric):
    task = problem(n=2, s=3, q=2, d=2)
    temperatures = (2,) if metric in ("cosine", "sqeuclidean") else ()
    leaves = [task["support"], task["query"], torch.rand(temperatures, dtype=DOUBLE) + 1]
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def call(*inputs):
        return loss_of(*inputs, task, metric)

    assert gradcheck(call, leaves)  # of loss and logits
    assert gradcheck(lambda *inputs: call(*inputs)[0], leaves)  # the fused backward
    assert gradgradcheck(call, leaves)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("case", ["same", "made of", "centred", "temperature"])
def test_inputs_may_be_made_of_one_another(metric, case):
    task, tau = problem(s=6, q=6), 2.0
    task["support_y"] = torch.arange(6).expand(2, 6) % 3  # no query is a prototype
    x = task["support"].requires_grad_()
    inputs = {
        "same": (x, x, tau),
        "made of": (x, 2 * x.sin(), tau),
        "centred": (x - x.mean(1, keepdim=True), task["query"] - x.mean(1, keepdim=True), tau),
        "temperature": (x, task["query"], 1 + x.square().mean((1, 2))),
    }[case]

    def derivatives(function):
        support, query, temperature = inputs
        changed = {**task, "support": support, "query": query}
        loss, logits = function(**changed, metric=metric, temperature=temperature)
        of_loss, of_logits = (
            torch.autograd.grad(each.sum(), x, retain_graph=True, create_graph=graph)[0]
            for each, graph in ((loss, True), (logits.sin(), False))
        )
        (second,) = torch.autograd.grad(of_loss.sin().sum(), x, retain_graph=True)
        return of_loss, of_logits, second

    for mine, exact in zip(derivatives(fmF.prototype_loss), derivatives(plain_loss), strict=True):
        torch.testing.assert_close(mine, exact)


@needs_native
@pytest.mark.parametrize("metric", METRICS)
def test_the_fused_backward_is_that_of_the_composed_form(metric):
    task = problem(t=3, n=6, s=20, q=70, d=33)
    outer = torch.rand(3)
    fused = gradients(fmF.prototype_loss, task, outer, metric=metric, temperature=3.0)
    with fm.use_backend("reference"):
        composed = gradients(fmF.prototype_loss, task, outer, metric=metric, temperature=3.0)
    for mine, theirs in zip(fused, composed, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("metric", METRICS)
def test_torch_func(metric):
    task = problem(n=2, s=4, q=3, d=3)
    tau = torch.tensor(2.0, dtype=DOUBLE)

    def total(support):
        return loss_of(support, task["query"], tau, task, metric)[0].sum()

    def right(support):
        return plain_loss(**{**task, "support": support}, metric=metric, temperature=tau)[0].sum()

    support = task["support"]
    torch.testing.assert_close(grad(total)(support), grad(right)(support))
    batch = torch.randn(3, *support.shape, dtype=DOUBLE)
    torch.testing.assert_close(
        vmap(grad(total))(batch), torch.stack([grad(right)(each) for each in batch])
    )
    tangent = torch.randn_like(support)
    slope = (grad(right)(support) * tangent).sum()
    torch.testing.assert_close(jvp(total, (support,), (tangent,))[1], slope)


@pytest.mark.parametrize("metric", METRICS)
def test_vectors_of_zeros_have_a_finite_gradient(metric):
    task = problem()
    task["query"][0, 0] = 0
    task["support"][0] = 0
    task["query"][1, 1] = task["support"][1][task["support_y"][1] == 0].mean(0)
    outer = torch.ones(2)
    assert all(
        found.isfinite().all()
        for found in gradients(fmF.prototype_loss, task, outer, metric=metric)
    )
    if metric == "cosine":
        query = task["query"].requires_grad_()
        loss, logits = fmF.prototype_loss(**{**task, "query": query}, metric=metric)
        (of_query,) = torch.autograd.grad(loss.sum(), query)
        assert (logits[0] == -1).all() and not of_query[0].any()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_cosine_of_vectors_whose_squares_leave_the_range(scale):
    task = {k: v.float() if torch.is_tensor(v) and v.is_floating_point() else v
            for k, v in problem().items()}  # fmt: skip
    far = {**task, "support": task["support"] * scale, "query": task["query"] * scale}
    outer = torch.ones(2)
    ours = gradients(fmF.prototype_loss, far, outer, metric="cosine")
    right = gradients(fmF.prototype_loss, task, outer, metric="cosine")
    for mine, exact in zip(ours[:2], right[:2], strict=True):
        torch.testing.assert_close(mine, exact)
    for mine, exact in zip(ours[2:], right[2:], strict=True):
        assert relative_error([mine.double() * scale], [exact.double()]) < 1e-5


@needs_native
def test_cosine_takes_denormal_vectors_for_zeros():
    tiny = torch.finfo(torch.float32).tiny / 2
    task = {k: v.float() if torch.is_tensor(v) and v.is_floating_point() else v
            for k, v in problem().items()}  # fmt: skip
    zeros = {**task, "query": torch.zeros_like(task["query"])}
    denormal = {**task, "query": torch.full_like(task["query"], tiny)}
    for backend in ("reference", "cpu"):
        with fm.use_backend(backend):
            found = [
                gradients(fmF.prototype_loss, each, torch.ones(2), metric="cosine")
                for each in (denormal, zeros)
            ]
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


# ---- the rest ----------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_threads_change_no_bit(metric):
    threads = torch.get_num_threads()
    task = problem(t=3, n=7, s=30, q=150, d=70, dtype=torch.float32)
    outer, found = torch.rand(3), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            found.append(gradients(fmF.prototype_loss, task, outer, metric=metric))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_any_memory_layout():
    task = problem()
    strange = {
        name: x.mT.contiguous().mT if torch.is_tensor(x) else x for name, x in task.items()
    }
    assert not strange["query"].is_contiguous()
    outer = torch.rand(2)
    for mine, exact in zip(
        gradients(fmF.prototype_loss, strange, outer), gradients(fmF.prototype_loss, task, outer),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(mine, exact)
    # A slice starts where no vector does.
    part = {k: v[1:] if torch.is_tensor(v) else v for k, v in problem(t=3, d=5).items()}
    right = plain_loss(**part, metric="sqeuclidean")
    torch.testing.assert_close(fmF.prototype_loss(**part), right)


@needs_native
def backward_with_hooks(unpack, monkeypatch):
    monkeypatch.setattr(prototype_checks, "_known", {})  # no gradients at once
    torch.manual_seed(0)
    task = problem(dtype=torch.float32)
    for name in ("support", "query"):
        task[name].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, unpack):
        loss, _ = fmF.prototype_loss(**task, metric="cosine")
    return torch.autograd.grad(loss.sum(), (task["support"], task["query"]))


@needs_native
@pytest.mark.parametrize(
    "unpack",
    [
        lambda x: x[:, :2].clone() if x.is_floating_point() else x,
        lambda x: x[:, :2].clone() if x.dtype is torch.int64 else x,
        lambda x: x[:1],
        lambda x: x.int() if x.dtype is torch.int64 else x,
        lambda x: x.bool() if x.dtype is torch.int64 else x,
        lambda x: x.double() if x.is_floating_point() else x,
        lambda x: x.bfloat16() if x.is_floating_point() else x,
        lambda x: x.to("meta") if x.is_floating_point() else x,
        lambda x: x - 2**40 if x.dtype is torch.int64 else x,
    ],
)
def test_saved_tensors_of_another_kind_are_refused(unpack, monkeypatch):
    with pytest.raises((ValueError, RuntimeError), match="fit together|was changed|another task"):
        backward_with_hooks(unpack, monkeypatch)


@pytest.mark.parametrize(
    "unpack",
    [
        lambda x: x.mT.contiguous().mT if x.dim() == 3 else x,
        lambda x: torch._neg_view(-x) if x.is_floating_point() else x,
        lambda x: torch.stack((x, x))[1],
    ],
)
def test_saved_tensors_may_lie_in_any_way(unpack, monkeypatch):
    found = backward_with_hooks(unpack, monkeypatch)
    right = backward_with_hooks(lambda x: x, monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


@needs_native
def test_labels_changed_past_autograd_are_refused(monkeypatch):
    monkeypatch.setattr(prototype_checks, "_known", {})
    task = problem(dtype=torch.float32)
    labels = task["support_y"].numpy().copy()
    task["support_y"] = torch.from_numpy(labels)
    task["support"].requires_grad_()
    loss, _ = fmF.prototype_loss(**task)
    labels[:] = -(2**40)
    with pytest.raises(ValueError, match="support_y or its weight was changed"):
        loss.sum().backward()


def test_a_gradient_of_zeros_that_lie_nowhere():
    task = problem()
    task["support"].requires_grad_()
    loss, _ = fmF.prototype_loss(**task)
    loss.backward(gradient=torch._efficientzerotensor((2,), dtype=DOUBLE))
    assert not task["support"].grad.any()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize(
    "n, shots, place",
    [(5, 1, [0]), (5, 1, [1, 3]), (4, 1, [3]), (3, 2, [1]), (24, 2, [7]), (20, 1, [3, 13])],
)
@pytest.mark.parametrize("far", [1e4, 1e8])
def test_outliers_cost_the_other_classes_nothing(backend, metric, n, shots, place, far):
    if backend == "cpu" and native.can_run() is not None:
        pytest.skip("the native kernels are not built")
    torch.manual_seed(3)
    task = problem(n=n, s=n * shots, q=40, d=8, dtype=torch.float32)
    task["support_y"] = torch.arange(n).repeat(2, shots)
    task["support"][:, place] += far
    outer = torch.ones(2)
    with fm.use_backend(backend):
        ours = gradients(fmF.prototype_loss, task, outer, metric=metric)
    right = gradients(plain_loss, in_double(task), outer, metric=metric)
    plain = gradients(plain_loss, task, outer, metric=metric)
    for mine, theirs, exact in zip(ours[2:], plain[2:], right[2:], strict=True):
        error = (theirs - exact).abs().max()
        assert (mine - exact).abs().max() <= max(2 * error, 1e-6 * exact.abs().max())


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_an_outlier_of_little_weight_costs_nothing(backend):
    if backend == "cpu" and native.can_run() is not None:
        pytest.skip("the native kernels are not built")
    torch.manual_seed(0)
    task = problem(t=1, n=3, s=6, q=9, d=16, dtype=torch.float32)
    task["support_y"] = torch.tensor([[0, 0, 1, 1, 2, 2]])
    task["support"][0, ::2] *= 1e6
    weight = torch.ones(1, 6)
    weight[0, ::2] = 1e-6
    with fm.use_backend(backend):
        loss, _ = fmF.prototype_loss(**task, temperature=10.0, support_weight=weight)
    right = plain_loss(
        **in_double(task), metric="sqeuclidean", temperature=10.0,
        weights=(weight.double(), torch.ones(1, 9, dtype=DOUBLE)),
    )[0]  # fmt: skip
    assert abs(float(loss - right)) < 1e-6


@needs_native
@pytest.mark.parametrize("place", [2, 3])
def test_an_infinity_in_one_class_leaves_the_others(place):
    torch.manual_seed(0)
    task = problem(t=1, n=3, s=6, q=9, d=4, dtype=torch.float32)
    task["support_y"] = torch.tensor([[0, 0, 1, 1, 2, 2]])
    task["query_y"] = torch.arange(9)[None] % 2 * 2
    task["support"][0, place, 3] = math.inf
    loss, _ = fmF.prototype_loss(**task)
    assert loss.isfinite().all()
    torch.testing.assert_close(loss, plain_loss(**task, metric="sqeuclidean")[0])


@pytest.mark.parametrize("temperature", [2, np.float32(2), np.float64(2), np.int64(2), Fraction(2)])
def test_a_temperature_is_any_kind_of_number(temperature):
    task = problem(dtype=torch.float32)
    found = fmF.prototype_loss(**task, temperature=temperature)
    right = fmF.prototype_loss(**task, temperature=2.0)
    assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("temperature", [True, "1", None, 1j])
def test_a_temperature_of_no_number_is_refused(temperature):
    with pytest.raises(TypeError, match="temperature must be a number or a tensor"):
        fmF.prototype_loss(**problem(), temperature=temperature)


def test_saved_tensors_may_move():
    task = problem(dtype=torch.float32)
    outer = torch.rand(2)
    right = gradients(fmF.prototype_loss, task, outer)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x.clone()):
        moved = gradients(fmF.prototype_loss, task, outer)
    assert all(torch.equal(a, b) for a, b in zip(right, moved, strict=True))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"support_y": torch.tensor([[0, 1, 2, 3]])}, "support_y has a label outside"),
        ({"query_y": torch.tensor([[0, -1]])}, "query_y has a label outside"),
        ({"query_y": torch.tensor([[0, 2**40]])}, "query_y has a label outside"),
        ({"support_y": torch.tensor([[0, 1, 1, 1]])}, "no sample of class 2 in task 0"),
        ({"support_weight": torch.tensor([[1.0, 1.0, -1.0, 1.0]])}, "not negative"),
        ({"support_weight": torch.tensor([[1.0, 1.0, math.nan, 1.0]])}, "finite"),
        ({"support_weight": torch.tensor([[1.0, 1.0, 0.0, 1.0]])}, "no sample of class 2"),
        ({"query_weight": torch.zeros(1, 2)}, "all 0 in task 0"),
        ({"n_way": 2**62}, "more than the samples"),
        ({"metric": "manhattan"}, "metric must be one of"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"query": torch.zeros(1, 2, 6)}, "do not fit"),
        ({"support": torch.zeros(1, 0, 5)}, "empty"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_bad_input(changes, message, backend):
    task = {
        "support": torch.zeros(1, 4, 5), "support_y": torch.tensor([[0, 1, 2, 1]]),
        "query": torch.zeros(1, 2, 5), "query_y": torch.tensor([[0, 1]]), "n_way": 3,
    }  # fmt: skip
    with fm.use_backend(backend):
        fmF.prototype_loss(**task)
        with pytest.raises(ValueError, match=message):
            fmF.prototype_loss(**{**task, **changes})


@pytest.mark.parametrize("weighted", [False, True])
def test_class_means_are_differentiable(weighted):
    task = problem(d=2)
    weight = torch.rand(2, 7, dtype=DOUBLE) + 0.1 if weighted else None
    x = task["support"].requires_grad_()

    def call(x):
        return fmF.prototypes(x, task["support_y"], 3, weight)

    assert gradcheck(call, x) and gradgradcheck(lambda x: call(x).sin(), x)
    if weighted:
        assert gradcheck(
            lambda x, w: fmF.prototypes(x, task["support_y"], 3, w), (x, weight.requires_grad_())
        )
    with pytest.raises(ValueError, match="no sample of class 3"):
        fmF.prototypes(x, task["support_y"], 4, weight)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("shared", [False, True])
def test_distances(metric, dtype, shared):
    for t, q, n, d in [(1, 1, 1, 1), (2, 5, 3, 4), (3, 40, 600, 17), (2, 9, 21, 64)]:
        x, y = torch.randn(t, q, d, dtype=dtype), torch.randn(t, n, d, dtype=dtype)
        y = y[0] if shared else y
        right = [
            plain_distance(x[i].double(), (y if shared else y[i]).double(), metric)
            for i in range(t)
        ]
        ours = fmF.pairwise_distance(x, y, metric)
        tolerance = 20 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            ours.double(), torch.stack(right), rtol=tolerance, atol=tolerance * d
        )


@pytest.mark.parametrize("metric", METRICS)
def test_distances_of_no_features(metric):
    found = fmF.pairwise_distance(torch.zeros(2, 3, 0), torch.zeros(2, 4, 0), metric)
    assert torch.equal(found, torch.full((2, 3, 4), float(metric == "cosine")))


@pytest.mark.parametrize("metric", METRICS)
def test_distances_have_derivatives_of_any_order(metric):
    x, y = (torch.randn(2, n, 3, dtype=DOUBLE, requires_grad=True) for n in (3, 2))

    def call(x, y):
        return fmF.pairwise_distance(x, y, metric)

    def slope(x, y):
        return torch.autograd.grad(call(x, y).sin().sum(), (x, y), create_graph=True)

    assert gradcheck(call, (x, y), check_forward_ad=True)
    assert gradgradcheck(call, (x, y)) and gradgradcheck(slope, (x, y))


@needs_native
def test_every_output_is_written(monkeypatch):
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty",
        lambda self, *a, **k: empty(self, *a, **k).fill_(
            -7 if k.get("dtype") is torch.int64 else math.nan
        ),
    )  # fmt: skip
    monkeypatch.setattr(cpu, "reads_tensors", False)  # else they are made natively
    task, outer = problem(d=5), torch.rand(2)
    for metric in METRICS:
        for found in gradients(fmF.prototype_loss, task, outer, metric=metric):
            assert found.isfinite().all()
        values, indices = fmF.nearest_prototype(task["query"], task["support"], 7, metric)
        assert values.isfinite().all() and (indices >= 0).all()
        assert fmF.pairwise_distance(task["query"], task["support"], metric).isfinite().all()


def test_large_results_may_be_changed_in_place():
    support, query = (torch.randn(2, n, 512, requires_grad=True) for n in (100, 400))
    labels = [torch.arange(100).repeat(2, n) for n in (1, 4)]
    loss, logits = fmF.prototype_loss(support, labels[0], query, labels[1], n_way=100)
    logits.mul_(2)
    loss.sum().backward()
    for found in (support.grad, query.grad):
        assert not found._is_view() and found.is_contiguous()
        found.mul_(2)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
def test_padding_is_inert_where_its_distance_overflows(metric, backend):
    far = 2.0**64
    support = (torch.randn(1, 4, 5).mul(2.0**42).round() + far).requires_grad_()
    query = (torch.randn(1, 3, 5) * 2.0**42 + far).requires_grad_()
    with nullcontext() if backend is None else fm.use_backend(backend):
        loss, _ = fmF.prototype_loss(
            support, torch.tensor([[0, 1, 0, 1]]), query, torch.tensor([[0, 1, 1]]), n_way=2,
            metric=metric, temperature=2.0**80, query_weight=torch.tensor([[1.0, 1.0, 0.0]]),
        )  # fmt: skip
        plain = torch.autograd.grad(loss.sum(), [support, query], retain_graph=True)
        first = torch.autograd.grad(loss.sum(), [support, query], create_graph=True)
        second = torch.autograd.grad(sum(g.sum() for g in first), [support, query])
    assert all(bool(x.isfinite().all()) for x in (loss, *plain, *first, *second))
    assert not any(bool(of_query[:, 2].any()) for _, of_query in (plain, first, second))


def test_batched_gradients_are_refused_with_the_way_out_where_native():
    support, query = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4)
    labels = torch.arange(3).expand(2, 3)

    def losses(features):
        return fmF.prototype_loss(features, labels, query, labels, n_way=3)[0]

    if native.can_run() is None:
        with pytest.raises(RuntimeError, match="vmap over torch.func.vjp"):
            torch.autograd.grad(losses(support), support, torch.eye(2), is_grads_batched=True)
    _, pull = torch.func.vjp(losses, support)
    (found,) = vmap(pull)(torch.eye(2))
    right = [torch.autograd.grad(losses(support)[t], support)[0] for t in range(2)]
    torch.testing.assert_close(found, torch.stack(right))
