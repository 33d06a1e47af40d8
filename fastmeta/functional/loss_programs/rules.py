"""What PyTorch's operations come to: (rows, the result, the arguments) -> what the result is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmeta.functional.loss_programs.program import Unreadable
from fastmeta.functional.loss_programs.rows import NO_TOTAL, Rows, Value

__all__ = ["RULES"]

_Rule = Callable[..., Any]


def _unary(op: str) -> _Rule:
    return lambda to, out, x: to.put_all(op, out, x)


def _binary(op: str) -> _Rule:
    def rule(to: Rows, out: Tensor, x: Any, y: Any, *, alpha: float = 1) -> Value:
        return to.put_all(op, out, x, _scaled(to, y, alpha))

    return rule


def _scaled(to: Rows, y: Any, alpha: float) -> Any:
    if alpha == 1:
        return y
    if not isinstance(y, Tensor):
        return y * alpha
    out = torch.empty_like(y)
    to.know(out, to.put_all("multiply", out, y, alpha))
    return out


def _reversed_subtract(to: Rows, out: Tensor, x: Any, y: Any, alpha: float = 1) -> Value:
    return to.put_all("subtract", out, y, _scaled(to, x, alpha))


def _multiply(to: Rows, out: Tensor, x: Any, y: Any) -> Value:
    return to.put_all("multiply", out, x, y)


def _divide(to: Rows, out: Tensor, x: Any, y: Any, **options: Any) -> Value:
    if options:
        raise Unreadable("it rounds")
    by = to.value(y) if isinstance(y, Tensor) or y else None
    if by is not None and by.kind == "count":
        total = to.value(x)
        if total.kind != "sum":
            raise Unreadable("it divides by the number of samples what is no sum over them")
        each = 1.0 if isinstance(y, Tensor) else y / to.samples
        width = to.widths[total.row]
        return Value("mean", to.put("divide", total.row, to.number(each).row, width=width))
    return to.put_all("divide", out, x, y)


def _power(to: Rows, out: Tensor, x: Any, exponent: Any) -> Value:
    if isinstance(exponent, Tensor) or not isinstance(x, Tensor):
        raise Unreadable("it takes powers that are not the same for all samples")
    if exponent == 0.5:
        return to.put_all("sqrt", out, x)
    if exponent not in (1, 2, 3, 4):
        raise Unreadable(f"it takes the power {exponent}")
    result = to.put_all("multiply", out, x, x) if exponent > 1 else to.value(x)
    for _ in range(int(exponent) - 2):
        result = to.step("multiply", result, to.value(x), width=to.widths[result.row])
    return result


def _reciprocal(to: Rows, out: Tensor, x: Tensor) -> Value:
    return to.put_all("divide", out, 1.0, x)


def _inverse_sqrt(to: Rows, out: Tensor, x: Tensor) -> Value:
    root = to.put_all("sqrt", out, x)
    return to.step("divide", to.number(1.0), root, width=to.widths[root.row])


def _relu(to: Rows, out: Tensor, x: Tensor) -> Value:
    below = to.put_all("greater_equal", out, 0.0, x)  # not of NaN, which stays
    return to.step("select", below, to.number(0.0), to.value(x), width=to.columns(out))


def _softplus(
    to: Rows, out: Tensor, x: Tensor, beta: float = 1, threshold: float = 20
) -> Value:  # fmt: skip
    width = to.columns(out)
    scaled = to.put_all("multiply", out, x, beta)
    soft = to.step("softplus", scaled, width=width)
    soft = to.step("divide", soft, to.number(beta), width=width)
    far = to.step("greater", scaled, to.number(threshold), width=width)
    return to.step("select", far, to.value(x), soft, width=width)


def _log_sigmoid(to: Rows, out: Any, x: Tensor) -> tuple[Value]:
    width = to.columns(x)
    soft = to.step("softplus", to.put_all("negative", x, x), width=width)
    return (to.step("negative", soft, width=width),)


def _clamp(to: Rows, out: Tensor, x: Tensor, least: Any = None, most: Any = None) -> Value:
    if isinstance(least, Tensor) or isinstance(most, Tensor):
        raise Unreadable("it clamps by a tensor")
    low = -torch.inf if least is None else float(least)
    high = torch.inf if most is None else float(most)
    if not low <= high:
        raise Unreadable("it clamps between bounds in disorder")
    return to.put_all("clamp", out, x, x=low, y=high)


def _compared(op: str, swapped: bool = False) -> _Rule:
    def rule(to: Rows, out: Tensor, x: Any, y: Any) -> Value:
        return to.put_all(op, out, *((y, x) if swapped else (x, y)))

    return rule


def _equal(to: Rows, out: Tensor, x: Any, y: Any) -> Value:
    if to.labels is not None and to.value(x) == Value("samples", to.labels):
        if isinstance(y, int) and y < 0:
            return Value("nothing")
    return to.put_all("equal", out, x, y)


def _not_equal(to: Rows, out: Tensor, x: Any, y: Any) -> Value:
    return _not(to, out, _equal(to, out, x, y))


def _not(to: Rows, out: Tensor, mask: Any) -> Value:
    value = mask if isinstance(mask, Value) else to.value(mask)
    if value.kind in ("nothing", "all"):
        return Value("all" if value.kind == "nothing" else "nothing")
    return to.step("subtract", to.number(1.0), value, width=to.widths[value.row])


def _filled(to: Rows, out: Tensor, x: Tensor, mask: Tensor, fill: Any) -> Value:
    if to.value(mask).kind == "nothing":
        return to.value(x)
    if to.value(mask).kind == "all" or out is x:
        raise Unreadable("it changes a tensor in place")
    return to.put_all("select", out, mask, fill, x)


def _where(to: Rows, out: Tensor, mask: Tensor, x: Any, y: Any) -> Value:
    if to.value(mask).kind in ("nothing", "all"):
        taken, width = to.value(x if to.value(mask).kind == "all" else y), to.columns(out)
        if taken.kind == "samples" and to.widths[taken.row] == width:
            return taken
        return to.step("add", taken, to.number(0.0), width=width)
    return to.put_all("select", out, mask, x, y)


def _same(to: Rows, out: Tensor, x: Tensor, *args: Any, **options: Any) -> Value:
    value = to.value(x)
    if value.kind != "samples":
        if out.numel() != to.widths[value.row]:
            raise Unreadable("it makes more of a total")
        return value
    width = to.columns(out)
    if width == to.widths[value.row]:
        return value
    return to.put_all("add", out, x, 0.0)  # expanded


def _squeezed(to: Rows, out: Tensor, x: Tensor, *dims: Any) -> Value:
    over = dims[0] if dims else None
    over = [over] if isinstance(over, int) else over
    lone = any(dim % x.dim() == 0 for dim in over) if over is not None else x[0].numel() > 1
    if x.dim() and lone:
        raise Unreadable("it would squeeze a lone sample")
    return _same(to, out, x)


def _cast(to: Rows, out: Tensor, x: Tensor, **options: Any) -> Value:
    if not out.is_floating_point() and x.dtype not in (out.dtype, torch.bool):
        raise Unreadable("it rounds")
    return _same(to, out, x)


def _detached(to: Rows, out: Tensor, x: Tensor) -> Value:
    value = to.value(x)
    if value.kind in ("samples", "constant"):
        return to.put_all("stop", out, x)
    return Value("unknown")  # PyTorch makes some for itself


def _filled_with(number: float | None) -> _Rule:
    def rule(to: Rows, out: Tensor, x: Any, *args: Any, **options: Any) -> Value:
        constant = to.number(float(args[0] if number is None else number))
        return to.step("add", constant, to.number(0.0), width=to.columns(out))

    return rule


def _scalar(to: Rows, out: Tensor, number: float, **options: Any) -> Value:
    return to.value(number)


def _slice(
    to: Rows, out: Tensor, x: Tensor, dim: int = 0, start: Any = None, end: Any = None,
    step: int = 1,
) -> Value:  # fmt: skip
    if dim % x.dim() == 0 and not start and (end is None or end >= 1 << 62) and step == 1:
        return to.value(x)
    _check_dim(x, dim)
    if step != 1:
        raise Unreadable("it takes every few of a sample's numbers")
    begin = range(x.shape[1])[start:].start  # as Python counts from the end
    return to.slice(x, begin, out.shape[1])


def _select(to: Rows, out: Tensor, x: Tensor, dim: int, index: int) -> Value:
    _check_dim(x, dim)
    return to.slice(x, index % x.shape[1], 1)


def _split(to: Rows, out: Any, x: Tensor, sizes: Any, dim: int = 0) -> list[Value]:
    _check_dim(x, dim)
    values, begin = [], 0
    for part in out:
        values.append(to.slice(x, begin, part.shape[1]))
        begin += part.shape[1]
    return values


def _check_dim(x: Tensor, dim: int) -> None:
    if x.dim() != 2 or dim % 2 != 1:
        raise Unreadable("it picks samples, or from samples of more than one dimension")


def _reduce(mean: bool) -> _Rule:
    def rule(
        to: Rows, out: Tensor, x: Tensor, dims: Any = None, keepdim: bool = False,
        dtype: Any = None,
    ) -> Value:  # fmt: skip
        value = to.value(x)
        if value.kind == "all" and not dims and not mean:
            return Value("count")
        if value.kind not in ("samples", "mean", "sum") or not x.is_floating_point():
            raise Unreadable("it counts")
        every = set(range(x.dim()))
        over = {d % x.dim() for d in dims} if dims else every
        total = "mean" if mean else "sum"
        if value.kind == "samples" and over == {0} and to.columns(x) == x[0].numel():
            return Value(total, value.row)  # a total a column
        if over == every:
            kind = total if value.kind == "samples" else value.kind
        elif value.kind == "samples" and over == every - {0}:
            kind = "samples"
        else:
            raise Unreadable(NO_TOTAL)
        return Value(kind, to.mean(value.row) if mean else to.sum(value.row))

    return rule


def _log_sum_exp(to: Rows, x: Tensor, dim: Any) -> Value:
    dims = [dim] if isinstance(dim, int) else list(dim)
    if x.dim() != 2 or [d % 2 for d in dims] != [1] or to.value(x).kind != "samples":
        raise Unreadable("it normalises over samples")
    return to.step("log_sum_exp", to.value(x), width=1)


def _log_softmax(to: Rows, out: Tensor, x: Tensor, dim: int, *args: Any) -> Value:
    return to.step("subtract", to.value(x), _log_sum_exp(to, x, dim), width=to.columns(out))


def _softmax(to: Rows, out: Tensor, x: Tensor, dim: int, *args: Any) -> Value:
    return to.step("exp", _log_softmax(to, out, x, dim), width=to.columns(out))


def _gather(to: Rows, out: Tensor, x: Tensor, dim: int, index: Tensor, **options: Any) -> Value:
    _check_dim(x, dim)
    return _chosen(to, x, index)


def _chosen(to: Rows, x: Tensor, label: Tensor) -> Value:
    of_label = to.labels is not None and to.value(label) == Value("samples", to.labels)
    if not of_label or x.dim() != 2 or x.shape[1] < to.classes:
        raise Unreadable("it picks by what is no label")
    return to.step("choose", to.value(x), to.value(label), width=1)


def _reduced(to: Rows, losses: Value, reduction: int) -> Value:
    """As PyTorch's losses do it: 0 not at all, 1 the mean over all numbers, 2 their sum."""
    if reduction == 0:
        return losses
    if reduction == 1:
        return Value("mean", to.mean(losses.row))
    return Value("sum", to.sum(losses.row))


def _nll(
    to: Rows, out: Any, x: Tensor, label: Tensor, weight: Any, reduction: int, ignored: int
) -> tuple[Value]:
    if weight is not None or ignored >= 0:
        raise Unreadable("it weighs the classes, or ignores one")
    losses = to.step("negative", _chosen(to, x, label), width=1)
    return (_reduced(to, losses, reduction),)


def _of_pairs(losses: Callable[..., Value]) -> _Rule:
    """The rule of a loss of PyTorch, by its losses of pairs of numbers."""

    def rule(to: Rows, out: Tensor, x: Tensor, y: Tensor, *args: Any) -> Value:
        if x.shape != y.shape:
            raise Unreadable("it broadcasts predictions against targets")
        width = to.columns(x)

        def step(op: str, *values: Value) -> Value:
            return to.step(op, *values, width=width)

        return losses(to, step, to.value(x), to.value(y), *args)

    return rule


def _squared(to: Rows, step: Any, x: Value, y: Value, reduction: int = 1) -> Value:
    error = step("subtract", x, y)
    return _reduced(to, step("multiply", error, error), reduction)


def _huber(
    to: Rows, step: Any, x: Value, y: Value, reduction: int = 1, delta: float = 1.0
) -> Value:
    error = step("absolute", step("subtract", x, y))
    return _reduced(to, _bounded(to, step, error, delta), reduction)


def _bounded(to: Rows, step: Any, error: Value, bound: float) -> Value:
    """error^2 / 2 up to the bound, linear from there on; an infinite error has a slope, too."""
    small = Value("samples", to.put("clamp", error.row, y=bound, width=to.widths[error.row]))
    half = step("multiply", small, to.number(0.5))
    return step("multiply", small, step("subtract", error, half))


def _smooth_l1(
    to: Rows, step: Any, x: Value, y: Value, reduction: int = 1, beta: float = 1.0
) -> Value:
    error = step("absolute", step("subtract", x, y))
    if beta == 0:
        return _reduced(to, error, reduction)
    losses = step("divide", _bounded(to, step, error, beta), to.number(beta))
    return _reduced(to, losses, reduction)


def _binary_cross_entropy(
    to: Rows, step: Any, x: Value, y: Value, weight: Any = None, of_ones: Any = None,
    reduction: int = 1,
) -> Value:  # fmt: skip
    if weight is not None or of_ones is not None:
        raise Unreadable("it weighs its terms by a tensor")
    for_one = step("multiply", y, step("softplus", step("negative", x)))
    for_zero = step("multiply", step("subtract", to.number(1.0), y), step("softplus", x))
    return _reduced(to, step("add", for_one, for_zero), reduction)


RULES: dict[str, _Rule] = {
    **{name: _unary(op) for name, op in {
        "neg": "negative", "abs": "absolute", "exp": "exp", "log": "log", "log1p": "log1p",
        "sqrt": "sqrt", "sin": "sine", "cos": "cosine", "tanh": "tanh", "sigmoid": "sigmoid",
        "sign": "sign", "sgn": "sign",
    }.items()},
    "add": _binary("add"), "sub": _binary("subtract"), "rsub": _reversed_subtract,
    "mul": _multiply, "div": _divide, "reciprocal": _reciprocal, "rsqrt": _inverse_sqrt,
    "maximum": _compared("larger"), "minimum": _compared("smaller"),
    "pow": _power,
    "relu": _relu, "softplus": _softplus, "log_sigmoid_forward": _log_sigmoid,
    "clamp": _clamp, "clamp_min": _clamp,
    "clamp_max": lambda to, out, x, most: _clamp(to, out, x, None, most),
    "gt": _compared("greater"), "ge": _compared("greater_equal"),
    "lt": _compared("greater", swapped=True), "le": _compared("greater_equal", swapped=True),
    "eq": _equal, "ne": _not_equal, "bitwise_not": _not, "logical_not": _not,
    "bitwise_and": _compared("multiply"), "logical_and": _compared("multiply"),
    "bitwise_or": _compared("larger"), "logical_or": _compared("larger"),
    "masked_fill": _filled, "masked_fill_": _filled, "where": _where,
    "view": _same, "_unsafe_view": _same, "unsqueeze": _same, "squeeze": _squeezed, "alias": _same,
    "expand": _same, "clone": _same, "_to_copy": _cast, "detach": _detached,
    "zeros_like": _filled_with(0.0), "ones_like": _filled_with(1.0),
    "full_like": _filled_with(None), "scalar_tensor": _scalar,
    "slice": _slice, "select": _select, "split": _split, "split_with_sizes": _split,
    "sum": _reduce(mean=False), "mean": _reduce(mean=True),
    "logsumexp": lambda to, out, x, dim, *args: _log_sum_exp(to, x, dim),
    "_log_softmax": _log_softmax, "_softmax": _softmax, "gather": _gather,
    "nll_loss_forward": _nll, "mse_loss": _of_pairs(_squared), "huber_loss": _of_pairs(_huber),
    "smooth_l1_loss": _of_pairs(_smooth_l1),
    "binary_cross_entropy_with_logits": _of_pairs(_binary_cross_entropy),
}  # fmt: skip
