"""What PyTorch's operations on numbers come to, in losses and in forwards.

A rule is (rows, the result, the arguments) -> what the result is.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastmeta.functional.row_programs.functions import (
    FUNCTION_RULES,
    Rule,
    held,
    inverse_sqrt,
)
from fastmeta.functional.row_programs.rows import Rows, Value
from fastmeta.functional.row_programs.step import Unreadable

__all__ = ["RULES", "Rule"]

def _unary(op: str) -> Rule:
    return lambda to, out, x: to.put_all(op, out, x)


def _binary(op: str) -> Rule:
    def rule(to: Rows, out: Tensor, x: Any, y: Any, *, alpha: float = 1) -> Value:
        return to.put_all(op, out, x, _scaled(to, y, alpha))

    return rule


def _scaled(to: Rows, y: Any, alpha: float) -> Any:
    if alpha == 1:
        return y
    if not isinstance(y, Tensor):
        return y * alpha
    return held(to, y, to.put_all("multiply", y, y, alpha))


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


def _reciprocal(to: Rows, out: Tensor, x: Tensor) -> Value:
    return to.put_all("divide", out, 1.0, x)


def _log_sigmoid(to: Rows, out: Any, x: Tensor) -> tuple[Value]:
    width = to.columns(x)
    soft = to.step("softplus", to.put_all("negative", x, x), width=width)
    return (to.step("negative", soft, width=width),)


def _compared(op: str, swapped: bool = False) -> Rule:
    def rule(to: Rows, out: Tensor, x: Any, y: Any) -> Value:
        return to.put_all(op, out, *((y, x) if swapped else (x, y)))

    return rule


def _not_equal(to: Rows, out: Tensor, x: Any, y: Any) -> Value:
    return _not(to, out, to.put_all("equal", out, x, y))


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


def _filled_with(number: float | None) -> Rule:
    def rule(to: Rows, out: Tensor, x: Any, *args: Any, **options: Any) -> Value:
        constant = to.number(float(args[0] if number is None else number))
        return to.step("add", constant, to.number(0.0), width=to.columns(out))

    return rule


def _scalar(to: Rows, out: Tensor, number: float, **options: Any) -> Value:
    return to.value(number)


RULES: dict[str, Rule] = {
    **FUNCTION_RULES,
    **{name: _unary(op) for name, op in {
        "neg": "negative", "abs": "absolute", "exp": "exp", "log": "log", "log1p": "log1p",
        "sqrt": "sqrt", "sin": "sine", "cos": "cosine", "tanh": "tanh", "sigmoid": "sigmoid",
        "sign": "sign", "sgn": "sign",
    }.items()},
    "add": _binary("add"), "sub": _binary("subtract"), "rsub": _reversed_subtract,
    "mul": _multiply, "div": _divide, "reciprocal": _reciprocal, "rsqrt": inverse_sqrt,
    "maximum": _compared("larger"), "minimum": _compared("smaller"),
    "log_sigmoid_forward": _log_sigmoid,
    "gt": _compared("greater"), "ge": _compared("greater_equal"),
    "lt": _compared("greater", swapped=True), "le": _compared("greater_equal", swapped=True),
    "eq": _compared("equal"), "ne": _not_equal, "bitwise_not": _not, "logical_not": _not,
    "bitwise_and": _compared("multiply"), "logical_and": _compared("multiply"),
    "bitwise_or": _compared("larger"), "logical_or": _compared("larger"),
    "masked_fill": _filled, "masked_fill_": _filled, "where": _where,
    "zeros_like": _filled_with(0.0), "ones_like": _filled_with(1.0),
    "full_like": _filled_with(None), "scalar_tensor": _scalar,
}  # fmt: skip
