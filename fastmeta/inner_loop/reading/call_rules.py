"""What the calls in a module's forward are on many tasks' tensors at once, as in layer_rules.py."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta import functional as fmF
from fastmeta.inner_loop.reading.layer_rules import several, shifted

__all__ = ["FUNCTIONS", "METHODS"]


def _elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of elements, which broadcasts tensors from their last dimension on."""

    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = [z for z in (*args, *kwargs.values()) if isinstance(z, Tensor)]
        rank = max((z.dim() for z in tensors), default=0)
        aligned = {key: _aligned(value, rank) for key, value in kwargs.items()}
        return function(*(_aligned(z, rank) for z in args), **aligned)

    return run


def _aligned(z: Any, rank: int) -> Any:
    """[T, *shape] as [T, 1..., *shape] with `rank` dimensions."""
    if not isinstance(z, Tensor) or z.dim() == rank:
        return z
    return z.reshape(z.shape[0], *[1] * (rank - z.dim()), *z.shape[1:])


def _along(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function along `dim`, a number or several."""

    def run(x: Tensor, dim: Any, *args: Any, **kwargs: Any) -> Any:
        return function(x, shifted(dim), *args, **kwargs)

    return run


def _over(function: Callable[..., Any]) -> Callable[..., Any]:
    """A reduction over `dim`, or over all dimensions where there is none."""

    def run(x: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
        every = tuple(range(1, x.dim()))
        return function(x, every if dim is None else shifted(dim), *args, **kwargs)

    return run


def _joined(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.cat or torch.stack."""

    def run(tensors: Any, dim: int = 0) -> Tensor:
        tasks = max(len(z) for z in tensors)
        return function([z.expand(tasks, *z.shape[1:]) for z in tensors], dim=shifted(dim))

    return run


def _matmul(x: Tensor, y: Tensor) -> Tensor:
    if min(x.dim(), y.dim()) < 3:
        raise ValueError("matmul of a vector")
    rank = max(x.dim(), y.dim())
    return torch.matmul(_aligned(x, rank), _aligned(y, rank))


def _size(x: Tensor, dim: int | None = None) -> Any:
    return x.shape[1:] if dim is None else x.shape[1:][dim]


def _getattr(x: Any, name: str) -> Any:
    """What a forward asks of a tensor or of its shape."""
    if not isinstance(x, Tensor):
        return getattr(x, name)
    known = {"shape": x.shape[1:], "ndim": x.dim() - 1, "dtype": x.dtype, "device": x.device}
    if name not in known:
        raise ValueError(f"the attribute {name!r} of a tensor")
    return known[name]


def _getitem(x: Any, index: Any) -> Any:
    if not isinstance(x, Tensor):
        return x[index]
    places = index if isinstance(index, tuple) else (index,)
    if not all(place is None or place is ... or type(place) in (int, slice) for place in places):
        raise ValueError("indexing by a tensor or a list")
    return x[(slice(None), *places)]


def _view(x: Tensor, *shape: Any) -> Tensor:
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        (shape,) = shape
    return x.reshape(x.shape[0], *shape)


def _flat(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    return x.flatten(shifted(start_dim), shifted(end_dim))


def _permute(x: Tensor, *dims: Any) -> Tensor:
    if len(dims) == 1 and isinstance(dims[0], (tuple, list)):
        (dims,) = dims
    return x.permute(0, *shifted(dims))


def _transpose(x: Tensor, dim0: int, dim1: int) -> Tensor:
    return x.transpose(shifted(dim0), shifted(dim1))


def _same_tensor(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x


def _given(z: Tensor) -> Tensor:
    """[1, *shape] as a parameter that all tasks share."""
    return z[0] if z.shape[0] == 1 else z


def _parameter(z: Tensor | None) -> Tensor | None:
    return None if z is None else _given(z)


def _linear_call(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return fmF.linear(x, _given(weight), _parameter(bias))


def _conv2d_call(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str):
        raise ValueError("a conv2d that is padded by name")
    return fmF.conv2d(
        x, _given(weight), _parameter(bias), _one_or_pair(stride), _one_or_pair(padding),
        _one_or_pair(dilation), groups,
    )  # fmt: skip


def _batch_norm_call(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        raise ValueError("a batch_norm by running statistics")
    return fmF.batch_norm(x, _parameter(weight), _parameter(bias), eps)


def _instance_norm_call(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        raise ValueError("an instance_norm by running statistics")
    return fmF.instance_norm(x, _parameter(weight), _parameter(bias), eps)


def _layer_norm_call(
    x: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return fmF.layer_norm(x, normalized_shape, _parameter(weight), _parameter(bias), eps)


def _group_norm_call(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return fmF.group_norm(x, num_groups, _parameter(weight), _parameter(bias), eps)


def _max_pool2d_call(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    if ceil_mode or return_indices or several(dilation) not in ((1,), (1, 1)):
        raise ValueError("a max_pool2d that is dilated, rounds up or returns indices")
    return fmF.max_pool2d(x, kernel_size, stride or None, padding)


def _avg_pool2d_call(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    if ceil_mode or not count_include_pad or divisor_override is not None:
        raise ValueError("an avg_pool2d with options")
    return fmF.avg_pool2d(x, kernel_size, stride or None, padding)


def _pad_call(x: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> Tensor:
    if mode != "constant" or len(pad) > 2 * (x.dim() - 2):
        raise ValueError("a pad by something else than a number, or of the samples")
    return F.pad(x, pad, mode, value)


def _interpolate_call(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return F.interpolate(x.flatten(0, 1), *args, **kwargs).unflatten(0, x.shape[:2])


def _dropout_call(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    if training and p > 0:
        raise ValueError("a dropout that draws random numbers")
    return x


def _one_or_pair(value: Any) -> Any:
    values = several(value)
    return values[0] if len(values) == 1 else values


_ELEMENTWISE_NAMES = (
    "abs add atan clamp clamp_max clamp_min cos cosh div erf exp expm1 log log1p maximum minimum "
    "mul neg pow reciprocal relu rsqrt sigmoid sign sin sinh sqrt square sub tanh where"
).split()
_ELEMENTWISE_OF_F = (
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.silu, F.mish, F.gelu, F.softplus, F.hardtanh,
    F.tanh, F.sigmoid, F.logsigmoid, F.softsign, F.tanhshrink,
)  # fmt: skip
_METHODS_OF_TORCH = (
    "amax amin chunk clone flatten logsumexp log_softmax mean matmul permute reshape softmax split "
    "squeeze sum transpose unsqueeze"
).split()
_OPERATORS = (
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod,
    operator.pow, operator.neg, operator.gt, operator.ge, operator.lt, operator.le,
)  # fmt: skip

METHODS: dict[str, Callable[..., Any]] = {
    **{name: _elementwise(getattr(torch, name)) for name in _ELEMENTWISE_NAMES if name != "where"},
    **{name: _along(getattr(Tensor, name)) for name in ("softmax", "log_softmax", "logsumexp")},
    **{name: _along(getattr(Tensor, name)) for name in ("unsqueeze", "squeeze")},
    **{name: _over(getattr(torch, name)) for name in ("mean", "sum", "amax", "amin")},
    "chunk": lambda x, chunks, dim=0: x.chunk(chunks, shifted(dim)),
    "split": lambda x, split_size, dim=0: x.split(split_size, shifted(dim)),
    "clone": Tensor.clone,
    "contiguous": _same_tensor,
    "dim": lambda x: x.dim() - 1,
    "flatten": _flat,
    "matmul": _matmul,
    "permute": _permute,
    "reshape": _view,
    "size": _size,
    "transpose": _transpose,
    "view": _view,
}

FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    **{getattr(torch, name): _elementwise(getattr(torch, name)) for name in _ELEMENTWISE_NAMES},
    **{function: _elementwise(function) for function in (*_ELEMENTWISE_OF_F, *_OPERATORS)},
    **{getattr(torch, name): METHODS[name] for name in _METHODS_OF_TORCH},
    builtins.getattr: _getattr,
    operator.getitem: _getitem,
    operator.matmul: _matmul,
    torch.bmm: _matmul,
    torch.mm: _matmul,
    torch.cat: _joined(torch.cat),
    torch.stack: _joined(torch.stack),
    F.softmax: lambda x, dim, _stacklevel=3, dtype=None: x.softmax(shifted(dim), dtype),
    F.log_softmax: lambda x, dim, _stacklevel=3, dtype=None: x.log_softmax(shifted(dim), dtype),
    F.normalize: lambda x, p=2.0, dim=1, eps=1e-12, out=None: F.normalize(x, p, shifted(dim), eps),
    F.linear: _linear_call,
    F.conv2d: _conv2d_call,
    F.batch_norm: _batch_norm_call,
    F.instance_norm: _instance_norm_call,
    F.layer_norm: _layer_norm_call,
    F.group_norm: _group_norm_call,
    F.max_pool2d: _max_pool2d_call,
    torch.max_pool2d: _max_pool2d_call,
    F.avg_pool2d: _avg_pool2d_call,
    F.adaptive_avg_pool2d: fmF.adaptive_avg_pool2d,
    F.pad: _pad_call,
    F.interpolate: _interpolate_call,
    F.dropout: _dropout_call,
    F.dropout2d: _dropout_call,
}
