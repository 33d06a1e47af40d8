"""What PyTorch's functions of numbers come to that take several row operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmeta.functional.row_programs.rows import Rows, Value
from fastmeta.functional.row_programs.step import Unreadable

__all__ = ["FUNCTION_RULES", "Rule", "held", "inverse_sqrt"]

Rule = Callable[..., Any]


def held(to: Rows, out: Tensor, value: Value) -> Tensor:
    """A tensor that is known to be that, for rules that take tensors."""
    tensor = torch.empty_like(out)
    to.know(tensor, value)
    return tensor


# ---- powers --------------------------------------------------------------------------------------


def inverse_sqrt(to: Rows, out: Tensor, x: Tensor) -> Value:
    root = to.put_all("sqrt", out, x)
    return to.step("divide", to.number(1.0), root, width=to.widths[root.row])


def _power(to: Rows, out: Tensor, x: Any, exponent: Any) -> Value:
    if not isinstance(x, Tensor):
        return _exponential(to, out, exponent, x)
    if isinstance(exponent, Tensor):
        raise Unreadable("it raises to a power that is no plain number")
    if exponent == 0.5:
        return to.put_all("sqrt", out, x)
    if exponent == -0.5:
        return inverse_sqrt(to, out, x)
    size = abs(exponent)
    if not 0 < size < _MOST_FACTORS + 1 or (size == int(size) and size > _MOST_FACTORS):
        raise Unreadable(f"it takes the power {exponent}")
    whole = size == int(size)
    result = _whole_power(to, out, x, int(size)) if whole else _part_power(to, out, x, exponent)
    if exponent > 0:
        return result
    return to.step("divide", to.number(1.0), result, width=to.widths[result.row])


_MOST_FACTORS = 16


def _whole_power(to: Rows, out: Tensor, x: Tensor, exponent: int) -> Value:
    """By squares of squares, and x where a half is odd."""
    if exponent == 1:
        return to.value(x)
    half = None if exponent < 4 else _whole_power(to, out, x, exponent // 2)
    if half is None:
        result = to.put_all("multiply", out, x, x)
    else:
        result = to.step("multiply", half, half, width=to.widths[half.row])
    if exponent % 2:
        result = to.step("multiply", result, to.value(x), width=to.widths[result.row])
    return result


def _part_power(to: Rows, out: Tensor, x: Tensor, exponent: float) -> Value:
    """|exponent| no whole number: 0 of 0, where powers above 1 have the slope 0, roots infinity."""
    size = abs(exponent)
    if exponent < 0 and size > 1:
        return _root_times(to, out, x, size)
    nothing = to.put_all("equal", out, x, 0.0)
    positive = held(to, out, to.put_all("select", out, held(to, out, nothing), 1.0, x))
    result = _root_times(to, out, positive, size)
    of_nothing = to.number(0.0) if size > 1 else to.put_all("sqrt", out, x)
    return to.step("select", nothing, of_nothing, result, width=to.widths[result.row])


def _root_times(to: Rows, out: Tensor, x: Tensor, size: float) -> Value:
    whole = int(size)
    if size - whole != 0.5:
        scaled = held(to, out, to.put_all("log", out, x))
        return to.put_all("exp", out, held(to, out, to.put_all("multiply", out, scaled, size)))
    root = to.put_all("sqrt", out, x)
    if not whole:
        return root
    return to.step("multiply", root, _whole_power(to, out, x, whole), width=to.widths[root.row])


# ---- exponentials --------------------------------------------------------------------------------


def _exponential(to: Rows, out: Tensor, x: Tensor, base: float) -> Value:
    if not base > 0:
        raise Unreadable(f"it takes powers of {base}")
    scaled = to.put_all("multiply", out, x, math.log(base))
    return to.put_all("exp", out, held(to, out, scaled))


def _logarithm(base: float) -> Rule:
    def rule(to: Rows, out: Tensor, x: Tensor) -> Value:
        log = to.put_all("log", out, x)
        share = to.number(1 / math.log(base))
        return to.step("multiply", log, share, width=to.widths[log.row])

    return rule


def _exponential_less_one(to: Rows, out: Tensor, x: Tensor) -> Value:
    """tanh(x/2) (exp(x) + 1), which is exact near 0 too."""
    half = held(to, out, to.put_all("multiply", out, x, 0.5))
    more = held(to, out, to.put_all("add", out, held(to, out, to.put_all("exp", out, x)), 1.0))
    return to.put_all("multiply", out, held(to, out, to.put_all("tanh", out, half)), more)


def _cosh(to: Rows, out: Tensor, x: Tensor) -> Value:
    up = to.put_all("exp", out, x)
    down = to.put_all("exp", out, held(to, out, to.put_all("negative", out, x)))
    width = to.widths[up.row]
    return to.step("multiply", to.step("add", up, down, width=width), to.number(0.5), width=width)


def _sinh(to: Rows, out: Tensor, x: Tensor) -> Value:
    share = held(to, out, to.put_all("tanh", out, x))
    return to.put_all("multiply", out, share, held(to, out, _cosh(to, out, x)))


def _tan(to: Rows, out: Tensor, x: Tensor) -> Value:
    sides = [held(to, out, to.put_all(op, out, x)) for op in ("sine", "cosine")]
    return to.put_all("divide", out, *sides)


# ---- between -------------------------------------------------------------------------------------


def _between(to: Rows, out: Tensor, x: Any, y: Any, weight: Any) -> Value:
    way = held(to, out, to.put_all("subtract", out, y, x))
    return to.put_all("add", out, x, held(to, out, to.put_all("multiply", out, way, weight)))


def _added(op: str) -> Rule:
    """x + value * y * z, or y / z."""

    def rule(to: Rows, out: Tensor, x: Any, y: Any, z: Any, *, value: float = 1) -> Value:
        more = to.put_all(op, out, y, z)
        if value != 1:
            more = to.put_all("multiply", out, held(to, out, more), float(value))
        return to.put_all("add", out, x, held(to, out, more))

    return rule


def _clamped(to: Rows, out: Tensor, x: Tensor, least: Any = None, most: Any = None) -> Value:
    if not isinstance(least, Tensor) and not isinstance(most, Tensor):
        return _clamped_by_numbers(to, out, x, least, most)
    if least is not None:
        low = least if most is None else _below(to, out, least, most)
        x = held(to, out, _bounded(to, out, x, low, least, x))
    return to.value(x) if most is None else _bounded(to, out, x, most, x, most)


def _below(to: Rows, out: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """The lower bound, which has a slope where it is below the upper one, as PyTorch has it."""
    is_below = held(to, out, to.put_all("greater", out, most, least))
    fixed = held(to, out, to.put_all("stop", out, least))
    return held(to, out, to.put_all("select", out, is_below, least, fixed))


def _bounded(to: Rows, out: Tensor, x: Tensor, bound: Any, *compared: Any) -> Value:
    """The bound where the first of two is greater, or where it is NaN; x where they are equal."""
    beyond = held(to, out, to.put_all("greater", out, *compared))
    result = to.put_all("select", out, beyond, bound, x)
    if not isinstance(bound, Tensor):
        return result
    is_number = held(to, bound, to.put_all("equal", bound, bound, bound))
    return to.put_all("select", out, is_number, held(to, out, result), bound)


def _clamped_by_numbers(to: Rows, out: Tensor, x: Tensor, least: Any, most: Any) -> Value:
    low = -torch.inf if least is None else float(least)
    high = torch.inf if most is None else float(most)
    if not low <= high:
        raise Unreadable("it clamps between bounds in disorder")
    return to.put_all("clamp", out, x, x=low, y=high)


def _threshold(to: Rows, out: Tensor, x: Tensor, threshold: float, value: float) -> Value:
    below = held(to, out, to.put_all("greater_equal", out, float(threshold), x))
    return to.put_all("select", out, below, float(value), x)


def _hard_swish(to: Rows, out: Tensor, x: Tensor) -> Value:
    """x min(max(x + 3, 0), 6) / 6"""
    shifted = held(to, out, to.put_all("add", out, x, 3.0))
    share = held(to, out, to.put_all("clamp", out, shifted, y=6.0))
    product = held(to, out, to.put_all("multiply", out, x, share))
    return to.put_all("multiply", out, product, 1 / 6)


FUNCTION_RULES: dict[str, Rule] = {
    "pow": _power, "exp2": lambda to, out, x: _exponential(to, out, x, 2.0),
    "expm1": _exponential_less_one, "log2": _logarithm(2.0), "log10": _logarithm(10.0),
    "cosh": _cosh, "sinh": _sinh, "tan": _tan,
    "lerp": _between, "addcmul": _added("multiply"), "addcdiv": _added("divide"),
    "clamp": _clamped, "clamp_min": _clamped,
    "clamp_max": lambda to, out, x, most: _clamped(to, out, x, None, most),
    "threshold": _threshold, "hardswish": _hard_swish,
}  # fmt: skip
