"""What PyTorch's reductions come to in a forward: sums, the largest numbers, variances, norms."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import prod
from typing import Any

from torch import Tensor

from fastmeta.functional.row_programs import RULES, Rule, Unreadable, Value
from fastmeta.inner_loop.arithmetic.forward_rows import ForwardRows
from fastmeta.inner_loop.arithmetic.forward_shapes import of_rows

__all__ = ["REDUCTION_RULES", "safe_softmax", "softmax", "total"]


# ---- sums --------------------------------------------------------------------------------------


def _last(to: ForwardRows, x: Tensor, dims: Any) -> tuple[Value, list[int], list[int], int]:
    """A tensor with some dimensions behind the others: its sides then, the order of what were
    dimensions, and how many parts the others make, which is what the value is of.
    """
    value, sides = of_rows(to, x)
    dims, at = [dims] if isinstance(dims, int) else dims, to.dim_of_samples(x)
    over = {d % x.dim() for d in dims} if dims else {*range(x.dim())}
    if at in over or not over:
        raise Unreadable("it sums or normalises over samples")
    order = sorted(range(x.dim()), key=lambda d: (d in over, d))
    row = to.permuted(value.row, sides, order)
    kept = [sides[d] for d in range(x.dim()) if d not in over]
    gone = prod(sides[d] for d in over if at is not None and d < at)
    value = Value(value.kind, row, value.before // gone)
    return value, [sides[d] for d in order], order, prod(kept)


def _is_over_samples(to: ForwardRows, x: Tensor, dims: Any) -> bool:
    at = to.dim_of_samples(x)
    over = [dims] if isinstance(dims, int) else dims
    return at is not None and (not over or at in {d % x.dim() for d in over})


def _sum(mean: bool) -> Rule:
    def rule(
        to: ForwardRows, out: Tensor, x: Tensor, dims: Any = None, keepdim: bool = False,
        dtype: Any = None,
    ) -> Value:  # fmt: skip
        if _is_over_samples(to, x, dims):
            return Value("total")
        value, *_, parts = _last(to, x, dims)
        return value._replace(row=(to.means if mean else to.sums)(value.row, parts))

    return rule


def total(to: ForwardRows, x: Tensor, dim: int) -> Tensor:
    """Of a dimension that stays, with one number in it."""
    out = x.new_empty([1 if d == dim % x.dim() else n for d, n in enumerate(x.shape)])
    to.know(out, _sum(mean=False)(to, out, x, [dim], True))
    return out


def _norm(
    to: ForwardRows, out: Tensor, x: Tensor, order: Any = 2, dims: Any = None,
    keepdim: bool = False, *, dtype: Any = None,
) -> Value:  # fmt: skip
    if order not in (1, 2, None) or dtype is not None:
        raise Unreadable(f"it takes a norm of order {order}")
    value, *_, parts = _last(to, x, dims)
    width = to.widths[value.row]
    if order == 1:
        sizes = to.step("absolute", value, width=width)
        return value._replace(row=to.sums(sizes.row, parts))
    square = to.step("multiply", value, value, width=width)
    return _root(to, value._replace(row=to.sums(square.row, parts)))


def _root(to: ForwardRows, total: Value) -> Value:
    """A square root that has the slope 0 where it is 0, as PyTorch's norms and deviations."""
    parts = to.widths[total.row]
    nothing = to.step("equal", total, to.number(0.0), width=parts)
    total = to.step("select", nothing, to.number(1.0), total, width=parts)
    root = to.step("sqrt", total, width=parts)
    return to.step("select", nothing, to.number(0.0), root, width=parts)


def _log_sum_exp(
    to: ForwardRows, out: Tensor, x: Tensor, dims: Any, keepdim: bool = False
) -> Value:
    value, *_, parts = _last(to, x, dims)
    return value._replace(row=to.put("log_sum_exp", value.row, width=parts))


def _log_softmax(to: ForwardRows, out: Tensor, x: Tensor, dim: int, *args: Any) -> Value:
    value, sides, order, parts = _last(to, x, [dim])
    width = to.widths[value.row]
    total = _spread(to, to.put("log_sum_exp", value.row, width=parts), width)
    row = to.put("subtract", value.row, total, width=width)
    back = sorted(range(len(order)), key=order.__getitem__)
    return to.value(x)._replace(row=to.permuted(row, sides, back))


def _softmax_by(of_parts: Callable[[ForwardRows, int, int], int]) -> Rule:
    def rule(to: ForwardRows, out: Tensor, x: Tensor, dim: int, *args: Any) -> Value:
        value, sides, order, parts = _last(to, x, [dim])
        row = of_parts(to, value.row, parts)
        back = sorted(range(len(order)), key=order.__getitem__)
        return to.value(x)._replace(row=to.permuted(row, sides, back))

    return rule


def safe_softmax(to: ForwardRows, row: int, parts: int) -> int:
    """`softmax`, and 0 for a part of which all numbers are minus infinity."""
    width = to.widths[row]
    left_out = to.put("equal", row, to.number(-math.inf).row, width=width)
    each = to.number(float(width // parts)).row
    nothing = _spread(to, to.put("equal", to.sums(left_out, parts), each, width=parts), width)
    zero = to.number(0.0).row
    shares = softmax(to, to.put("select", nothing, zero, row, width=width), parts)
    return to.put("select", nothing, zero, shares, width=width)


def softmax(to: ForwardRows, row: int, parts: int) -> int:
    """Of each of so many parts of a row.

    Divided by what they add up to: the log of a sum of large numbers is not exact, which all of a
    part have in common.
    """
    width = to.widths[row]
    total = to.put("stop", to.put("log_sum_exp", row, width=parts), width=parts)
    less = to.put("subtract", row, _spread(to, total, width), width=width)
    shares = to.put("exp", less, width=width)
    return to.put("divide", shares, _spread(to, to.sums(shares, parts), width), width=width)


def _spread(to: ForwardRows, row: int, width: int) -> int:
    """A number of each part, for all of the part."""
    parts = to.widths[row]
    return to.repeated(row, width // parts, 1) if parts > 1 else row


def _cumulative_sum(to: ForwardRows, out: Tensor, x: Tensor, dim: int, **options: Any) -> Value:
    """Sums of 2, 4, 8, ... neighbours."""
    (value, sides), dim = of_rows(to, x), dim % x.dim()
    if dim == to.dim_of_samples(x) or options.get("dtype") is not None:
        raise Unreadable("it adds up samples")
    before, n, after = prod(sides[:dim]), sides[dim], prod(sides[dim + 1 :])
    row, each, width = to.turned(value.row, before, n, after), before * after, prod(sides)
    distance = 1
    while distance < n:
        nothing = to.put("constant", width=distance * each)
        earlier = to.put("slice", row, width=width - distance * each)
        shifted = to.put("join", nothing, earlier, width=width)
        row = to.put("add", row, shifted, width=width)
        distance *= 2
    return value._replace(row=to.turned(row, n, before, after))


def _product(to: ForwardRows, out: Tensor, x: Tensor, dim: Any, keepdim: bool = False) -> Value:
    if not isinstance(dim, int):
        raise Unreadable("it multiplies samples by one another")
    value, row, n, parts = _columns(to, x, dim)
    return value._replace(row=_folded(to, "multiply", row, n, parts))


# ---- the largest -------------------------------------------------------------------------------


def _columns(to: ForwardRows, x: Tensor, dims: Any) -> tuple[Value, int, int, int]:
    """A value, its numbers as [n, parts] where n are to be made one, n and the parts."""
    value, *_, parts = _last(to, x, dims)
    n = to.widths[value.row] // parts
    return value, to.turned(value.row, parts, n, 1), n, parts


def _folded(to: ForwardRows, op: str, row: int, n: int, parts: int) -> int:
    """[n, parts] as [parts], by halves."""
    left = []
    while n > 1:
        if n % 2:
            left.append(to.put("slice", row, x=(n - 1) * parts, width=parts))
        n //= 2
        width = n * parts
        halves = [to.put("slice", row, x=i * width, width=width) for i in (0, 1)]
        row = to.put(op, *halves, width=width)
    for last in left:
        row = to.put(op, row, last, width=parts)
    return row


def _shared(sign: int) -> Rule:
    """amax and amin, whose slope equals share."""

    def rule(
        to: ForwardRows, out: Tensor, x: Tensor, dims: Any = None, keepdim: bool = False
    ) -> Value:
        value, *_, parts = _last(to, x, dims)
        width = to.widths[value.row]
        n, row = width // parts, _signed(to, value.row, sign)
        most = _folded(to, "larger", to.turned(row, parts, n, 1), n, parts)
        most = to.repeated(most, n, 1) if parts > 1 else most
        among = to.put("equal", row, most, width=width)
        taken = to.put("select", among, row, to.number(0.0).row, width=width)
        result = to.put("divide", to.sums(taken, parts), to.sums(among, parts), width=parts)
        return value._replace(row=_signed(to, result, sign))

    return rule


def _first(sign: int, of_pairs: Rule) -> Rule:
    """max and min over a dimension, whose slope the first of equals has; or of two tensors."""

    def rule(to: ForwardRows, out: Any, x: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
        if isinstance(dim, Tensor):
            return of_pairs(to, out, x, dim)
        if dim is None:
            raise Unreadable("it takes the largest number of all samples")
        value, row, n, parts = _columns(to, x, dim)
        row = _signed(to, row, sign)
        while n > 1:
            row, n = _winners(to, row, n, parts), (n + 1) // 2
        return value._replace(row=_signed(to, row, sign)), Value("unknown")

    return rule


def _winners(to: ForwardRows, row: int, n: int, parts: int) -> int:
    """Of neighbours [n, parts] the larger ones, the first of equals; NaN is larger than all."""
    half, width = n // 2, n // 2 * parts
    pairs = row if n % 2 == 0 else to.put("slice", row, width=2 * width)
    pairs = to.turned(pairs, half, 2, parts)
    first, second = (to.put("slice", pairs, x=i * width, width=width) for i in (0, 1))
    above = to.put("greater", second, first, width=width)
    number = to.put("equal", second, second, width=width)
    unknown = to.put("subtract", to.number(1.0).row, number, width=width)
    above = to.put("larger", above, unknown, width=width)
    won = to.put("select", above, second, first, width=width)
    if n % 2 == 0:
        return won
    last = to.put("slice", row, x=2 * width, width=parts)
    return to.put("join", won, last, width=width + parts)


def _signed(to: ForwardRows, row: int, sign: int) -> int:
    return row if sign > 0 else to.put("negative", row, width=to.widths[row])


# ---- variances ---------------------------------------------------------------------------------


def _variance(
    to: ForwardRows, out: Any, x: Tensor, dims: Any = None, unbiased: bool = True,
    keepdim: bool = False, *, correction: Any = None,
) -> Value:  # fmt: skip
    if isinstance(dims, bool):
        raise Unreadable("it sums or normalises over samples")
    value, *_, parts = _last(to, x, dims)
    width = to.widths[value.row]
    n = width // parts
    less = n - (int(unbiased) if correction is None else correction)
    if less <= 0:
        raise Unreadable("it takes a variance of too few numbers")
    mean = to.means(value.row, parts)
    mean = to.repeated(mean, n, 1) if parts > 1 else mean
    off = to.put("subtract", value.row, mean, width=width)
    total = to.sums(to.put("multiply", off, off, width=width), parts)
    share = to.number(1 / less).row
    return value._replace(row=to.put("multiply", total, share, width=parts))


def _deviation(to: ForwardRows, out: Any, x: Tensor, *args: Any, **options: Any) -> Value:
    return _root(to, _variance(to, out, x, *args, **options))


def _with_mean(of: Rule) -> Rule:
    def rule(
        to: ForwardRows, out: Any, x: Tensor, dims: Any = None, *args: Any, **options: Any
    ) -> tuple[Value, Value]:
        value, *_, parts = _last(to, x, dims)
        mean = value._replace(row=to.means(value.row, parts))
        return of(to, out, x, dims, *args, **options), mean

    return rule


REDUCTION_RULES: dict[str, Rule] = {
    "sum": _sum(mean=False), "mean": _sum(mean=True), "cumsum": _cumulative_sum, "prod": _product,
    "amax": _shared(1), "amin": _shared(-1),
    "max": _first(1, RULES["maximum"]), "min": _first(-1, RULES["minimum"]),
    "var": _variance, "std": _deviation,
    "var_mean": _with_mean(_variance), "std_mean": _with_mean(_deviation),
    "linalg_vector_norm": _norm, "norm": _norm, "logsumexp": _log_sum_exp,
    "_log_softmax": _log_softmax, "_softmax": _softmax_by(softmax),
    "_safe_softmax": _softmax_by(safe_softmax),
}  # fmt: skip
