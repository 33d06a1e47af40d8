"""What PyTorch's operations come to in a forward, beside those on numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta.functional.row_programs import RULES, Rule, Unreadable, Value, held
from fastmeta.inner_loop.arithmetic.forward_gradients import GRADIENT_RULES
from fastmeta.inner_loop.arithmetic.forward_reductions import REDUCTION_RULES, safe_softmax, softmax
from fastmeta.inner_loop.arithmetic.forward_rows import ForwardRows
from fastmeta.inner_loop.arithmetic.forward_shapes import SHAPE_RULES, of_rows, part, same

__all__ = ["FORWARD_RULES"]

# As in csrc/network/spec.h.
_ACTIVATIONS = (
    "relu", "leaky_relu", "tanh", "sigmoid", "sine", "gelu", "gelu_tanh", "softplus", "silu", "elu",
    "clamp", "mish", "affine",
)  # fmt: skip


# ---- products ------------------------------------------------------------------------------------


def _multiplied(to: ForwardRows, out: Tensor, x: Tensor, weight: Tensor, bias: int = -1) -> Value:
    """Rows of each sample, most often one, times a matrix."""
    of, value = to.weight(weight), to.value(x)
    if value.kind not in ("samples", "task") or x.dim() != 2 or to.dim_of_samples(x) == 1:
        raise Unreadable("it multiplies what is no row of each sample")
    if of is None:
        return _product(to, value, to.value(weight), 1, *x.shape[1:], *out.shape[1:])
    (index, as_it_is), (inputs, outputs) = of, (x.shape[1], out.shape[1])
    count = to.widths[value.row] // inputs
    if to.widths[value.row] % inputs:
        raise Unreadable("it multiplies other rows than those of each sample")
    _check_size(value, count * outputs * inputs)
    row = to.put(
        "linear", value.row, index, bias, x=float(as_it_is), y=float(count), width=count * outputs
    )
    return value._replace(row=row)


def _affine(
    to: ForwardRows, out: Tensor, bias: Tensor, x: Tensor, weight: Tensor,
    *, beta: float = 1, alpha: float = 1,
) -> Value:  # fmt: skip
    if (alpha, beta) != (1, 1):
        raise Unreadable("it scales a product")
    index, is_own = to.index(bias), to.weight(weight) is not None
    if index is not None and is_own and bias.shape == out.shape[1:]:
        return _multiplied(to, out, x, weight, index)
    product = _multiplied(to, out, x, weight)
    return to.step("add", product, to.operand(out, bias), width=to.widths[product.row])


def _convolved(
    to: ForwardRows, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], transposed: bool,
    *others: Any,
) -> Value:  # fmt: skip
    """Patches side by side, each of them a row of a product; a single pixel is one too."""
    kernel, groups, index = [*weight.shape[2:]], others[-1], to.index(weight)
    apart = kernel == [*stride] and not any(padding) and max(dilation) == 1
    if transposed or groups != 1 or not apart:
        raise Unreadable("it convolves with patches that overlap or are padded, or in groups")
    if index is None or (bias is not None and to.index(bias) is None):
        raise Unreadable("it convolves with what is no parameter")
    if to.dim_of_samples(x) != 0 or any(n % k for n, k in zip(x.shape[2:], kernel, strict=True)):
        raise Unreadable("it convolves, and leaves out some pixels or mixes samples")
    value, places, own = to.value(x), math.prod(out.shape[2:]), to.index(bias)
    sides = [x.shape[1], *(n for pair in zip(out.shape[2:], kernel, strict=True) for n in pair)]
    dims = range(len(sides))
    row = to.permuted(value.row, sides, [*dims[1::2], *dims[::2]])
    row = to.put(
        "linear", row, index, -1 if own is None else own, y=float(places), width=to.columns(out)
    )
    return value._replace(row=to.permuted(row, (places, weight.shape[0]), (1, 0)))


def _batched(to: ForwardRows, out: Tensor, x: Tensor, y: Tensor) -> Value:
    (left, sides), (right, _) = of_rows(to, x), of_rows(to, y)
    places = to.dim_of_samples(x), to.dim_of_samples(y)
    alike = places != (0, 0) or left.before == right.before
    if places not in ((0, 0), (1, None), (None, None)) or not alike:
        raise Unreadable("it multiplies matrices of samples by those of others")
    return _product(to, left, right, sides[0], x.shape[2], y.shape[2])


def _added_batched(
    to: ForwardRows, out: Tensor, added: Tensor, x: Tensor, y: Tensor,
    *, beta: float = 1, alpha: float = 1,
) -> Value:  # fmt: skip
    if (alpha, beta) != (1, 1):
        raise Unreadable("it scales a product")
    product = _batched(to, out, x, y)
    return to.step("add", product, to.operand(out, added), width=to.widths[product.row])


def _product(
    to: ForwardRows, left: Value, right: Value, count: int, depth: int, columns: int
) -> Value:
    """So many matrices times as many, of each sample or of all."""
    if right.kind not in ("samples", "task") or to.widths[right.row] != count * depth * columns:
        raise Unreadable("it multiplies samples by one another")
    rows = to.widths[left.row] // (count * depth)
    width = count * rows * columns
    if right.kind == "task":
        _check_size(left, width * depth)
    return left._replace(row=to.put("product", left.row, right.row, x=count, y=rows, width=width))


# Multiply-adds of matrices that are the task's: of 96 x 96 rows and vmap took as long for one task,
# of 128 x 128 rows 2.7 times as long.
_MOST_OF_TASK = 1 << 20


def _check_size(left: Value, terms: int) -> None:
    if left.kind == "task" and terms > _MOST_OF_TASK:
        raise Unreadable("it multiplies large matrices of parameters: other engines are faster")


def _bilinear(
    to: ForwardRows, out: Tensor, x: Tensor, weight: Tensor, y: Tensor, *dims: Any
) -> Value:
    """As torch.nn.functional.bilinear calls it: x [S, I], weight [O, I, J], y [S, J]."""
    index, (left, right) = to.index(weight), (to.value(x), to.value(y))
    if index is None or [*map(list, dims[:4])] != [[1, 3], [0], [1, 2], [2, 3]]:
        raise Unreadable("it sums products of three tensors")
    if [*map(to.dim_of_samples, (x, y))] != [0, 0] or left.before != right.before or x.dim() != 2:
        raise Unreadable("it multiplies samples by what are none")
    if to.widths[left.row] != x.shape[1] or to.widths[right.row] != y.shape[1]:
        raise Unreadable("it multiplies several rows of a sample")
    (_, first), (_, second), outputs = x.shape, y.shape, weight.shape[0]
    pairs = to.put("product", left.row, right.row, x=1.0, y=first, width=first * second)
    return Value("samples", to.put("linear", pairs, index, -1, y=1.0, width=outputs))


def _attention(
    to: ForwardRows, out: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0,
    causal: bool = False, *, attn_mask: Tensor | None = None, scale: float | None = None,
) -> tuple[Value]:  # fmt: skip
    """Vaswani et al. 2017, equation 1, of [S, heads, L, D]."""
    if dropout or q.dim() != 4:
        raise Unreadable("it drops some of attention")
    values = [to.value(x) for x in (q, k, v)]
    if any(value != Value("samples", value.row) for value in values) or len(q) != to.samples:
        raise Unreadable("it attends to what are no samples, as without batch_first=True")
    heads, places, size = q.shape[1:]
    others = k.shape[2]
    turned = to.permuted(values[1].row, (heads, others, size), (0, 2, 1))
    width = heads * places * others
    scores = to.put("product", values[0].row, turned, x=heads, y=places, width=width)
    share = to.number(size**-0.5 if scale is None else float(scale))
    scores = to.put("multiply", scores, share.row, width=width)
    scores = _masked(to, scores, (*q.shape[:3], others), causal, attn_mask)
    by_samples = attn_mask is not None and not to.tables.has(attn_mask)
    weights = (safe_softmax if by_samples else softmax)(to, scores, heads * places)
    width = heads * places * v.shape[3]
    row = to.put("product", weights, values[2].row, x=heads, y=places, width=width)
    return (Value("samples", row),)


def _masked(
    to: ForwardRows, scores: int, shape: Sequence[int], causal: bool, mask: Tensor | None
) -> int:
    """Scores of that shape, some of which attention leaves out."""
    like = torch.empty(shape, device="meta")
    if causal:
        mask = torch.ones(shape[-2:], dtype=torch.bool).tril()
        to.tables.add(mask)
    if mask is None:
        return scores
    row, width = to.operand(like, mask).row, to.widths[scores]
    if mask.dtype is not torch.bool:
        return to.put("add", scores, row, width=width)
    return to.put("select", row, scores, to.number(-math.inf).row, width=width)


# ---- numbers -------------------------------------------------------------------------------------


def _detached(to: ForwardRows, out: Tensor, x: Tensor) -> Value:
    value = to.value(x)
    if value.kind not in ("samples", "task", "constant"):
        return Value("unknown")  # PyTorch makes some for itself
    row = to.put("stop", value.row, width=to.widths[value.row])
    return value._replace(row=row)


def _cast(to: ForwardRows, out: Tensor, x: Tensor, **options: Any) -> Value:
    if out.dtype is torch.bool is not x.dtype:
        return RULES["ne"](to, out, x, 0.0)
    if not out.is_floating_point() and x.dtype not in (out.dtype, torch.bool):
        raise Unreadable("it rounds")
    return same(to, out, x)


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
    like = to.like(name, [value])
    c, width = _ACTIVATIONS.index(name), to.widths[value.row]
    row = to.put("activate", value.row, c=c, x=float(a), y=float(b), width=width)
    return like._replace(row=row)


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


def _celu(to: ForwardRows, out: Tensor, x: Tensor, alpha: float = 1) -> Value:
    if alpha <= 0:
        raise Unreadable("it has a CELU that falls")
    scaled = held(to, out, to.put_all("multiply", out, x, 1 / alpha))
    unit = held(to, out, _activated(to, scaled, "elu", 1.0, 1.0))
    return to.put_all("multiply", out, unit, float(alpha))


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
    first, gate = (part(to, x, dim, begin, out.shape[dim]) for begin in (0, out.shape[dim]))
    width = to.columns(out)
    return to.step("multiply", first, to.step("sigmoid", gate, width=width), width=width)


def _layer_norm(
    to: ForwardRows, out: Any, x: Tensor, shape: Sequence[int], weight: Any, bias: Any, eps: float
) -> tuple[Value]:
    """Ba et al. 2016, equation 4."""
    (value, sides), n = of_rows(to, x), math.prod(shape)
    if [*sides[-len(shape) :]] != [*shape] or x.shape[-len(shape) :] != torch.Size(shape):
        raise Unreadable("it normalises over samples")
    parts = to.columns(x) // n
    return (_scaled(to, _normed(to, value, parts, eps), weight, bias, parts, n),)


def _group_norm(
    to: ForwardRows, out: Any, x: Tensor, weight: Any, bias: Any, samples: int, channels: int,
    pixels: int, groups: int, eps: float,
) -> tuple[Value, ...]:  # fmt: skip
    """Wu and He 2018, equation 1, of [S, C, ...]."""
    value, _ = of_rows(to, x)
    if to.dim_of_samples(x) != 0 or samples != to.samples or len(x) != samples:
        raise Unreadable("it normalises over samples")
    normed = _normed(to, value, groups, eps)
    statistics = Value("unknown")  # which PyTorch keeps
    return _scaled(to, normed, weight, bias, 1, channels, pixels), statistics, statistics


def _normed(to: ForwardRows, value: Value, parts: int, eps: float) -> Value:
    """Each of so many parts less its mean, over its deviation."""
    width = to.widths[value.row]
    n = width // parts

    def spread(row: int) -> Value:
        return value._replace(row=to.repeated(row, n, 1) if parts > 1 else row)

    off = to.step("subtract", value, spread(to.means(value.row, parts)), width=width)
    square = to.step("multiply", off, off, width=width)
    variance = value._replace(row=to.means(square.row, parts))
    variance = to.step("add", variance, to.number(eps), width=parts)
    root = to.step("sqrt", variance, width=parts)
    return to.step("divide", off, spread(root.row), width=width)


def _scaled(
    to: ForwardRows, value: Value, weight: Any, bias: Any, parts: int, n: int, pixels: int = 1
) -> Value:
    """Of so many parts each of n numbers, or of the pixels that share it, times its own one."""
    width = to.widths[value.row]
    for op, own in (("multiply", weight), ("add", bias)):
        if own is not None:
            row = to.repeated(to.repeated(to.value(own).row, pixels, 1), parts, n * pixels)
            value = to.step(op, value, Value("task", row), width=width)
    return value


def _weight_norm(
    to: ForwardRows, out: Any, v: Tensor, g: Tensor, dim: int = 0
) -> tuple[Value, Value]:
    """Salimans and Kingma 2016, equation 2, over all dimensions but one."""
    (value, sides), width, n = of_rows(to, v), v.numel(), v.shape[dim]
    if value.kind != "task":
        raise Unreadable("it normalises what is no weight")
    order = [dim, *(d for d in range(v.dim()) if d != dim)]
    row = to.permuted(value.row, sides, order)
    squares = to.put("multiply", row, row, width=width)
    norms = to.put("sqrt", to.sums(squares, n), width=n)
    scale = to.put("divide", to.value(g).row, norms, width=n)
    row = to.put("multiply", row, to.repeated(scale, width // n, 1), width=width)
    back = [order.index(d) for d in range(v.dim())]
    row = to.permuted(row, [sides[d] for d in order], back)
    return value._replace(row=row), Value("task", norms)


def _filled(number: float) -> Rule:
    def rule(to: ForwardRows, out: Tensor, *args: Any, **options: Any) -> Value:
        row = to.put("constant", x=number, width=to.columns(out))
        return to.of_samples(out, row)

    return rule


_ZEROS = (
    "zeros", "zeros_like", "new_zeros", "_efficientzerotensor", "_new_zeros_with_same_feature_meta",
)  # fmt: skip


def _power(to: ForwardRows, out: Tensor, x: Any, exponent: Any) -> Value:
    """The power 0 is what slopes of powers come to."""
    is_one = not isinstance(exponent, Tensor) and exponent == 0
    return _filled(1.0)(to, out) if is_one else RULES["pow"](to, out, x, exponent)


def _added(to: ForwardRows, out: Tensor, x: Any, y: Any, *, alpha: float = 1) -> Value:
    """A sum, or a product with its bias where a parameter is added to one that has none."""
    biased = None if alpha != 1 else _biased(to, out, x, y) or _biased(to, out, y, x)
    return biased or RULES["add"](to, out, x, y, alpha=alpha)


def _biased(to: ForwardRows, out: Tensor, x: Any, bias: Any) -> Value | None:
    value, index = to.known(x), to.index(bias)
    if value is None or value.kind not in ("samples", "task") or value.row < 1:
        return None
    if index is None or x.shape != out.shape:
        return None
    op, a, weight, own, turned, parts, width = to.steps[value.row - 1]
    if (op, own) != ("linear", -1) or bias.shape not in (out.shape[-1:], (1, *out.shape[-1:])):
        return None
    if bias.numel() * parts != width:
        return None
    return value._replace(row=to.put("linear", a, weight, index, x=turned, y=parts, width=width))


FORWARD_RULES: dict[str, Rule] = {
    **RULES, **SHAPE_RULES, **REDUCTION_RULES, **GRADIENT_RULES,
    "add": _added, "detach": _detached, "_to_copy": _cast, "convolution": _convolved,
    "mm": _multiplied, "addmm": _affine, "bmm": _batched, "baddbmm": _added_batched,
    "_trilinear": _bilinear, "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "relu": _activation("relu"), "silu": _activation("silu"), "mish": _activation("mish"),
    "gelu": _gelu, "leaky_relu": _leaky_relu, "elu": _elu, "hardtanh": _hardtanh,
    "softplus": _softplus, "celu": _celu, "_prelu_kernel": _prelu, "glu": _glu,
    "native_layer_norm": _layer_norm, "native_group_norm": _group_norm,
    "_weight_norm_interface": _weight_norm,
    **dict.fromkeys(_ZEROS, _filled(0.0)), "pow": _power,
    **dict.fromkeys(("ones", "ones_like", "new_ones"), _filled(1.0)),
}  # fmt: skip
_CHANGING = (
    "add", "sub", "mul", "div", "neg", "exp", "sin", "cos", "tanh", "sigmoid", "relu", "leaky_relu",
    "elu", "silu", "mish", "hardtanh", "clamp", "clamp_min", "squeeze", "unsqueeze", "transpose",
)  # fmt: skip
FORWARD_RULES |= {f"{name}_": _in_place(FORWARD_RULES[name]) for name in _CHANGING}
