"""Features of half precision: converted as they are loaded, summed in float32, rounded once."""

import math

import pytest
import torch
from oracle import relative_error
from torch.autograd import grad

import fastmeta as fm
from fastmeta import functional as fmF
from fastmeta.backends import prototypes as native

HALVES = (torch.bfloat16, torch.float16)
METRICS = ("sqeuclidean", "euclidean", "cosine", "dot")
needs_native = pytest.mark.skipif(
    native.can_run() is not None, reason=f"the native kernels cannot run: {native.can_run()}"
)


def problem(half, t=3, n=5, shots=4, q=70, d=37):
    order = torch.stack([torch.randperm(n * shots) for _ in range(t)])
    return {
        "support": torch.randn(t, n * shots, d).to(half),
        "support_y": order % n,
        "query": torch.randn(t, q, d).to(half),
        "query_y": torch.randint(n, (t, q)),
        "n_way": n,
    }


def with_features(task, change):
    return {**task, "support": change(task["support"]), "query": change(task["query"])}


def gradients(task, outer, **options):
    task = with_features(task, lambda x: x.detach().requires_grad_())
    loss, logits = fmF.prototype_loss(**task, **options)
    found = grad((loss * outer.to(loss)).sum(), (task["support"], task["query"]))
    return [loss.detach(), logits.detach(), *found]


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("width", [37, 64])
def test_sums_are_those_of_float32_and_gradients_are_rounded_once(half, metric, width):
    torch.manual_seed(3)
    task, outer = problem(half, d=width), torch.rand(3) + 0.5
    weights = {
        "support_weight": torch.rand(3, 20).to(half) + 0.5,
        "query_weight": (torch.rand(3, 70) > 0.3).to(half),
    }
    for given in (task, {**task, **weights}):
        in_float = {
            k: x.float() if torch.is_tensor(x) and x.is_floating_point() else x
            for k, x in given.items()
        }
        options = {"metric": metric, "temperature": 3.0}
        ours = gradients(given, outer, **options)
        whole = gradients(in_float, outer, **options)
        with fm.use_backend("reference"):
            exact = gradients(
                {k: x.double() if torch.is_tensor(x) and x.is_floating_point() else x
                 for k, x in given.items()}, outer, **options,
            )  # fmt: skip
            plain = gradients(in_float, outer, **options)
        assert [x.dtype for x in ours] == [torch.float32, torch.float32, half, half]
        real = given["query_weight"] > 0 if "query_weight" in given else slice(None)
        for mine, other, right in zip(ours[:2], plain, exact, strict=False):
            if mine.dim() == 3:  # logits of padding have no meaning
                mine, other, right = mine[real], other[real], right[real]
            error = relative_error([mine.double()], [right])
            assert error <= max(2 * relative_error([other.double()], [right]), 1e-7)
        for mine, rounded in zip(ours[2:], whole[2:], strict=True):
            if native.can_run() is None:
                assert torch.equal(mine, rounded.to(half))
        for mine, right in zip(ours[2:], exact[2:], strict=True):
            # Half a unit of the last place, and as much as that is worth of float32's error.
            unit = torch.finfo(half).eps * right.abs() + torch.finfo(half).smallest_normal
            assert bool(
                ((mine.double() - right).abs() <= 0.51 * unit + 1e-6 * right.abs().max()).all()
            )


@needs_native
@pytest.mark.parametrize("half", HALVES)
def test_no_copy_of_the_features_is_made(half, monkeypatch):
    task = with_features(problem(half), lambda x: x.requires_grad_())

    def fail(*args, **kwargs):
        raise AssertionError("features were converted as a whole")

    monkeypatch.setattr(torch.Tensor, "float", fail)
    monkeypatch.setattr(torch.Tensor, "to", fail)
    fmF.prototype_loss(**task)[0].sum().backward()
    with torch.no_grad():
        fmF.nearest_prototype(task["query"], task["support"])
    assert task["query"].grad.dtype is half


@needs_native
@pytest.mark.parametrize("half", HALVES)
def test_every_number_is_read_as_it_is(half):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(half)
    one, labels = torch.ones(1, 1, 1), torch.zeros(1, len(x), dtype=torch.int64)
    logits = fmF.prototype_loss(
        one, labels[:, :1], x.reshape(1, -1, 1), labels, n_way=1, metric="dot"
    )[1]
    torch.testing.assert_close(logits.flatten(), x.float(), rtol=0, atol=0, equal_nan=True)
    x = x.reshape(1, -1, 1)  # as a support too: a class a number
    near = x[x.isfinite()][:4096].reshape(1, -1, 1)
    values, _ = fmF.nearest_prototype(one * 0, near, metric="dot", k=1)
    assert values.item() == 0
    far = fmF.nearest_prototype(one, near, metric="dot", k=near.shape[1])[0]
    assert torch.equal(far.flatten(), (-near.float()).flatten().sort().values)


@needs_native
@pytest.mark.parametrize("half", HALVES)
def test_any_gradient_is_rounded_as_pytorch_rounds(half):
    """Two classes, a query of zeros, products: its gradient is minus half of a prototype."""
    bits = torch.randint(-(2**31), 2**31, (1 << 15,), dtype=torch.int64)
    ties = bits & ~0x7FFF | 0x8000, bits & ~0xFFF | 0x1000  # of bfloat16 and of float16
    near = (127 - 16 << 23) + (bits & 0xFFFFFFF)  # about the range of float16
    edges = torch.tensor([0x477FF000, 0x477FEFFF, 0x47800000, 0x38800000, 0x387FFFFF, 0x33000000])
    patterns = torch.cat([bits, *ties, near, near & ~0xFFF | 0x1000, edges + (1 << 23), edges])
    values = (patterns << 32 >> 32).to(torch.int32).view(torch.float32)
    values = values[(values.abs() < 1e38) & (values.abs() > 1e-36) & values.isfinite()]
    support = torch.stack([values, torch.zeros_like(values)]).unsqueeze(0)
    query = torch.zeros(1, 1, len(values), dtype=half, requires_grad=True)
    labels = torch.arange(2).unsqueeze(0)
    loss, _ = fmF.prototype_loss(support, labels, query, labels[:, :1], n_way=2, metric="dot")
    (found,) = grad(loss.sum(), query)
    assert torch.equal(found.flatten(), (-values / 2).to(half))


@needs_native
@pytest.mark.parametrize("half", HALVES)
def test_every_size_of_gradient_is_rounded_as_pytorch_rounds(half):
    task = problem(half, t=1, q=300, d=64)
    for power in (-130, -30, -24, -20, -16, -10, 0, 10, 20, 126):
        outer = torch.full((1,), 2.0**power)
        for mine, whole in zip(
            gradients(task, outer)[2:],
            gradients(with_features(task, torch.Tensor.float), outer)[2:], strict=True,
        ):  # fmt: skip
            assert torch.equal(mine, whole.to(half)), power
    task["query"][0, 0, 0] = math.nan
    mine, whole = (
        gradients(each, torch.ones(1))[2]
        for each in (task, with_features(task, torch.Tensor.float))
    )
    torch.testing.assert_close(mine, whole.to(half), rtol=0, atol=0, equal_nan=True)
    assert mine.isnan().any()


@pytest.mark.parametrize("half", HALVES)
def test_one_of_the_two_may_be_float32(half):
    task = problem(half)
    mixed = {**task, "support": task["support"].float()}
    right = gradients(task, torch.ones(3))
    found = gradients(mixed, torch.ones(3))
    assert found[2].dtype is torch.float32 and found[3].dtype is half
    for mine, exact in zip(found, right, strict=True):
        torch.testing.assert_close(mine.to(exact.dtype), exact)
    with pytest.raises(TypeError, match="float64"):
        fmF.prototype_loss(**{**task, "support": task["support"].double()})


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shared", [False, True])
def test_the_nearest_are_those_of_float32(half, metric, shared):
    x, bank = torch.randn(2, 70, 37).to(half), torch.randn(2, 5000, 37).to(half)
    bank = bank[0] if shared else bank
    mine = fmF.nearest_prototype(x, bank, 7, metric)
    right = fmF.nearest_prototype(x.float(), bank.float(), 7, metric)
    assert mine[0].dtype is torch.float32
    assert all(torch.equal(a, b) for a, b in zip(mine, right, strict=True))
    x, bank = x.requires_grad_(), bank.requires_grad_()
    values, indices = fmF.nearest_prototype(x, bank, 7, metric)
    assert torch.equal(indices, right[1])
    found = grad(values.sum(), (x, bank))
    assert all(each.dtype is half and each.isfinite().all() for each in found)


@needs_native
@pytest.mark.parametrize("half", HALVES)
def test_threads_change_no_bit(half):
    threads, found = torch.get_num_threads(), []
    task = problem(half, t=2, q=150)
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            found.append(gradients(task, torch.ones(2), metric="euclidean"))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_second_derivatives_of_half_precision_go_through_float32():
    task = with_features(problem(torch.bfloat16), lambda x: x.requires_grad_())
    loss, _ = fmF.prototype_loss(**task)
    (first,) = grad(loss.sum(), task["query"], create_graph=True)
    (second,) = grad(first.float().square().sum(), task["support"])
    assert first.dtype is second.dtype is torch.bfloat16 and bool(second.any())
