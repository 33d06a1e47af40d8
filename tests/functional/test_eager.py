"""`Function.apply` against that of `torch.autograd.Function`, which it leaves out parts of."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad

from fastmeta.functional.eager import Function

contexts = []


class Scaled(Function):
    """(x, factor) -> factor x"""

    @staticmethod
    def forward(x, factor):
        assert not torch._C._functorch.is_functorch_wrapped_tensor(x)
        return torch.tensor([factor * value for value in x.tolist()], dtype=x.dtype)  # as a kernel

    @staticmethod
    def setup_context(ctx, inputs, output):
        contexts.append(inputs)
        _, ctx.factor = inputs

    @staticmethod
    def backward(ctx, grad):
        return Scaled.apply(grad, ctx.factor), None

    @staticmethod
    def jvp(ctx, tangent, _):
        return Scaled.apply(tangent, ctx.factor)


@pytest.fixture(autouse=True)
def forgotten():
    contexts.clear()


def test_derivatives_are_those_of_pytorch():
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Scaled.apply, (x, 3.0))
    assert torch.autograd.gradgradcheck(Scaled.apply, (x, 3.0))
    y = Scaled.apply(x, 3.0)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert torch.equal(first, torch.full_like(x, 3.0)) and len(contexts) > 2


def test_no_node_is_made_where_nobody_differentiates():
    x = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        y = Scaled.apply(x, 3.0)
    assert y.grad_fn is None and not y.requires_grad and not contexts
    (first,) = torch.autograd.grad(Scaled.apply(x, 3.0).sum(), x)
    assert torch.equal(first, torch.full_like(x, 3.0)) and len(contexts) == 1


def test_a_forward_derivative_is_taken_without_grad_mode_too():
    x, tangent = torch.ones(3), torch.arange(3.0)
    with torch.no_grad(), forward_ad.dual_level():
        y = Scaled.apply(forward_ad.make_dual(x, tangent), 3.0)
        assert torch.equal(forward_ad.unpack_dual(y).tangent, 3 * tangent)
    with torch.no_grad():
        y, found = torch.func.jvp(lambda x: Scaled.apply(x, 3.0), (x,), (tangent,))
    assert torch.equal(found, 3 * tangent)


def test_tensors_that_outlived_their_transform_are_unwrapped():
    kept = []
    torch.func.grad(lambda x: (kept.append(Scaled.apply(x, 2.0)), x.sum())[1])(torch.ones(3))
    assert torch._C._functorch.is_functorch_wrapped_tensor(kept[0])
    assert torch.equal(Scaled.apply(kept[0], 3.0), torch.full((3,), 6.0))
