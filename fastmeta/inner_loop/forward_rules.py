"""What PyTorch's operations come to in a forward, beside those on numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta.functional.row_programs import RULES, Rule, Unreadable, Value
from fastmeta.inner_loop.forward_rows import GONE, ForwardRows

__all__ = ["FORWARD_RULES"]

# As in csrc/network/spec.h.
_ACTIVATIONS = (
    "relu", "leaky_relu", "tanh", "sigmoid", "sine", "gelu", "gelu_tanh", "softplus", "silu", "elu",
    "clamp", "mish",
)  # fmt: skip


# ---- products ------------------------------------------------------------------------------------


def _turned(to: ForwardRows, out: Tensor, x: Tensor, *dims: Any) -> Value:
    """Of a matrix. `dims`: none, two that change places, or a list of both in their new order."""
    of = to.weight(x)
    if of is None or out.dim() != 2:
        return _samples_last(to, x, dims)
    index, as_it_is = of
    if not dims:
        turns = True
    elif isinstance(dims[0], int):
        turns = len({d % 2 for d in dims}) == 2
    else:
        turns = [d % 2 for d in dims[0]] == [1, 0]
    return Value("weight" if as_it_is != turns else "turned", index)


def _samples_last(to: ForwardRows, x: Tensor, dims: Any) -> Value:
    """Parts of samples side by side, or such parts as samples again."""
    value, other = to.known(x), {"samples": "series", "series": "samples"}
    swaps = len(dims) == 2 and {d % x.dim() for d in dims} == {0, 1}
    if value is None or value.kind not in other or not swaps or to.samples not in x.shape[:2]:
        raise Unreadable("it turns what is no parameter")
    return Value(other[value.kind], value.row)


def _multiplied(to: ForwardRows, out: Tensor, x: Tensor, weight: Tensor, bias: int = -1) -> Value:
    """Rows of each sample, most often one, times a matrix."""
    of, value = to.weight(weight), to.value(x)
    if of is None:
        raise Unreadable("it multiplies by a matrix that is no parameter")
    if value.kind not in ("samples", "series", "task") or x.dim() != 2:
        raise Unreadable("it multiplies what is no row of each sample")
    (index, as_it_is), (inputs, outputs) = of, (x.shape[1], out.shape[1])
    count = to.widths[value.row] // inputs
    if to.widths[value.row] % inputs:
        raise Unreadable("it multiplies other rows than those of each sample")
    row = to.put(
        "linear", value.row, index, bias, x=float(as_it_is), y=float(count), width=count * outputs
    )
    return Value(value.kind, row)


_MOST_ROWS = 64


def _affine(
    to: ForwardRows, out: Tensor, bias: Tensor, x: Tensor, weight: Tensor,
    *, beta: float = 1, alpha: float = 1,
) -> Value:  # fmt: skip
    if (alpha, beta) != (1, 1):
        raise Unreadable("it scales a product")
    index = to.index(bias)
    if index is not None and bias.shape == out.shape[1:]:
        return _multiplied(to, out, x, weight, index)
    product, added = _multiplied(to, out, x, weight), to.value(bias)
    width = to.widths[product.row]
    if to.widths[added.row] not in (1, width):
        raise Unreadable("it adds a row to each of several")
    return to.step("add", product, added, width=width)


# ---- shapes --------------------------------------------------------------------------------------

_KINDS = {0: "samples", 1: "series", None: "task"}  # by where the samples are


def _same(to: ForwardRows, out: Tensor, x: Tensor, *args: Any, **options: Any) -> Value:
    value = to.value(x)
    if value.kind not in ("samples", "series", "task"):
        raise Unreadable("it reshapes a weight")
    width, wanted = to.widths[value.row], to.columns(out)
    at = to.dim_of_samples(out)
    if value.kind == "series" and (x.dim() < 2 or out.dim() < 2 or out.shape[-1] != x.shape[-1]):
        raise Unreadable("it reshapes what is one part after the other")
    if value.kind == "samples" and at != 0:
        raise Unreadable("it mixes the samples")
    kind = _KINDS[at] if value.kind == "task" else value.kind
    if wanted == width:
        return Value(kind, value.row)
    if width != 1:
        raise Unreadable("it repeats the numbers of a sample")
    return Value(kind, to.put("add", value.row, to.number(0.0).row, width=wanted))


def _squeezed(to: ForwardRows, out: Tensor, x: Tensor, *dims: Any) -> Value:
    over = dims[0] if dims else range(x.dim())
    over = [over] if isinstance(over, int) else over
    at = to.dim_of_samples(x)
    if at is not None and (not dims or any(dim % x.dim() == at for dim in over)):
        raise Unreadable("it would squeeze a lone sample")
    return _same(to, out, x)


def _repeated(to: ForwardRows, out: Tensor, x: Tensor, times: Any) -> Value:
    if any(n != 1 for n in times[1:]) or (to.value(x).kind != "task" and times[0] != 1):
        raise Unreadable("it repeats the numbers of a sample")
    return _same(to, out, x)


def _part(to: ForwardRows, x: Tensor, dim: int, begin: int, count: int) -> Value:
    """Of a dimension those from `begin` on, which must lie side by side."""
    value = to.value(x)
    after = _numbers_behind(to, value, x, dim)
    return to.part(value, begin * after, count * after)


def _numbers_behind(to: ForwardRows, value: Value, x: Tensor, dim: int) -> int:
    """Numbers from one of a dimension to the next, where those before it are of no length."""
    first = 1 if value.kind == "samples" else 0
    dim %= x.dim()
    if value.kind == "series" and dim == 0 and x.shape[1] == to.samples:
        return math.prod(x.shape[2:])
    if value.kind not in ("samples", "task") or (first and len(x) != to.samples):
        raise Unreadable("it takes a part of what is no row of each sample")
    if dim < first or any(n != 1 for n in x.shape[first:dim]):
        raise Unreadable("it picks samples, or numbers that do not lie side by side")
    return math.prod(x.shape[dim + 1 :])


def _slice(
    to: ForwardRows, out: Tensor, x: Tensor, dim: int = 0, start: Any = None, end: Any = None,
    step: int = 1,
) -> Value:  # fmt: skip
    if out.shape == x.shape and step == 1:
        return to.value(x)
    if step != 1:
        raise Unreadable("it takes every few of a sample's numbers")
    begin = range(x.shape[dim])[start:].start  # as Python counts from the end
    return _part(to, x, dim, begin, out.shape[dim])


def _select(to: ForwardRows, out: Tensor, x: Tensor, dim: int, index: int) -> Value:
    return _alone(to, x, dim, index % x.shape[dim])


def _alone(to: ForwardRows, x: Tensor, dim: int, index: int) -> Value:
    """One of a dimension that is gone then: a part of a series is that of each sample."""
    part = _part(to, x, dim, index, 1)
    return Value("samples", part.row) if part.kind == "series" else part


def _split(to: ForwardRows, out: Any, x: Tensor, sizes: Any, dim: int = 0) -> list[Value]:
    values, begin = [], 0
    for part in out:
        values.append(_part(to, x, dim, begin, part.shape[dim]))
        begin += part.shape[dim]
    return values


def _split_apart(to: ForwardRows, out: Any, x: Tensor, sizes: Any, dim: int = 0) -> list[Value]:
    values = _split(to, out, x, sizes, dim)
    to.know(x, GONE)  # parts may change in place
    return values


def _unbound(to: ForwardRows, out: Any, x: Tensor, dim: int = 0) -> list[Value]:
    return [_alone(to, x, dim, i) for i in range(len(out))]


def _stacked(to: ForwardRows, out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> Value:
    values = [to.value(part) for part in parts]
    if any(value.kind != "samples" for value in values) or dim % out.dim() > 1:
        raise Unreadable("it stacks what are no samples, or along more than one dimension")
    return Value("series" if dim % out.dim() == 0 else "samples", to.join(values).row)


def _joined(to: ForwardRows, out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> Value:
    values = [to.value(part) for part in parts]
    kind = to.kind_of("join", values)
    if any(value.kind != kind for value in values):
        raise Unreadable("it joins samples to what is none")
    _numbers_behind(to, Value(kind), out, dim)
    return to.join(values)


def _sum(mean: bool) -> Rule:
    def rule(
        to: ForwardRows, out: Tensor, x: Tensor, dims: Any = None, keepdim: bool = False,
        dtype: Any = None,
    ) -> Value:  # fmt: skip
        value = to.value(x)
        every = {*range(x.dim())} - ({0} if value.kind == "samples" else set())
        over = {d % x.dim() for d in dims} if dims else {*range(x.dim())}
        if _is_whole(to, x, value) and over == every and over:
            return Value(value.kind, to.mean(value.row) if mean else to.sum(value.row))
        if value.kind == "series" or len(over) != 1 or x.shape[min(over)] > _MOST_ROWS:
            raise Unreadable("it sums over samples, or over some of a sample's numbers")
        return _sum_of_parts(to, x, min(over), mean)

    return rule


def _is_whole(to: ForwardRows, x: Tensor, value: Value) -> bool:
    """Whether the first dimension is that of samples, or all is one row that they share."""
    return value.kind == "task" or (value.kind == "samples" and len(x) == to.samples)


def _log_sum_exp(to: ForwardRows, x: Tensor, dims: Any) -> Value:
    value, over = to.value(x), [dims] if isinstance(dims, int) else [*dims]
    row = x.dim() == 2 and (value.kind == "samples" or len(x) == 1)
    row = row or (x.dim() == 1 and value.kind == "task")
    if not _is_whole(to, x, value) or not row or [d % x.dim() for d in over] != [x.dim() - 1]:
        raise Unreadable("it normalises over something else than a sample's numbers")
    return Value(value.kind, to.put("log_sum_exp", value.row, width=1))


def _log_softmax(to: ForwardRows, out: Tensor, x: Tensor, dim: int, *args: Any) -> Value:
    return to.step("subtract", to.value(x), _log_sum_exp(to, x, dim), width=to.columns(out))


def _softmax(to: ForwardRows, out: Tensor, x: Tensor, dim: int, *args: Any) -> Value:
    return to.step("exp", _log_softmax(to, out, x, dim), width=to.columns(out))


def _sum_of_parts(to: ForwardRows, x: Tensor, dim: int, mean: bool) -> Value:
    total, *others = (_part(to, x, dim, i, 1) for i in range(x.shape[dim]))
    width = to.widths[total.row]
    for other in others:
        total = to.step("add", total, other, width=width)
    share = to.number(1 / x.shape[dim])
    return to.step("multiply", total, share, width=width) if mean else total


def _detached(to: ForwardRows, out: Tensor, x: Tensor) -> Value:
    value = to.known(x) or to.of_unknown(x)
    if value.kind not in ("samples", "series", "task", "constant"):
        return Value("unknown")  # PyTorch makes some for itself
    row = to.put("stop", value.row, width=to.widths[value.row])
    return Value(value.kind, row)


def _cast(to: ForwardRows, out: Tensor, x: Tensor, **options: Any) -> Value:
    if not out.is_floating_point() and x.dtype not in (out.dtype, torch.bool):
        raise Unreadable("it rounds")
    return _same(to, out, x)


def _in_place(rule: Rule) -> Rule:
    def changed(to: ForwardRows, out: Tensor, x: Tensor, *args: Any, **options: Any) -> Value:
        to.check_own(x)
        return rule(to, out, x, *args, **options)

    return changed


# ---- layers --------------------------------------------------------------------------------------


def _activation(name: str, *constants: float) -> Rule:
    def rule(to: ForwardRows, out: Tensor, x: Tensor, *args: Any, **options: Any) -> Value:
        if args or options:
            raise Unreadable("it changes an activation")
        return _activated(to, x, name, *constants)

    return rule


def _activated(to: ForwardRows, x: Tensor, name: str, a: float = 0, b: float = 0) -> Value:
    value = to.value(x)
    kind = to.kind_of(name, [value])
    c, width = _ACTIVATIONS.index(name), to.widths[value.row]
    row = to.put("activate", value.row, c=c, x=float(a), y=float(b), width=width)
    return Value(kind, row)


def _gelu(to: ForwardRows, out: Tensor, x: Tensor, *, approximate: str = "none") -> Value:
    return _activated(to, x, "gelu_tanh" if approximate == "tanh" else "gelu")


def _leaky_relu(to: ForwardRows, out: Tensor, x: Tensor, slope: float = 0.01) -> Value:
    if slope < 0:
        raise Unreadable("it has a slope below 0")
    return _activated(to, x, "leaky_relu", slope)


def _elu(
    to: ForwardRows, out: Tensor, x: Tensor, alpha: float = 1, scale: float = 1, inputs: float = 1
) -> Value:
    if alpha < 0 or scale <= 0 or inputs != 1:
        raise Unreadable("it has an ELU of other constants")
    return _activated(to, x, "elu", alpha * scale, scale)


def _hardtanh(to: ForwardRows, out: Tensor, x: Tensor, least: float = -1, most: float = 1) -> Value:
    return _activated(to, x, "clamp", least, most)


def _softplus(
    to: ForwardRows, out: Tensor, x: Tensor, beta: float = 1, threshold: float = 20
) -> Value:
    if beta <= 0:
        raise Unreadable("it has a softplus that falls")
    return _activated(to, x, "softplus", beta, threshold)


def _prelu(to: ForwardRows, out: Tensor, x: Tensor, slope: Tensor) -> Value:
    above = to.put_all("greater", out, x, 0.0)
    below = to.put_all("multiply", out, x, slope)
    return to.step("select", above, to.value(x), below, width=to.widths[below.row])


def _glu(to: ForwardRows, out: Tensor, x: Tensor, dim: int = -1) -> Value:
    width = out.shape[-1]
    first, gate = (_part(to, x, dim, begin, width) for begin in (0, width))
    return to.step("multiply", first, to.step("sigmoid", gate, width=width), width=width)


def _layer_norm(
    to: ForwardRows, out: Any, x: Tensor, shape: Sequence[int], weight: Any, bias: Any, eps: float
) -> tuple[Value]:
    """Ba et al. 2016, equation 4."""
    value, width = to.value(x), to.columns(x)
    whole = value.kind == "samples" and len(x) == to.samples
    if not whole or [*x.shape[1:]] != [*shape]:
        raise Unreadable("it normalises over some of a sample's numbers")
    off = to.step("subtract", value, Value("samples", to.mean(value.row)), width=width)
    square = to.step("multiply", off, off, width=width)
    variance = to.step("add", Value("samples", to.mean(square.row)), to.number(eps), width=1)
    result = to.step("divide", off, to.step("sqrt", variance, width=1), width=width)
    if weight is not None:
        result = to.step("multiply", result, to.value(weight), width=width)
    if bias is not None:
        result = to.step("add", result, to.value(bias), width=width)
    return (result,)


def _filled(number: float) -> Rule:
    def rule(to: ForwardRows, out: Tensor, *args: Any, **options: Any) -> Value:
        row = to.put("constant", x=number, width=to.columns(out))
        return Value(_KINDS[to.dim_of_samples(out)], row)

    return rule


def _added(to: ForwardRows, out: Tensor, x: Any, y: Any, *, alpha: float = 1) -> Value:
    """A sum, or a product with its bias where a parameter is added to one that has none."""
    biased = None if alpha != 1 else _biased(to, out, x, y) or _biased(to, out, y, x)
    return biased or RULES["add"](to, out, x, y, alpha=alpha)


def _biased(to: ForwardRows, out: Tensor, x: Any, bias: Any) -> Value | None:
    value, index = to.known(x), to.index(bias)
    if value is None or value.row < 1 or index is None or x.shape != out.shape:
        return None
    op, a, weight, own, turned, parts, width = to.steps[value.row - 1]
    if (op, own) != ("linear", -1) or bias.shape not in (out.shape[-1:], (1, *out.shape[-1:])):
        return None
    if bias.numel() * parts != width:
        return None
    return Value(value.kind, to.put("linear", a, weight, index, x=turned, y=parts, width=width))


FORWARD_RULES: dict[str, Rule] = {
    **RULES, "add": _added,
    "t": _turned, "transpose": _turned, "permute": _turned, "numpy_T": _turned,
    "mm": _multiplied, "addmm": _affine,
    "detach": _detached, "_to_copy": _cast, "alias": _same, "clone": _same,
    "view": _same, "_unsafe_view": _same, "unsqueeze": _same, "squeeze": _squeezed,
    "expand": _same, "repeat": _repeated,
    "slice": _slice, "select": _select,
    "split": _split, "split_with_sizes": _split, "unsafe_split": _split_apart,
    "unbind": _unbound, "cat": _joined, "stack": _stacked,
    "logsumexp": lambda to, out, x, dims, keepdim=False: _log_sum_exp(to, x, dims),
    "_log_softmax": _log_softmax, "_softmax": _softmax,
    "sum": _sum(mean=False), "mean": _sum(mean=True),
    "relu": _activation("relu"), "silu": _activation("silu"), "mish": _activation("mish"),
    "gelu": _gelu, "leaky_relu": _leaky_relu, "elu": _elu, "hardtanh": _hardtanh,
    "softplus": _softplus, "_prelu_kernel": _prelu, "glu": _glu, "native_layer_norm": _layer_norm,
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), _filled(0.0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), _filled(1.0)),
}  # fmt: skip
_CHANGING = (
    "add", "sub", "mul", "div", "neg", "exp", "sin", "cos", "tanh", "sigmoid", "relu", "leaky_relu",
    "elu", "silu", "mish", "hardtanh", "clamp", "clamp_min", "squeeze", "unsqueeze", "transpose",
)  # fmt: skip
FORWARD_RULES |= {f"{name}_": _in_place(FORWARD_RULES[name]) for name in _CHANGING}
