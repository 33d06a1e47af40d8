"""Pooling of many tasks' images against torch.nn.functional, one task after another."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import DOUBLE
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap

from fastmeta import functional as fmF

POOLS = ["max_pool2d", "avg_pool2d"]


def one_by_one(name, x, *arguments):
    return torch.stack([getattr(F, name)(task, *arguments) for task in x])


@given(
    name=st.sampled_from(POOLS),
    shape=st.tuples(*[st.integers(1, 3)] * 3, *[st.integers(3, 8)] * 2),
    kernel=st.integers(1, 3) | st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.none() | st.integers(1, 3),
    padded=st.booleans(),
    samples_first=st.booleans(),
    dtype=st.sampled_from([torch.float32, DOUBLE]),
    seed=st.integers(0, 1000),
)
def test_random_shapes_equal_one_task_after_another(
    name, shape, kernel, stride, padded, samples_first, dtype, seed
):
    torch.manual_seed(seed)
    x = torch.randn(*shape, dtype=dtype)
    if samples_first:
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    x.requires_grad_()
    least = kernel if isinstance(kernel, int) else min(kernel)
    arguments = (kernel, stride, least // 2 if padded else 0)
    y, right = getattr(fmF, name)(x, *arguments), one_by_one(name, x, *arguments)
    torch.testing.assert_close(y, right)
    outer = torch.randn_like(right)
    torch.testing.assert_close(
        torch.autograd.grad(y, x, outer), torch.autograd.grad(right, x, outer)
    )


@pytest.mark.parametrize("size", [1, 2, (2, 3)])
def test_adaptive_average(size):
    x = torch.randn(2, 2, 3, 4, 5, dtype=DOUBLE, requires_grad=True)
    y = fmF.adaptive_avg_pool2d(x, size)
    torch.testing.assert_close(y, one_by_one("adaptive_avg_pool2d", x, size))
    assert gradgradcheck(lambda x: fmF.adaptive_avg_pool2d(x, size).square(), x)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("arguments", [(2,), (3, 2, 1), ((2, 1), 1)])
def test_derivatives_of_any_order(name, arguments):
    x = torch.randn(2, 2, 1, 4, 5, dtype=DOUBLE, requires_grad=True)

    def call(x):
        return getattr(fmF, name)(x, *arguments).sin()

    def slope(x):
        return torch.autograd.grad(call(x).square().sum(), x, create_graph=True)

    assert gradcheck(call, x, check_forward_ad=True)
    assert gradgradcheck(call, x, check_fwd_over_rev=True)
    assert gradgradcheck(slope, x)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("arguments", [(2,), (3, 2, 1)])
def test_torch_func(name, arguments):
    x = torch.randn(3, 2, 2, 1, 4, 5, dtype=DOUBLE)
    close = torch.testing.assert_close

    def second(pool):
        def loss(x):
            return pool(x.sin()).cos().square().sum()

        return grad(lambda x: grad(loss)(x).square().sum())

    def mine(x):
        return getattr(fmF, name)(x, *arguments)

    def plain(x):
        return one_by_one(name, x, *arguments)

    close(vmap(second(mine))(x), torch.stack([second(plain)(part) for part in x]))
    close(vmap(mine, 1)(x.transpose(0, 1)), torch.stack([plain(part) for part in x]))
    close(*(jvp(second(pool), (x[0],), (x[1],)) for pool in (mine, plain)))


def test_flatten():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(fmF.flatten(x), x.reshape(2, 3, 20))
    assert fmF.flatten(x[:, :, 0, 0]).shape == (2, 3, 1)


def test_what_does_not_fit_is_refused():
    x = torch.randn(2, 3, 4, 5, 6)
    for error, said, wrong in [
        (ValueError, r"x must be \[T, S, C, H, W\]", lambda: fmF.max_pool2d(x[0], 2)),
        (TypeError, "floating tensor", lambda: fmF.avg_pool2d(x.long(), 2)),
        (ValueError, "no tasks or no samples", lambda: fmF.max_pool2d(x[:0], 2)),
        (ValueError, "no channels or no pixels", lambda: fmF.adaptive_avg_pool2d(x[..., :0], 1)),
        (ValueError, "kernel_size must be", lambda: fmF.max_pool2d(x, 0)),
        (ValueError, "stride must be", lambda: fmF.avg_pool2d(x, 2, 0)),
        (ValueError, "more than half", lambda: fmF.max_pool2d(x, 2, 1, 2)),
        (ValueError, "does not fit into", lambda: fmF.max_pool2d(x, (6, 1))),
        (ValueError, "output_size must be", lambda: fmF.adaptive_avg_pool2d(x, 0)),
        (ValueError, r"x must be \[T, S, ...\]", lambda: fmF.flatten(x[0, 0, 0, 0])),
    ]:
        with pytest.raises(error, match=said):
            wrong()
