"""A prototype loss whose forward makes the gradients too: the bits of two calls."""

import pytest
import torch

import fastmeta as fm
from fastmeta import functional as fmF
from fastmeta.backends import cpu, prototypes
from fastmeta.functional import prototype_checks
from fastmeta.functional.habit import Habit

pytestmark = pytest.mark.skipif(
    not cpu.reads_tensors, reason="no call is known again where the native module reads no tensors"
)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(prototype_checks, "_known", {})


@pytest.fixture
def calls(monkeypatch):
    """Which of the kernels' functions ran."""
    names: list[str] = []
    for name in ("loss_forward", "loss_at_once", "loss_backward"):
        function = getattr(prototypes, name)

        def noted(*args, name=name, function=function):
            names.append(name)
            return function(*args)

        monkeypatch.setattr(prototypes, name, noted)
    return names


def task(shape=(3, 4, 9, 6, 17), dtype=torch.float32):
    t, n, s, q, d = shape
    torch.manual_seed(0)
    labels = torch.arange(n).repeat(t, s // n + 1)[:, :s]
    return (
        torch.randn(t, s, d, dtype=dtype).requires_grad_(), labels.contiguous(),
        torch.randn(t, q, d, dtype=dtype).requires_grad_(), torch.randint(n, (t, q)), n,
    )  # fmt: skip


def losses(given, **options):
    *tensors, n = given
    return fmF.prototype_loss(*tensors, n_way=n, **options)


def gradients(given, objective, **options):
    for x in (given[0], given[2]):
        x.grad = None
    objective(losses(given, **options)).backward()
    return given[0].grad, given[2].grad


def mean(found):
    return found[0].mean()


def uneven(found):
    return (found[0] * torch.arange(1.0, len(found[0]) + 1)).sum()


def of_both(found):
    return found[0].mean() + 0.1 * found[1].square().mean()


def grown():
    """Ever other factors."""
    factors = iter(range(1, 100))
    return lambda found: found[0].sum() * next(factors)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cosine", "dot"])
@pytest.mark.parametrize("shape", [(3, 4, 9, 6, 17), (1, 20, 20, 150, 64), (2, 5, 25, 70, 300)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_same_bits_as_two_calls(metric, shape, weighted, calls):
    given, options = task(shape), {"metric": metric, "temperature": 3.0}
    if weighted:
        t, n, s, q, _ = shape
        options["support_weight"], options["query_weight"] = torch.rand(t, s), torch.rand(t, q)
        options["query_weight"][:, 1] = 0
    steps = [gradients(given, mean, **options) for _ in range(4)]
    assert calls == [
        "loss_forward", "loss_backward", "loss_forward", "loss_backward",
        "loss_at_once", "loss_at_once",
    ]  # fmt: skip
    for step in steps[1:]:
        assert all(torch.equal(a, b) for a, b in zip(step, steps[0], strict=True))
        assert {x.data_ptr() for x in step}.isdisjoint({x.data_ptr() for x in steps[0]})


@pytest.mark.parametrize("objective", [uneven, of_both, grown()])
def test_what_cannot_be_foreseen_takes_two_calls(objective, calls):
    given = task()
    for _ in range(4):
        gradients(given, objective)
    assert "loss_at_once" not in calls


def test_another_factor_than_expected_is_computed_anew(calls):
    given = task()
    right = [x.clone() for x in gradients(given, lambda found: 2 * found[0].sum())]
    for _ in range(3):
        gradients(given, mean)
    del calls[:]
    found = gradients(given, lambda found: 2 * found[0].sum())
    assert calls == ["loss_at_once", "loss_backward"]
    assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


def test_forwards_without_a_backward_stop_it(calls):
    given = task()
    for _ in range(2):
        gradients(given, mean)
    del calls[:]
    for _ in range(4):
        losses(given)
    assert calls == ["loss_at_once", "loss_at_once", "loss_forward", "loss_forward"]


def test_a_second_backward_adds_gradients_of_its_own(calls):
    given = task()
    once = [x.clone() for x in gradients(given, mean)]
    gradients(given, mean)
    for x in (given[0], given[2]):
        x.grad = None
    loss = losses(given)[0].mean()
    loss.backward(retain_graph=True)
    loss.backward()
    assert calls[-2:] == ["loss_at_once", "loss_backward"]
    for x, first in zip((given[0], given[2]), once, strict=True):
        assert torch.equal(x.grad, first + first)


def test_a_graph_of_the_gradient_is_built_where_it_is_asked_for():
    given = task(dtype=torch.float64)
    for _ in range(3):
        gradients(given, mean)
    with fm.use_backend("reference"):
        right = _second_order(given)
    assert all(
        torch.allclose(a, b, rtol=1e-9) for a, b in zip(_second_order(given), right, strict=True)
    )


def _second_order(given):
    inputs = (given[0], given[2])
    first = torch.autograd.grad(losses(given)[0].mean(), inputs, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in first), inputs)


def test_one_gradient_alone(calls):
    given = task()
    given[2].requires_grad_(False)
    alone = [gradients(given, mean)[0] for _ in range(3)]
    assert calls[-1] == "loss_at_once" and given[2].grad is None
    assert torch.equal(alone[0], alone[2])


def test_a_learned_temperature_takes_two_calls(calls):
    given, temperature = task(), torch.ones(()).requires_grad_()
    for _ in range(4):
        gradients(given, mean, temperature=temperature)
    assert "loss_at_once" not in calls and temperature.grad is not None


def test_bad_labels_are_refused_as_ever():
    given = task()
    for _ in range(3):
        gradients(given, mean)
    given[3][1, 2] = 4
    with pytest.raises(ValueError, match="query_y has a label outside"):
        losses(given)


def test_a_habit():
    habit = Habit()
    assert habit.expected() is None
    habit.met(0.5)
    assert habit.expected() is None
    habit.met(0.5)
    assert habit.expected() == 0.5
    habit.met(0.25)
    assert habit.expected() is None
    habit.met(None)
    assert habit.expected() is None


def test_what_is_expected_at_first_is_soon_again():
    habit = Habit(at_first=True)
    assert habit.expected() is True
    habit.met(None)
    assert habit.expected() is None
    habit.met(True)
    assert habit.expected() is True


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_reduction_is_made_at_once_too(calls, dtype, reduction):
    given, found = task(dtype=dtype), []
    for _ in range(4):
        found.append([x.clone() for x in gradients(given, lambda found: 0.7 * found[0],
                                                   reduction=reduction)])  # fmt: skip
    assert calls[0] == "loss_forward" and calls[-1] == "loss_at_once"
    assert all(map(torch.equal, found[0], found[-1]))
