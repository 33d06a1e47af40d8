"""What PyTorch's derivatives come to in a forward that takes gradients by a sample's numbers.

Its backward, with create_graph=True, is operations as its forward is: those that differentiation
brings are here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastmeta.functional.row_programs import Rule, Unreadable, Value, held
from fastmeta.inner_loop.arithmetic.forward_reductions import total
from fastmeta.inner_loop.arithmetic.forward_rows import ForwardRows
from fastmeta.inner_loop.arithmetic.forward_shapes import SHAPE_RULES

__all__ = ["GRADIENT_RULES"]


# ---- activations ---------------------------------------------------------------------------------


def _tanh(to: ForwardRows, out: Tensor, grad: Tensor, y: Tensor) -> Value:
    square = held(to, out, to.put_all("multiply", out, y, y))
    slope = held(to, out, to.put_all("subtract", out, 1.0, square))
    return to.put_all("multiply", out, grad, slope)


def _sigmoid(to: ForwardRows, out: Tensor, grad: Tensor, y: Tensor) -> Value:
    rest = held(to, out, to.put_all("subtract", out, 1.0, y))
    slope = held(to, out, to.put_all("multiply", out, y, rest))
    return to.put_all("multiply", out, grad, slope)


def _threshold(to: ForwardRows, out: Tensor, grad: Tensor, x: Tensor, threshold: float) -> Value:
    below = held(to, out, to.put_all("greater_equal", out, float(threshold), x))
    return to.put_all("select", out, below, 0.0, grad)


def _leaky_relu(
    to: ForwardRows, out: Tensor, grad: Tensor, x: Tensor, slope: float, of_result: bool
) -> Value:
    above = held(to, out, to.put_all("greater", out, x, 0.0))
    scaled = held(to, out, to.put_all("multiply", out, grad, float(slope)))
    return to.put_all("select", out, above, grad, scaled)


def _softplus(
    to: ForwardRows, out: Tensor, grad: Tensor, x: Tensor, beta: float, threshold: float
) -> Value:
    scaled = held(to, out, to.put_all("multiply", out, x, float(beta)))
    share = held(to, out, to.put_all("sigmoid", out, scaled))
    soft = held(to, out, to.put_all("multiply", out, grad, share))
    far = held(to, out, to.put_all("greater", out, scaled, float(threshold)))
    return to.put_all("select", out, far, grad, soft)


def _elu(
    to: ForwardRows, out: Tensor, grad: Tensor, alpha: float, scale: float, inputs: float,
    of_result: bool, x: Tensor,
) -> Value:  # fmt: skip
    if of_result or inputs != 1:
        raise Unreadable("it takes a gradient of an ELU in place, or of other constants")
    low = held(to, out, to.put_all("clamp", out, x, x=-float("inf"), y=0.0))  # no large number
    curve = held(to, out, to.put_all("exp", out, low))
    curve = held(to, out, to.put_all("multiply", out, curve, float(alpha * scale)))
    above = held(to, out, to.put_all("greater", out, x, 0.0))
    slope = held(to, out, to.put_all("select", out, above, float(scale), curve))
    return to.put_all("multiply", out, grad, slope)


# ---- softmax -------------------------------------------------------------------------------------


def _softmax(
    to: ForwardRows, out: Tensor, grad: Tensor, y: Tensor, dim: int, dtype: Any
) -> Value:
    product = held(to, out, to.put_all("multiply", out, grad, y))
    share = held(to, out, to.put_all("multiply", out, y, total(to, product, dim)))
    return to.put_all("subtract", out, product, share)


def _log_softmax(
    to: ForwardRows, out: Tensor, grad: Tensor, y: Tensor, dim: int, dtype: Any
) -> Value:
    shares = held(to, out, to.put_all("exp", out, y))
    share = held(to, out, to.put_all("multiply", out, shares, total(to, grad, dim)))
    return to.put_all("subtract", out, grad, share)


# ---- parts ---------------------------------------------------------------------------------------


def _of_slice(
    to: ForwardRows, out: Tensor, grad: Tensor, sizes: Sequence[int], dim: int, start: int,
    end: int, step: int,
) -> Value:  # fmt: skip
    """Zeros around it."""
    if step != 1:
        raise Unreadable("it takes a gradient of every few numbers")
    begin, n = range(out.shape[dim])[start:end].start, out.shape[dim]
    pad = [0, 0] * (out.dim() - 1 - dim % out.dim()) + [begin, n - begin - grad.shape[dim]]
    return SHAPE_RULES["constant_pad_nd"](to, out, grad, pad)


def _of_select(
    to: ForwardRows, out: Tensor, grad: Tensor, sizes: Sequence[int], dim: int, index: int
) -> Value:
    n = out.shape[dim]
    one = held(to, grad.new_empty(grad.shape).unsqueeze(dim % out.dim()), to.value(grad))
    return _of_slice(to, out, one, sizes, dim, index % n, index % n + 1, 1)


# ---- what C++ changes in place -------------------------------------------------------------------


def _masked(to: ForwardRows, out: Tensor, x: Tensor, mask: Tensor, number: float) -> Value:
    to.check_own(x)
    return to.put_all("select", out, mask, float(number), x)


def _copied(to: ForwardRows, out: Tensor, x: Tensor, other: Tensor, *args: Any) -> Value:
    to.check_own(x)
    return SHAPE_RULES["expand"](to, out, other)


def _empty(to: ForwardRows, out: Tensor, x: Tensor, **options: Any) -> Value:
    return Value("unknown")


def _diagonal(to: ForwardRows, out: Tensor, x: Tensor, *dims: int) -> Value:
    """Of zeros, as torch.func.jacrev fills it to make unit vectors."""
    return to.diagonal_of(out, x)


def _filled(to: ForwardRows, out: Tensor, x: Tensor, number: float) -> Value:
    if to.value(x).kind == "diagonal":
        return to.with_its_diagonal(x)
    to.check_own(x)
    return to.of_samples(out, to.put("constant", x=float(number), width=to.columns(out)))


GRADIENT_RULES: dict[str, Rule] = {
    "tanh_backward": _tanh, "sigmoid_backward": _sigmoid, "threshold_backward": _threshold,
    "leaky_relu_backward": _leaky_relu, "softplus_backward": _softplus, "elu_backward": _elu,
    "masked_fill_": _masked, "_softmax_backward_data": _softmax,
    "_log_softmax_backward_data": _log_softmax, "slice_backward": _of_slice,
    "select_backward": _of_select, "diagonal": _diagonal, "empty_like": _empty, "fill_": _filled,
    "copy_": _copied,
}  # fmt: skip
