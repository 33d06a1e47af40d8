"""Equal keys only for tensors that a check cannot tell apart, natively and in plain Python."""

import pytest
import torch
from torch import nn

from fastmeta.backends import cpu, looks
from fastmeta.backends.first_gradients import fresh_gradients, give_gradients


class Subclass(torch.Tensor):
    pass


def plain(monkeypatch):
    monkeypatch.setattr(looks, "_native_looks", looks._nothing)
    monkeypatch.setattr(looks, "_native_looks_and_addresses", looks._nothing)


DIFFERENT = {
    "a": lambda: torch.zeros(2, 3),
    "other shape": lambda: torch.zeros(3, 2),
    "more dimensions": lambda: torch.zeros(2, 3, 1),
    "float64": lambda: torch.zeros(2, 3, dtype=torch.float64),
    "bfloat16": lambda: torch.zeros(2, 3, dtype=torch.bfloat16),
    "float16": lambda: torch.zeros(2, 3, dtype=torch.float16),
    "int32": lambda: torch.zeros(2, 3, dtype=torch.int32),
    "not contiguous": lambda: torch.zeros(3, 2).t(),
    "requires grad": lambda: torch.zeros(2, 3, requires_grad=True),
    "elsewhere": lambda: torch.zeros(2, 3, device="meta"),
    "sparse": lambda: torch.zeros(2, 3).to_sparse(),
    "empty": lambda: torch.zeros(0, 3),
    "a number": lambda: torch.zeros(()),
}


@pytest.mark.parametrize("native", [True, False])
def test_different_tensors_have_different_looks(native, monkeypatch):
    if not native:
        plain(monkeypatch)
    keys = [looks.looks([make()]) for make in DIFFERENT.values()]
    assert len(set(keys)) == len(DIFFERENT)
    assert keys == [looks.looks([make()]) for make in DIFFERENT.values()]


@pytest.mark.parametrize("native", [True, False])
def test_where_one_tensor_ends_is_seen(native, monkeypatch):
    if not native:
        plain(monkeypatch)
    assert looks.looks([torch.zeros(2, 3), torch.zeros(4)]) != looks.looks(
        [torch.zeros(2), torch.zeros(3, 4)]
    )


@pytest.mark.parametrize("native", [True, False])
def test_addresses(native, monkeypatch):
    if not native:
        plain(monkeypatch)
    whole = torch.randn(4, 5)
    tensors = [whole, whole[1:], whole[:, 2], nn.Parameter(whole), torch.zeros(0)]
    key, addresses = looks.looks_and_addresses(tensors)
    assert addresses == [t.data_ptr() for t in tensors]
    others = [torch.zeros_like(whole), *tensors[1:]]
    assert looks.looks_and_addresses(others)[0] == key
    others = [*tensors[:2], whole[:, 2].clone(), *tensors[3:]]
    assert looks.looks_and_addresses(others)[0] != key


def test_a_size_of_one_has_any_stride():
    assert looks.looks([torch.zeros(4, 1).t()]) == looks.looks([torch.zeros(1, 4)])


@pytest.mark.parametrize("other", [None, 3, "x", [1.0]])
def test_what_is_no_tensor_has_no_looks(other):
    assert looks.looks([torch.zeros(1), other]) is None


def test_subclasses_are_looked_at_in_python():
    one = torch.zeros(2).as_subclass(Subclass)
    assert looks.looks([one]) == looks._looks([one])


@pytest.mark.skipif(cpu.native is None, reason="no native module")
@pytest.mark.parametrize("given", [(1,), (torch.zeros(1),), None])
def test_the_native_functions_leave_what_they_do_not_know(given):
    assert cpu.native.looks(given) is None
    assert cpu.native.looks_and_addresses(given) is None


def fresh():
    return torch.zeros(2, requires_grad=True)


def with_gradient(leaf):
    leaf.grad = torch.zeros(2)


@pytest.mark.parametrize(
    "change",
    [
        with_gradient,
        lambda leaf: leaf.register_hook(lambda grad: grad),
        lambda leaf: leaf.register_post_accumulate_grad_hook(lambda leaf: None),
    ],
)
def test_a_leaf_with_anything_on_it_is_not_fresh(change):
    leaf = fresh()
    change(leaf)
    assert fresh_gradients([fresh(), leaf]) is None


def test_what_is_no_leaf_is_not_fresh():
    assert fresh_gradients([fresh() * 2]) is None


def test_a_leaf_that_is_there_twice_is_not_fresh():
    leaf = fresh()
    assert fresh_gradients([leaf, leaf]) is None


@pytest.mark.skipif(not cpu.reads_tensors, reason="read by the native module, of a newer PyTorch")
def test_fresh_leaves_get_gradients_like_them():
    leaves = [fresh(), torch.zeros(2), torch.nn.Parameter(torch.zeros(3, 1, dtype=torch.float64))]
    gradients = fresh_gradients(leaves)
    assert gradients[1] is None
    for leaf, gradient in zip(leaves[::2], gradients[::2], strict=True):
        assert (gradient.shape, gradient.dtype) == (leaf.shape, leaf.dtype)
        assert gradient.is_contiguous() and not gradient.requires_grad


def test_a_gradient_is_given_to_whom_has_none():
    first, second, third = fresh(), fresh(), fresh()
    second.grad = torch.ones(2)
    gradients = [torch.full((2,), 2.0), torch.full((2,), 3.0), None]
    left = give_gradients([first, second, third], gradients)
    if cpu.reads_tensors:
        assert first.grad is gradients[0]
        assert [(leaf is second, g is gradients[1]) for leaf, g in left] == [(True, True)]
    assert second.grad.sum() == 2 and third.grad is None
