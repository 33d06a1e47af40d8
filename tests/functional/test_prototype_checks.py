"""A call of the prototypes' loss that looks like one before is checked no less than that."""

import pytest
import torch

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.functional import prototype_checks, prototype_loss

needs_native = pytest.mark.skipif(
    not cpu.reads_tensors, reason="no call is known again where the native module reads no tensors"
)


def task(dtype=torch.float32):
    labels = torch.arange(3).repeat(2, 2)
    return [torch.randn(2, 6, 4, dtype=dtype), labels, torch.randn(2, 6, 4, dtype=dtype), labels]


def loss(given, n_way=3, **options):
    return prototype_loss(*given, n_way=n_way, **options)


@pytest.fixture
def given():
    """A task whose call is known."""
    prototype_checks._known.clear()
    given = task()
    loss(given)
    return given


def count():
    return len(prototype_checks._known)


@needs_native
def test_calls_that_look_alike_are_checked_once(given, monkeypatch):
    assert count() == 1
    monkeypatch.setattr(prototype_checks, "_arguments", None)
    loss(task())
    with pytest.raises(TypeError, match="NoneType"):
        loss(task(torch.float64))


@pytest.mark.parametrize("wrong", [-1, 3])
@pytest.mark.parametrize("position", [1, 3])
def test_values_are_checked_each_time(given, position, wrong):
    given[position] = given[position].clone()
    given[position][1, 2] = wrong
    with pytest.raises(ValueError, match=rf"outside \[0, 3\): {wrong} for sample 2 of task 1"):
        loss(given)


def test_other_arguments_are_other_calls(given):
    one = loss(given)[1]
    assert torch.equal(loss(given, temperature=2.0)[1], one / 2)
    assert not torch.equal(loss(given, metric="cosine")[1], one)
    for options, words in (
        ({"n_way": 2}, "outside"), ({"n_way": True}, "n_way"), ({"n_way": 7}, "n_way"),
        ({"metric": "manhattan"}, "metric"), ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=words):
            loss(given, **options)
    for options in ({"temperature": torch.tensor(2.0)}, {"support_weight": torch.ones(2, 6)}):
        loss(given, **options)
        loss(given, **options)
    with pytest.raises(ValueError, match="temperature"):
        loss(given, temperature=torch.tensor(-2.0))
    with pytest.raises(ValueError, match="weight"):
        loss(given, support_weight=-torch.ones(2, 6))


def test_weights_that_want_a_gradient_get_one(given):
    weight = torch.ones(2, 6)
    loss(given, support_weight=weight)
    weight = weight.requires_grad_()
    loss(given, support_weight=weight)[0].sum().backward()
    assert weight.grad.abs().max() > 0


@needs_native
def test_another_backend_is_another_call(given):
    given[0].requires_grad_()
    made_by = [type(loss(given)[0].grad_fn).__name__]
    with fm.use_backend("reference"):
        made_by += [type(loss(given)[0].grad_fn).__name__]
    assert [name == "_FusedBackward" for name in made_by] == [True, False]


def test_what_does_not_lie_plainly_is_never_known(given):
    known = count()
    right = loss(given)[1]
    turned = given[0].transpose(1, 2).contiguous().transpose(1, 2)
    far = torch._neg_view(-given[2])
    for support, query in ((turned, given[2]), (given[0], far)):
        found = loss([support, given[1], query, given[3]])[1]
        torch.testing.assert_close(found, right)
    assert count() == known


def test_under_a_transform_nothing_is_known(given):
    known = count()
    found = torch.func.vmap(lambda x: loss([x, *given[1:]])[0])(torch.stack([given[0]] * 2))
    torch.testing.assert_close(found[0], loss(given)[0])
    assert count() == known


def test_what_a_transform_has_left_is_read(given):
    left = []
    torch.func.grad(lambda x: (left.append(x), x.sum())[1])(given[0])
    known = count()
    for support in (left[0], given[0]):
        assert torch.equal(loss([support, *given[1:]])[1], loss(given)[1])
    assert count() == known


@needs_native
def test_ragged_batches_do_not_fill_the_memory(given):
    for n in range(4, 4 + prototype_checks._most_calls + 3):
        loss([given[0][:, :4], given[1][:, :4], torch.randn(2, n, 4), torch.zeros(2, n).long()])
    assert count() <= prototype_checks._most_calls
