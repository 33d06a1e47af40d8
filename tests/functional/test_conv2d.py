"""conv2d and its two gradients: one task after another by torch.nn.functional is what is right."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import DOUBLE
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap

from fastmeta import functional as fmF
from fastmeta.functional.conv2d import conv2d_input_gradient, conv2d_weight_gradient


def draw(*shape, dtype=DOUBLE):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def one_by_one(x, weight, bias, *window):
    def of(parameter, rank, t):
        return parameter if parameter is None or parameter.dim() == rank else parameter[t]

    tasks = [
        F.conv2d(x[t], of(weight, 4, t), of(bias, 1, t), *window) for t in range(len(x))
    ]
    return torch.stack(tasks)


def problem(
    shared=(), with_bias=True, t=2, s=3, c=2, o=3, image=(5, 4), kernel=(3, 2), groups=1
):
    weight = draw(*([] if "weight" in shared else [t]), o, c // groups, *kernel)
    bias = draw(*([] if "bias" in shared else [t]), o) if with_bias else None
    return draw(t, s, c, *image), weight, bias


@given(
    t=st.integers(1, 4),
    s=st.integers(1, 4),
    c=st.integers(1, 4),
    o=st.integers(1, 4),
    image=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 3) | st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.integers(0, 2) | st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.just(1) | st.integers(1, 3) | st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.sampled_from([1, 1, 1, 2, 3]),
    shared=st.sets(st.sampled_from(["weight", "bias"])),
    with_bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, DOUBLE]),
    seed=st.integers(0, 1000),
)
def test_random_shapes_equal_one_task_after_another(
    t, s, c, o, image, kernel, stride, padding, dilation, groups, shared, with_bias, dtype, seed
):
    torch.manual_seed(seed)
    borders = (padding, padding) if isinstance(padding, int) else padding
    apart = (dilation, dilation) if isinstance(dilation, int) else dilation
    sides = zip(image, borders, kernel, apart, strict=True)
    if any(n + 2 * p < d * (k - 1) + 1 for n, p, k, d in sides):
        return
    window = (stride, padding, dilation, groups)
    x, weight, bias = (
        None if z is None else z.detach().to(dtype).requires_grad_()
        for z in problem(shared, with_bias, t, s, c * groups, o * groups, image, kernel, groups)
    )
    inputs = [z for z in (x, weight, bias) if z is not None]
    ours = fmF.conv2d(x, weight, bias, *window)
    right = one_by_one(x, weight, bias, *window)
    torch.testing.assert_close(ours, right)
    outer = torch.randn_like(right)
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, outer), torch.autograd.grad(right, inputs, outer)
    )


WINDOWS = [(1, 0, 1), (2, 1, 1), ((2, 1), (0, 2), 1), ((2, 1), 2, (3, 2))]
SMALL = {"s": 2, "c": 1, "o": 2, "image": (3, 4), "kernel": (2, 2)}


@pytest.mark.parametrize(
    "window, shared, groups",
    [
        *((window, (), 1) for window in WINDOWS),
        ((2, 1, 1), ("weight",), 1),
        ((1, 0, 1), ("weight", "bias"), 1),
        ((1, 1, 2), (), 2),
        ((2, 1, 1), ("weight", "bias"), 2),
    ],
)
def test_derivatives_of_any_order(window, shared, groups):
    x, weight, bias = problem(shared, **{**SMALL, "c": groups}, groups=groups)

    def call(x, weight, bias):
        return fmF.conv2d(x, weight, bias, *window, groups)

    def slope(x, weight):
        loss = call(x, weight, bias).sin().sum()
        return torch.autograd.grad(loss, (x, weight), create_graph=True)

    assert gradcheck(call, (x, weight, bias), check_forward_ad=True)
    assert gradgradcheck(call, (x, weight, bias), check_fwd_over_rev=True)
    assert gradgradcheck(slope, (x, weight))


@pytest.mark.parametrize("window", WINDOWS)
def test_the_gradients_are_operations_of_their_own(window):
    x, weight, _ = problem(**SMALL)
    y = fmF.conv2d(x, weight, None, *window)
    outer = torch.randn_like(y).requires_grad_()
    of_x, of_weight = torch.autograd.grad(y, (x, weight), outer)
    size, kernel = x.shape[-2:], weight.shape[-2:]
    torch.testing.assert_close(
        conv2d_input_gradient(outer, weight, size, *window), of_x
    )
    torch.testing.assert_close(
        conv2d_weight_gradient(outer, x, kernel, *window), of_weight
    )
    plain = [
        torch.nn.grad.conv2d_input(x[t].shape, weight[t], outer[t], *window)
        for t in range(2)
    ]
    torch.testing.assert_close(of_x, torch.stack(plain))
    assert gradgradcheck(
        lambda g, w: conv2d_input_gradient(g, w, size, *window), (outer, weight)
    )
    assert gradgradcheck(
        lambda g, x: conv2d_weight_gradient(g, x, kernel, *window), (outer, x)
    )


def test_a_shared_weight_gets_the_sum_over_tasks():
    x, weight, _ = problem(("weight",))
    y = fmF.conv2d(x, weight)
    outer = torch.randn_like(y)
    (ours,) = torch.autograd.grad(y, weight, outer)
    spread = weight.detach().expand(2, *weight.shape).clone().requires_grad_()
    (per_task,) = torch.autograd.grad(fmF.conv2d(x, spread), spread, outer)
    assert ours.shape == weight.shape
    torch.testing.assert_close(ours, per_task.sum(0))


def test_any_memory_layout():
    x, weight, bias = problem()
    strange = x.detach().permute(4, 2, 0, 3, 1).contiguous().permute(2, 4, 1, 3, 0)
    assert torch.equal(strange, x) and not strange.is_contiguous()
    torch.testing.assert_close(fmF.conv2d(strange, weight, bias), fmF.conv2d(x, weight, bias))


def scalar(function):
    return lambda *inputs: function(*inputs).sin().sum()


def call(x, weight, bias):
    return fmF.conv2d(x, weight, bias, 2, 1)


def plain(x, weight, bias):
    return one_by_one(x, weight, bias, 2, 1)


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 0, None), (1, 0, 0)])
def test_vmap_makes_more_tasks(in_dims):
    whole = [torch.randn(4, *z.shape, dtype=DOUBLE) for z in problem()]
    inputs = [
        z[0] if dim is None else z.movedim(0, dim) for z, dim in zip(whole, in_dims, strict=True)
    ]
    assert_close = torch.testing.assert_close
    assert_close(vmap(call, in_dims)(*inputs), vmap(plain, in_dims)(*inputs))
    for which in range(3):
        ours = vmap(grad(scalar(grad(scalar(call), 1)), which), in_dims)(*inputs)
        assert_close(ours, vmap(grad(scalar(grad(scalar(plain), 1)), which), in_dims)(*inputs))


def test_forward_mode():
    inputs = tuple(z.detach() for z in problem())
    direction = tuple(torch.randn_like(z) for z in inputs)
    assert_close = torch.testing.assert_close
    assert_close(jvp(call, inputs, direction), jvp(plain, inputs, direction))
    slopes = [grad(scalar(f), (0, 1, 2)) for f in (call, plain)]
    assert_close(*(jvp(slope, inputs, direction) for slope in slopes))
    along = [scalar(lambda *z, f=f: jvp(f, z, direction)[1]) for f in (call, plain)]
    assert_close(*(grad(f, (0, 1, 2))(*inputs) for f in along))


def test_jvp_of_jvp_is_refused_and_never_zero():
    inputs = tuple(z.detach() for z in problem())
    with pytest.raises(RuntimeError, match="jvp of jvp"):
        jvp(lambda *z: jvp(call, z, inputs)[1], inputs, inputs)


def test_what_does_not_fit_is_refused():
    x, weight, bias = problem()
    for error, said, wrong in [
        (ValueError, r"x must be \[T, S, C, H, W\]", lambda: fmF.conv2d(x[0], weight)),
        (ValueError, "no tasks or no samples", lambda: fmF.conv2d(x[:, :0], weight)),
        (TypeError, "x must be a floating tensor", lambda: fmF.conv2d(x.long(), weight)),
        (ValueError, r"weight must be \[3, 2, 3, 2\]", lambda: fmF.conv2d(x, weight[:1])),
        (ValueError, "weight must be", lambda: fmF.conv2d(x, weight[0, 0])),
        (ValueError, "weight must be", lambda: fmF.conv2d(x[:, :, :1], weight)),
        (TypeError, "weight is torch.float32", lambda: fmF.conv2d(x, weight.float())),
        (TypeError, "weight must be a tensor", lambda: fmF.conv2d(x, 3)),
        (ValueError, "bias must be", lambda: fmF.conv2d(x, weight, bias[:, :2])),
        (ValueError, "stride must be", lambda: fmF.conv2d(x, weight, bias, 0)),
        (ValueError, "padding must be", lambda: fmF.conv2d(x, weight, bias, 1, -1)),
        (ValueError, "padding must be", lambda: fmF.conv2d(x, weight, bias, 1, (1, 1, 1))),
        (ValueError, "does not fit into", lambda: fmF.conv2d(x[..., :1], weight)),
        (ValueError, r"dilation \[9, 9\] does not", lambda: fmF.conv2d(x, weight, dilation=9)),
        (ValueError, "dilation must be", lambda: fmF.conv2d(x, weight, dilation=0)),
        (ValueError, "groups must divide", lambda: fmF.conv2d(x, weight, groups=2)),
        (ValueError, "groups must divide", lambda: fmF.conv2d(x, weight, groups=0)),
        (TypeError, "groups must be a whole", lambda: fmF.conv2d(x, weight, groups=1.0)),
        (ValueError, "grad must be", lambda: conv2d_input_gradient(x, weight, (9, 9))),
        (ValueError, "x must be", lambda: conv2d_weight_gradient(x[:1], x, 1)),
    ]:
        with pytest.raises(error, match=said):
            wrong()


SPANNING = [  # (kernel, padding, stride)
    ((3, 8), 0, 1), ((3, 8), (1, 0), (2, 3)), ((9, 2), (0, 1), 1), ((9, 8), 0, (1, 5)),
    ((9, 1), 0, 2),
]  # fmt: skip


@pytest.mark.parametrize("kernel, padding, stride", SPANNING)
@pytest.mark.parametrize("channels", [1, 3, 17])
@pytest.mark.parametrize("shared", [False, True])
def test_kernels_over_a_whole_side(kernel, padding, stride, channels, shared):
    x, bias = draw(2, 3, channels, 9, 8), draw(2, 4)
    weight = draw(*([4] if shared else [2, 4]), channels, *kernel)

    def derivatives(convolve):
        y = convolve(x, weight, bias, stride, padding)
        first = torch.autograd.grad(y.sin().sum(), (x, weight, bias), create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), (x, weight, bias))
        return y, *first, *second

    for a, b in zip(derivatives(fmF.conv2d), derivatives(one_by_one), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shared", [(), ("weight", "bias")])
@pytest.mark.parametrize("padding", [0, 1, (2, 0)])
@pytest.mark.parametrize("image", [(4, 4), (7, 9), (16, 6)])
@pytest.mark.parametrize("channels, outputs", [(32, 32), (40, 33), (64, 48)])
def test_channels_enough_for_tiles(channels, outputs, image, padding, shared):
    """csrc/cpu/correlation_in_tiles.h, and the derivatives through its derivatives."""
    size = {"s": 6, "c": channels, "o": outputs, "image": image, "kernel": (3, 3)}
    x, weight, bias = problem(shared, **size)

    def derivatives(run):
        y = run(x, weight, bias, 1, padding)
        first = torch.autograd.grad(y.sin().sum(), (x, weight, bias), create_graph=True)
        total = first[0].cos().sum() + first[1].sin().sum()
        return [y, *first, *torch.autograd.grad(total, (x, weight))]

    for ours, right in zip(derivatives(fmF.conv2d), derivatives(one_by_one), strict=True):
        torch.testing.assert_close(ours, right)


def test_channels_last_of_channels_enough_for_tiles():
    x, weight, bias = problem(s=5, c=48, o=32, image=(9, 8), kernel=(3, 3))
    turned = x.detach().permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    torch.testing.assert_close(
        fmF.conv2d(turned, weight, bias, 1, 1), one_by_one(x, weight, bias, 1, 1)
    )
