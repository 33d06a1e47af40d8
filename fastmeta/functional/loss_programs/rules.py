"""What PyTorch's operations come to in a loss, beside those on numbers: totals, labels, losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmeta.functional.loss_programs.rows import LossRows
from fastmeta.functional.row_programs import NO_TOTAL, RULES, Rule, Unreadable, Value

__all__ = ["LOSS_RULES"]


def _relu(to: LossRows, out: Tensor, x: Tensor) -> Value:
    below = to.put_all("greater_equal", out, 0.0, x)  # not of NaN, which stays
    return to.step("select", below, to.number(0.0), to.value(x), width=to.columns(out))


def _softplus(
    to: LossRows, out: Tensor, x: Tensor, beta: float = 1, threshold: float = 20
) -> Value:  # fmt: skip
    width = to.columns(out)
    scaled = to.put_all("multiply", out, x, beta)
    soft = to.step("softplus", scaled, width=width)
    soft = to.step("divide", soft, to.number(beta), width=width)
    far = to.step("greater", scaled, to.number(threshold), width=width)
    return to.step("select", far, to.value(x), soft, width=width)


def _cast(to: LossRows, out: Tensor, x: Tensor, **options: Any) -> Value:
    if not out.is_floating_point() and x.dtype not in (out.dtype, torch.bool):
        raise Unreadable("it rounds")
    return _same(to, out, x)


def _equal(to: LossRows, out: Tensor, x: Any, y: Any) -> Value:
    if to.labels is not None and to.value(x) == Value("samples", to.labels):
        if isinstance(y, int) and y < 0:
            return Value("nothing")
    return to.put_all("equal", out, x, y)


def _not_equal(to: LossRows, out: Tensor, x: Any, y: Any) -> Value:
    return RULES["logical_not"](to, out, _equal(to, out, x, y))


def _same(to: LossRows, out: Tensor, x: Tensor, *args: Any, **options: Any) -> Value:
    value = to.value(x)
    if value.kind != "samples":
        if out.numel() != to.widths[value.row]:
            raise Unreadable("it makes more of a total")
        return value
    width = to.columns(out)
    if width == to.widths[value.row]:
        return value
    return to.put_all("add", out, x, 0.0)  # expanded


def _squeezed(to: LossRows, out: Tensor, x: Tensor, *dims: Any) -> Value:
    over = dims[0] if dims else None
    over = [over] if isinstance(over, int) else over
    lone = any(dim % x.dim() == 0 for dim in over) if over is not None else x[0].numel() > 1
    if x.dim() and lone:
        raise Unreadable("it would squeeze a lone sample")
    return _same(to, out, x)


def _detached(to: LossRows, out: Tensor, x: Tensor) -> Value:
    value = to.value(x)
    if value.kind in ("samples", "constant"):
        return to.put_all("stop", out, x)
    return Value("unknown")  # PyTorch makes some for itself


def _slice(
    to: LossRows, out: Tensor, x: Tensor, dim: int = 0, start: Any = None, end: Any = None,
    step: int = 1,
) -> Value:  # fmt: skip
    if dim % x.dim() == 0 and not start and (end is None or end >= 1 << 62) and step == 1:
        return to.value(x)
    _check_dim(x, dim)
    if step != 1:
        raise Unreadable("it takes every few of a sample's numbers")
    begin = range(x.shape[1])[start:].start  # as Python counts from the end
    return to.slice(x, begin, out.shape[1])


def _select(to: LossRows, out: Tensor, x: Tensor, dim: int, index: int) -> Value:
    _check_dim(x, dim)
    return to.slice(x, index % x.shape[1], 1)


def _split(to: LossRows, out: Any, x: Tensor, sizes: Any, dim: int = 0) -> list[Value]:
    _check_dim(x, dim)
    values, begin = [], 0
    for part in out:
        values.append(to.slice(x, begin, part.shape[1]))
        begin += part.shape[1]
    return values


def _check_dim(x: Tensor, dim: int) -> None:
    if x.dim() != 2 or dim % 2 != 1:
        raise Unreadable("it picks samples, or from samples of more than one dimension")


def _reduce(mean: bool) -> Rule:
    def rule(
        to: LossRows, out: Tensor, x: Tensor, dims: Any = None, keepdim: bool = False,
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


def _log_sum_exp(to: LossRows, x: Tensor, dim: Any) -> Value:
    dims = [dim] if isinstance(dim, int) else list(dim)
    if x.dim() != 2 or [d % 2 for d in dims] != [1] or to.value(x).kind != "samples":
        raise Unreadable("it normalises over samples")
    return to.step("log_sum_exp", to.value(x), width=1)


def _log_softmax(to: LossRows, out: Tensor, x: Tensor, dim: int, *args: Any) -> Value:
    return to.step("subtract", to.value(x), _log_sum_exp(to, x, dim), width=to.columns(out))


def _softmax(to: LossRows, out: Tensor, x: Tensor, dim: int, *args: Any) -> Value:
    return to.step("exp", _log_softmax(to, out, x, dim), width=to.columns(out))


def _gather(to: LossRows, out: Tensor, x: Tensor, dim: int, index: Tensor, **options: Any) -> Value:
    _check_dim(x, dim)
    return _chosen(to, x, index)


def _chosen(to: LossRows, x: Tensor, label: Tensor) -> Value:
    of_label = to.labels is not None and to.value(label) == Value("samples", to.labels)
    if not of_label or x.dim() != 2 or x.shape[1] < to.classes:
        raise Unreadable("it picks by what is no label")
    return to.step("choose", to.value(x), to.value(label), width=1)


def _reduced(to: LossRows, losses: Value, reduction: int) -> Value:
    """As PyTorch's losses do it: 0 not at all, 1 the mean over all numbers, 2 their sum."""
    if reduction == 0:
        return losses
    if reduction == 1:
        return Value("mean", to.mean(losses.row))
    return Value("sum", to.sum(losses.row))


def _nll(
    to: LossRows, out: Any, x: Tensor, label: Tensor, weight: Any, reduction: int, ignored: int
) -> tuple[Value]:
    if weight is not None or ignored >= 0:
        raise Unreadable("it weighs the classes, or ignores one")
    losses = to.step("negative", _chosen(to, x, label), width=1)
    return (_reduced(to, losses, reduction),)


def _of_pairs(losses: Callable[..., Value]) -> Rule:
    """The rule of a loss of PyTorch, by its losses of pairs of numbers."""

    def rule(to: LossRows, out: Tensor, x: Tensor, y: Tensor, *args: Any) -> Value:
        if x.shape != y.shape:
            raise Unreadable("it broadcasts predictions against targets")
        width = to.columns(x)

        def step(op: str, *values: Value) -> Value:
            return to.step(op, *values, width=width)

        return losses(to, step, to.value(x), to.value(y), *args)

    return rule


def _squared(to: LossRows, step: Any, x: Value, y: Value, reduction: int = 1) -> Value:
    error = step("subtract", x, y)
    return _reduced(to, step("multiply", error, error), reduction)


def _huber(
    to: LossRows, step: Any, x: Value, y: Value, reduction: int = 1, delta: float = 1.0
) -> Value:
    error = step("absolute", step("subtract", x, y))
    return _reduced(to, _bounded(to, step, error, delta), reduction)


def _bounded(to: LossRows, step: Any, error: Value, bound: float) -> Value:
    """error^2 / 2 up to the bound, linear from there on; an infinite error has a slope, too."""
    small = Value("samples", to.put("clamp", error.row, y=bound, width=to.widths[error.row]))
    half = step("multiply", small, to.number(0.5))
    return step("multiply", small, step("subtract", error, half))


def _smooth_l1(
    to: LossRows, step: Any, x: Value, y: Value, reduction: int = 1, beta: float = 1.0
) -> Value:
    error = step("absolute", step("subtract", x, y))
    if beta == 0:
        return _reduced(to, error, reduction)
    losses = step("divide", _bounded(to, step, error, beta), to.number(beta))
    return _reduced(to, losses, reduction)


def _binary_cross_entropy(
    to: LossRows, step: Any, x: Value, y: Value, weight: Any = None, of_ones: Any = None,
    reduction: int = 1,
) -> Value:  # fmt: skip
    for_one = step("multiply", y, step("softplus", step("negative", x)))
    if of_ones is not None:
        for_one = step("multiply", for_one, to.value(of_ones))
    for_zero = step("multiply", step("subtract", to.number(1.0), y), step("softplus", x))
    losses = step("add", for_one, for_zero)
    if weight is not None:
        losses = step("multiply", losses, to.value(weight))
    return _reduced(to, losses, reduction)


def _literal(to: LossRows, out: Tensor, x: Tensor) -> Value:
    return to.value(x)


def _cat(to: LossRows, out: Tensor, tensors: Any, dim: int = 0) -> Value:
    for tensor in tensors:
        _check_dim(tensor, dim)
    return to.join(tensors)


def _stack(to: LossRows, out: Tensor, tensors: Any, dim: int = 0) -> Value:
    if out.dim() != 2 or dim % 2 != 1:
        raise Unreadable("it stacks samples, or samples of more than one dimension")
    return to.join(tensors)


LOSS_RULES: dict[str, Rule] = {
    **RULES,
    "relu": _relu, "softplus": _softplus, "eq": _equal, "ne": _not_equal,
    "view": _same, "_unsafe_view": _same, "unsqueeze": _same, "squeeze": _squeezed, "alias": _same,
    "expand": _same, "clone": _same, "_to_copy": _cast, "detach": _detached,
    "lift_fresh": _literal, "cat": _cat, "stack": _stack,
    "slice": _slice, "select": _select, "split": _split, "split_with_sizes": _split,
    "sum": _reduce(mean=False), "mean": _reduce(mean=True),
    "logsumexp": lambda to, out, x, dim, *args: _log_sum_exp(to, x, dim),
    "_log_softmax": _log_softmax, "_softmax": _softmax, "gather": _gather,
    "nll_loss_forward": _nll, "mse_loss": _of_pairs(_squared), "huber_loss": _of_pairs(_huber),
    "smooth_l1_loss": _of_pairs(_smooth_l1),
    "binary_cross_entropy_with_logits": _of_pairs(_binary_cross_entropy),
}  # fmt: skip
