"""Pooling of many tasks' images against torch.nn.functional, one task after another."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import DOUBLE
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap

import fastmeta as fm
from fastmeta import functional as fmF
from fastmeta.backends import cpu
from fastmeta.functional.pooling import largest, window_of

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


# ---- the native kernels of windows of 2 x 2 -----------------------------------------------------

needs_native = pytest.mark.skipif(cpu.native is None, reason="the native kernels are not built")
LAYOUTS = {
    "samples first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "channels last": lambda x: x.movedim(2, 4).contiguous().movedim(4, 2),
    "turned": lambda x: x.transpose(3, 4).contiguous().transpose(3, 4),
}


def of_two(pool, x, layout=lambda x: x):
    """The largest, the gradient, and the gradient for what came into it."""
    x = layout(x).requires_grad_()
    y = pool(x)
    generator = torch.Generator().manual_seed(1)
    outer = layout(torch.randn(y.shape, generator=generator).to(y)).requires_grad_()
    (first,) = torch.autograd.grad(y, x, outer, create_graph=True)
    along = torch.randn(x.shape, generator=generator).to(x)
    (second,) = torch.autograd.grad(first, outer, layout(along))
    return [z.detach() for z in (y, first, second)]


@needs_native
@pytest.mark.parametrize("layout", LAYOUTS)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 20)),
    size=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    values=st.sampled_from(["any", "ties", "nan", "infinite"]),
    dtype=st.sampled_from([torch.float32, DOUBLE]),
    seed=st.integers(0, 1000),
)
def test_windows_of_two_are_those_of_pytorch_bit_for_bit(layout, shape, size, values, dtype, seed):
    torch.manual_seed(seed)
    x = torch.randn(*shape, *size, dtype=dtype)
    if values == "ties":
        x = x.round()
    elif values != "any":
        x[torch.rand_like(x) < 0.2] = float("nan") if values == "nan" else -float("inf")
    at = largest(LAYOUTS[layout](x), window_of(2))[1]
    assert at.is_floating_point() or size[1] < 16
    ours = of_two(lambda x: fmF.max_pool2d(x, 2), x.clone(), LAYOUTS[layout])
    right = of_two(lambda x: one_by_one("max_pool2d", x, 2), x.clone())
    for found, exact in zip(ours, right, strict=True):
        torch.testing.assert_close(found, exact, rtol=0, atol=0, equal_nan=True)


@needs_native
def test_places_of_the_kernels_can_be_read_without_them():
    x = torch.randn(2, 3, 4, 7, 17, dtype=DOUBLE, requires_grad=True)

    def slopes(first, then):
        with fm.use_backend(first):
            y = fmF.max_pool2d(x.sin(), 2)
        with fm.use_backend(then):
            (first_order,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            return first_order, *torch.autograd.grad(first_order.cos().sum(), x)

    torch.testing.assert_close(slopes("cpu", "reference"), slopes("reference", "reference"))
    torch.testing.assert_close(slopes("reference", "cpu"), slopes("reference", "reference"))


@needs_native
def test_threads_change_no_bit():
    x = torch.randn(3, 40, 8, 21, 22)
    threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(of_two(lambda x: fmF.max_pool2d(x, 2), x.clone()))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


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
