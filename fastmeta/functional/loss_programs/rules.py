"""What PyTorch's operations come to in a loss, beside those on numbers alone."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from fastmeta.functional.loss_programs.label_rules import LABEL_RULES
from fastmeta.functional.loss_programs.pair_rules import PAIR_RULES
from fastmeta.functional.loss_programs.reductions import REDUCTION_RULES
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


def _add(to: LossRows, out: Tensor, x: Any, y: Any, *, alpha: float = 1) -> Value:
    """Where sums begin with 0, that of samples does not count it for each of them."""
    for one, other in ((x, y), (y, x)):
        if to.is_zero(one) and to.value(other).kind in ("mean", "sum") and alpha == 1:
            return to.value(other)
    return RULES["add"](to, out, x, y, alpha=alpha)


def _hyperbolic_cosine(to: LossRows, out: Tensor, x: Tensor) -> Value:
    grows, width = to.put_all("exp", out, x), to.columns(out)
    falls = to.step("exp", to.put_all("negative", out, x), width=width)
    return to.step("multiply", to.step("add", grows, falls, width=width), to.number(0.5),
                   width=width)  # fmt: skip


def _logarithm(base: float) -> Rule:
    return lambda to, out, x: to.step(
        "divide", to.put_all("log", out, x), to.number(math.log(base)), width=to.columns(out)
    )


def _x_log_y(to: LossRows, out: Tensor, x: Any, y: Any) -> Value:
    """0 where x is 0, unless y is NaN."""
    zero, width = to.put_all("equal", out, x, 0.0), to.columns(out)
    logarithm = to.step("log", to.step("select", zero, to.number(1.0), to.value(y), width=width),
                        width=width)  # fmt: skip
    number = to.put_all("equal", out, y, y)
    nothing = to.step("select", number, to.number(0.0), to.value(y), width=width)
    product = to.step("multiply", to.value(x), logarithm, width=width)
    return to.step("select", zero, nothing, product, width=width)


# ---- shapes ------------------------------------------------------------------------------------


def _same(to: LossRows, out: Tensor, x: Tensor, *args: Any, **options: Any) -> Value:
    value = to.value(x)
    if value.kind in ("constant", "task") and to.is_broadcast(out, value):
        return value
    if value.kind != "samples":
        if out.numel() != to.widths[value.row]:
            raise Unreadable("it makes more of a total")
        return value
    return value if to.columns(out) == to.widths[value.row] else to.expand(x, out)


def _squeezed(to: LossRows, out: Tensor, x: Tensor, *dims: Any) -> Value:
    over = dims[0] if dims else None
    over = [over] if isinstance(over, int) else over
    lone = any(dim % x.dim() == 0 for dim in over) if over is not None else x[0].numel() > 1
    if x.dim() and lone:
        raise Unreadable("it would squeeze a lone sample")
    return _same(to, out, x)


def _detached(to: LossRows, out: Tensor, x: Tensor) -> Value:
    value = to.value(x)
    of_targets = value.row in to.columns_of or value.row == to.labels
    if of_targets or value.kind in ("order", "constant", "task"):
        return value
    if value.kind == "samples":
        return to.put_all("stop", out, x)
    return Value("unknown")  # PyTorch makes some for itself


def _slice(
    to: LossRows, out: Tensor, x: Tensor, dim: int = 0, start: Any = None, end: Any = None,
    step: int = 1,
) -> Value:  # fmt: skip
    if dim % x.dim() == 0 and not start and (end is None or end >= 1 << 62) and step == 1:
        return to.value(x)
    if to.is_own_constant(x):
        return to.of_unknown(out)
    each = _numbers_in(x, dim)
    if step != 1:
        raise Unreadable("it takes every few of a sample's numbers")
    begin = range(x.shape[1])[start:].start  # as Python counts from the end
    return to.slice(x, begin * each, out.shape[1] * each)


def _select(to: LossRows, out: Tensor, x: Tensor, dim: int, index: int) -> Value:
    if to.is_own_constant(x):
        return to.of_unknown(out)
    each = _numbers_in(x, dim)
    return to.slice(x, index % x.shape[1] * each, each)


def _split(to: LossRows, out: Any, x: Tensor, sizes: Any, dim: int = 0) -> list[Value]:
    each = _numbers_in(x, dim)
    values, begin = [], 0
    for part in out:
        values.append(to.slice(x, begin * each, part.shape[1] * each))
        begin += part.shape[1]
    return values


def _unbound(to: LossRows, out: Any, x: Tensor, dim: int = 0) -> list[Value]:
    each = _numbers_in(x, dim)
    return [to.slice(x, column * each, each) for column in range(x.shape[1])]


def _numbers_in(x: Tensor, dim: int) -> int:
    """How many numbers of a sample lie at each place of a dimension, which is its first."""
    if x.dim() < 2 or dim % x.dim() != 1:
        raise Unreadable("it picks samples, or from another than their first dimension")
    return x.shape[2:].numel()


def _log_sum_exp(to: LossRows, x: Tensor, dim: Any) -> Value:
    dims = [dim] if isinstance(dim, int) else list(dim)
    if x.dim() != 2 or [d % 2 for d in dims] != [1] or to.value(x).kind != "samples":
        raise Unreadable("it normalises over samples")
    return to.step("log_sum_exp", to.value(x), width=1)


def _log_softmax(to: LossRows, out: Tensor, x: Tensor, dim: int, *args: Any) -> Value:
    return to.step("subtract", to.value(x), _log_sum_exp(to, x, dim), width=to.columns(out))


def _softmax(to: LossRows, out: Tensor, x: Tensor, dim: int, *args: Any) -> Value:
    return to.step("exp", _log_softmax(to, out, x, dim), width=to.columns(out))


# ---- tensors that are made or changed ----------------------------------------------------------


def _literal(to: LossRows, out: Tensor, x: Tensor) -> Value:
    return to.value(x)


def _filled(number: float | None) -> Rule:
    def rule(to: LossRows, out: Tensor, *args: Any, **options: Any) -> Value:
        value = to.number(float(args[-1] if number is None else number))
        if not to.has_samples(out, value):
            return value
        return to.step("add", value, to.number(0.0), width=to.columns(out))

    return rule


def _empty(to: LossRows, out: Tensor, *args: Any, **options: Any) -> Value:
    return Value("unknown")


def _in_place(rule: Rule) -> Rule:
    def changed(to: LossRows, out: Tensor, x: Tensor, *args: Any, **options: Any) -> Value:
        to.check_own(x)
        return rule(to, out, x, *args, **options)

    return changed


def _masked(to: LossRows, out: Tensor, x: Tensor, mask: Tensor, fill: Any) -> Value:
    if to.value(mask).kind == "nothing":
        return to.value(x)
    to.check_own(x)
    return to.put_all("select", out, mask, fill, x)


def _cat(to: LossRows, out: Tensor, tensors: Any, dim: int = 0) -> Value:
    if dim % out.dim() == 0:
        return Value("stacked", to.join(tensors).row)
    for tensor in tensors:
        _numbers_in(tensor, dim)
    return to.join(tensors)


def _stack(to: LossRows, out: Tensor, tensors: Any, dim: int = 0) -> Value:
    if out.dim() == 1:
        return _totals(to, tensors)
    if out.dim() != 2:
        raise Unreadable("it stacks samples of more than one dimension")
    value = to.join(tensors)
    return value if dim % 2 == 1 else value._replace(kind="stacked")


def _totals(to: LossRows, tensors: Any) -> Value:
    values = [to.value(tensor) for tensor in tensors]
    kinds = {value.kind for value in values}
    if len(kinds) > 1 or not kinds <= {"mean", "sum"}:
        raise Unreadable(NO_TOTAL)
    return Value(kinds.pop(), to.side_by_side([value.row for value in values]))


_RULES: dict[str, Rule] = {
    **RULES, **PAIR_RULES, **REDUCTION_RULES, **LABEL_RULES,
    "add": _add, "relu": _relu, "softplus": _softplus, "cosh": _hyperbolic_cosine,
    "xlogy": _x_log_y, "log2": _logarithm(2), "log10": _logarithm(10),
    "view": _same, "_unsafe_view": _same, "unsqueeze": _same, "squeeze": _squeezed, "alias": _same,
    "expand": _same, "clone": _same, "detach": _detached,
    "lift_fresh": _literal, "cat": _cat, "stack": _stack, "unbind": _unbound,
    "slice": _slice, "select": _select, "split": _split, "split_with_sizes": _split,
    "logsumexp": lambda to, out, x, dim, *args: _log_sum_exp(to, x, dim),
    "_log_softmax": _log_softmax, "_softmax": _softmax,
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), _filled(0.0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), _filled(1.0)),
    **dict.fromkeys(("full", "full_like", "new_full"), _filled(None)),
    "empty_like": _empty, "masked_fill_": _masked, "fill_": _in_place(_filled(None)),
    "zero_": _in_place(_filled(0.0)),
}  # fmt: skip
_CHANGING = (
    "add", "sub", "mul", "div", "neg", "abs", "exp", "log", "sqrt", "pow", "tanh", "sigmoid",
    "relu", "clamp", "clamp_min", "clamp_max",
)  # fmt: skip
LOSS_RULES = {**_RULES, **{f"{name}_": _in_place(_RULES[name]) for name in _CHANGING}}
