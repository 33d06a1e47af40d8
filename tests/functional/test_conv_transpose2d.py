"""conv_transpose2d: one task after another by torch.nn.functional is what is right."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import DOUBLE
from torch.autograd import gradcheck, gradgradcheck

from fastmeta import functional as fmF


def draw(*shape, dtype=DOUBLE):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def one_by_one(x, weight, bias, stride, padding, more, dilation):
    def of(parameter, rank, t):
        return parameter if parameter is None or parameter.dim() == rank else parameter[t]

    return torch.stack([
        F.conv_transpose2d(
            x[t], of(weight, 4, t), of(bias, 1, t), stride, padding, more, 1, dilation
        )
        for t in range(len(x))
    ])  # fmt: skip


@given(
    shape=st.tuples(*[st.integers(1, 3)] * 4),
    image=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
    more=st.integers(0, 2),
    dilation=st.integers(1, 3),
    shared=st.booleans(),
    with_bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_random_shapes_equal_one_task_after_another(
    shape, image, kernel, stride, padding, more, dilation, shared, with_bias, seed
):
    torch.manual_seed(seed)
    t, s, c, o = shape
    sides = zip(image, kernel, strict=True)
    least = min((n - 1) * stride - 2 * padding + dilation * (k - 1) + 1 for n, k in sides)
    if more >= stride or least < 1:
        return
    tasks = [] if shared else [t]
    x, weight = draw(t, s, c, *image), draw(*tasks, c, o, *kernel)
    bias = draw(*tasks, o) if with_bias else None
    inputs = [z for z in (x, weight, bias) if z is not None]
    ours = fmF.conv_transpose2d(x, weight, bias, stride, padding, more, dilation)
    right = one_by_one(x, weight, bias, stride, padding, more, dilation)
    torch.testing.assert_close(ours, right)
    outer = torch.randn_like(right)
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, outer), torch.autograd.grad(right, inputs, outer)
    )


def test_derivatives_of_any_order():
    inputs = draw(2, 2, 1, 2, 3), draw(2, 1, 2, 2, 3), draw(2)

    def call(x, weight, bias):
        return fmF.conv_transpose2d(x, weight, bias, (2, 1), (1, 0), (1, 0)).sin()

    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


def test_what_does_not_fit_is_refused():
    x, weight = draw(2, 3, 2, 5, 4), draw(2, 2, 3, 3, 2)
    for error, said, wrong in [
        (ValueError, r"x must be \[T, S, C, H, W\]", lambda: fmF.conv_transpose2d(x[0], weight)),
        (ValueError, r"weight must be \[2, 3, 3, 2\]", lambda: fmF.conv_transpose2d(x, weight[:1])),
        (ValueError, "weight must be", lambda: fmF.conv_transpose2d(x, weight[0, 0])),
        (TypeError, "weight must be a tensor", lambda: fmF.conv_transpose2d(x, None)),
        (ValueError, "bias must be", lambda: fmF.conv_transpose2d(x, weight, draw(4))),
        (ValueError, "less than stride", lambda: fmF.conv_transpose2d(x, weight, None, 1, 0, 1)),
        (ValueError, "leaves nothing", lambda: fmF.conv_transpose2d(x, weight, None, 1, 9)),
        (ValueError, "dilation must be", lambda: fmF.conv_transpose2d(x, weight, dilation=0)),
    ]:
        with pytest.raises(error, match=said):
            wrong()
