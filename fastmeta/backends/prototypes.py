"""Prototypes of many tasks in the native CPU code: raw functions, nothing checked here but labels.

T tasks, S support samples, Q queries, N classes, D features. Tensors are of one dtype; labels are
int64. What the labels and weights must be: `fastmeta.functional.labels`. Features of the loss and
of `nearest` may be of half precision beside float32: they are converted as they are loaded.
"""

from __future__ import annotations

from collections.abc import Container
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.backends import cpu
from fastmeta.backends.halves import dtype_of_sums
from fastmeta.backends.operation import FakeTensor, operation

__all__ = [
    "can_find", "can_load", "can_run", "class_means", "common_value", "in_all", "loss_at_once",
    "loss_backward", "loss_forward", "nearest", "project", "pull", "squared",
]  # fmt: skip

_SUFFIX = {torch.float32: "float32", torch.float64: "float64"}
# How features lie in memory, beside the dtype of the kernels.
_HALVES = {torch.bfloat16: 1, torch.float16: 2}
_METRICS = {"sqeuclidean": 0, "euclidean": 1, "cosine": 2, "dot": 3}
_SQUARED, _PROJECT, _PULL = range(3)
_NOTHING = (0, 0)


def can_run(*tensors: Tensor | None) -> str | None:
    """None if the native kernels take these, else the reason why not."""
    return _refusal(tensors, _SUFFIX)


def can_load(*tensors: Tensor | None) -> str | None:
    """As `can_run`, of features that the loss or `nearest` may convert from half precision."""
    return _refusal(tensors, _SUFFIX | _HALVES)


def _refusal(tensors: tuple[Tensor | None, ...], dtypes: Container[torch.dtype]) -> str | None:
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return f"the tensors are on {tensor.device}, and these kernels are for the CPU"
        if tensor.dtype not in dtypes:
            return f"the tensors are {tensor.dtype}; the kernels are float32 and float64"
        if tensor.numel() == 0:
            return "a tensor is empty"
        if tensor.is_neg():
            return "a tensor is a view with the sign turned, which resolve_neg makes plain"
    return cpu.unavailable()


def can_find(x: Tensor, prototypes: Tensor, k: int) -> str | None:
    """None if `nearest` takes these, else the reason why not."""
    return can_load(x, prototypes)


def class_means(
    features: Tensor, labels: Tensor, n_way: int, weight: Tensor | None
) -> Tensor | None:
    """[T, S, D], [T, S], and weights [T, S] -> [T, N, D]; None if labels or weights do not fit."""
    features, labels = features.contiguous(), labels.contiguous()
    weight = None if weight is None else weight.resolve_neg().contiguous()
    tasks, samples, width = features.shape
    means = features.new_empty(tasks, n_way, width)
    fits = _kernel("class_means", features)(
        (tasks, samples, n_way, width), torch.get_num_threads(), features.data_ptr(),
        labels.data_ptr(), _address(weight), means.data_ptr(),
    )  # fmt: skip
    return means if fits else None


@operation("squared_distances(Tensor x, Tensor y) -> Tensor")
def squared(x: Tensor, y: Tensor) -> Tensor:
    """[T, Q, D], [T, N, D] -> |x_q - y_n|^2, [T, Q, N]"""
    return _of_pairs(_SQUARED, x, y)


@operation("project_differences(Tensor a, Tensor x, Tensor y) -> Tensor")
def project(a: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[T, Q, D], [T, Q, D], [T, N, D] -> a_q . (x_q - y_n), [T, Q, N]"""
    return _of_pairs(_PROJECT, x, y, a)


@operation("pull_differences(Tensor h, Tensor x, Tensor y) -> Tensor")
def pull(h: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[T, Q, N], [T, Q, D], [T, N, D] -> sum over n of h_qn (x_q - y_n), [T, Q, D]"""
    return _of_pairs(_PULL, x, y, h=h)


class Task(NamedTuple):
    """What a loss is about: contiguous tensors.

    support [T, S, D], query [T, Q, D], labels and weights [T, S] and [T, Q]; a temperature that is
    a tensor is [] or [T].
    """

    support: Tensor
    support_y: Tensor
    support_weight: Tensor | None
    query: Tensor
    query_y: Tensor
    query_weight: Tensor | None

    def contiguous(self) -> Task:
        """The same values."""
        return Task(*map(_plain, self))  # type: ignore[arg-type]


def loss_forward(
    task: Task, n_way: int, metric: str, temperature: float | Tensor, differentiable: bool,
    accuracy: Tensor | None = None, share: float | None = None,
) -> tuple[Tensor, Tensor, Any] | None:  # fmt: skip
    """The loss [T], the logits [T, Q, N] and what `loss_backward` needs; fills `accuracy` [T].

    With a `share` the loss is [], the sum over tasks times the share. None if labels, weights or
    temperatures do not fit. Without `differentiable` there is no backward.
    """
    return _loss(task, n_way, metric, temperature, differentiable, accuracy, share)


def loss_at_once(
    task: Task, n_way: int, metric: str, temperature: float | Tensor, accuracy: Tensor | None,
    share: float | None, factor: float, wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Any, tuple[Tensor | None, Tensor | None]] | None:  # fmt: skip
    """`loss_forward` with what `loss_backward` gives for a gradient of `factor` for every task.

    wanted: as of `loss_backward`, but not for temperatures.
    """
    gradients = _gradients(task, wanted)
    found = _loss(task, n_way, metric, temperature, True, accuracy, share, *gradients, factor)
    return None if found is None else (*found, gradients)


def in_all(loss: Tensor, share: float | None) -> Tensor:
    """The losses [T], or their sum times the share."""
    return loss if share is None else loss.sum() * share


def common_value(x: Tensor) -> float | None:
    """The number that all of x, [n] or [], are, or None."""
    return _kernel_of("common_value", x.dtype)(x)


def _loss(
    task: Task, n_way: int, metric: str, temperature: float | Tensor, differentiable: bool,
    accuracy: Tensor | None, share: float | None, for_support: Tensor | None = None,
    for_query: Tensor | None = None, factor: float = 0.0,
) -> tuple[Tensor, Tensor, Any] | None:  # fmt: skip
    query = task.query
    (tasks, queries, _), dtype = query.shape, dtype_of_sums(query)
    shape = (tasks,) if share is None else ()
    loss = cpu.empty(shape, query) if dtype is query.dtype else torch.empty(shape, dtype=dtype)
    logits = cpu.empty((tasks, queries, n_way), loss)
    record = _kernel_of("prototype_loss", dtype)(
        task, n_way, _METRICS[metric], torch.get_num_threads(), temperature, loss, share or 0.0,
        logits, accuracy, differentiable, for_support, for_query, factor,
    )  # fmt: skip
    return None if record is None else (loss, logits, record)


def _gradients(
    task: Task, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """To write to, for support and query."""
    support, query, _ = wanted
    return (
        cpu.empty(task.support.shape, task.support) if support else None,
        cpu.empty(task.query.shape, task.query) if query else None,
    )


def loss_backward(
    record: Any, task: Task, grad_loss: Tensor, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, ...]:
    """The gradients for support, query and the temperatures [T], of a gradient [T] for the loss.

    record: of `loss_forward` for the same task. wanted: which of the three.
    """
    if grad_loss._is_zerotensor():  # zeros that lie nowhere
        grad_loss = grad_loss.new_zeros(grad_loss.shape)
    task, grad_loss = task.contiguous(), grad_loss.resolve_neg()
    support, query = _gradients(task, wanted)
    temperature = cpu.empty(grad_loss.shape, grad_loss) if wanted[2] else None
    _kernel_of("prototype_loss_backward", grad_loss.dtype)(
        record, task, torch.get_num_threads(), grad_loss, grad_loss.stride(0), support, query,
        temperature,
    )  # fmt: skip
    return support, query, temperature


@operation(
    "nearest(Tensor x, Tensor prototypes, int k, str metric) -> (Tensor, Tensor)"
)
def nearest(x: Tensor, prototypes: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    """The k least distances [T, Q, k] and their indices; ties by lowest index, NaN last.

    x [T, Q, D], prototypes [T, N, D]; unit vectors (or zeros) under "cosine". Not "euclidean":
    squared distances have the same order, before roots make some of them equal.
    """
    x, prototypes = x.contiguous(), prototypes.contiguous()
    (tasks, queries, width), classes = x.shape, prototypes.shape[1]
    values = x.new_empty(tasks, queries, k, dtype=dtype_of_sums(x))
    indices = x.new_empty(tasks, queries, k, dtype=torch.int64)
    if type(x) is FakeTensor:
        return values, indices
    _kernel("nearest", x)(
        (tasks, queries, classes, width), k, _METRICS[metric], torch.get_num_threads(),
        x.data_ptr(), prototypes.data_ptr(), (_storage(x), _storage(prototypes)),
        values.data_ptr(), indices.data_ptr(),
    )  # fmt: skip
    return values, indices


def _of_pairs(
    sum_: int, x: Tensor, y: Tensor, a: Tensor | None = None, h: Tensor | None = None
) -> Tensor:
    (tasks, queries, width), classes = x.shape, y.shape[1]
    x, y, a = _in_rows(x), _in_rows(y), None if a is None else _in_rows(a)
    out = x.new_empty(tasks, queries, width if sum_ == _PULL else classes)
    if type(x) is FakeTensor:
        return out
    _kernel("pairs", x)(
        sum_, (tasks, queries, classes, width), torch.get_num_threads(),
        (x.data_ptr(), x.stride(0)), (y.data_ptr(), y.stride(0)),
        _NOTHING if a is None else (a.data_ptr(), a.stride(0)),
        (0, 0, 0, 0) if h is None else (h.data_ptr(), *h.stride()), out.data_ptr(),
    )  # fmt: skip
    return out


def _in_rows(x: Tensor) -> Tensor:
    """Rows of features one behind the other, as often as not those of one task for all."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


def _plain(x: Tensor | None) -> Tensor | None:
    if x is None:
        return None
    x = torch._C._functorch.unwrap_if_dead(x)
    return x if x.is_contiguous() and not x.is_neg() else x.resolve_neg().contiguous()


def _kernel(name: str, like: Tensor) -> Any:
    return _kernel_of(name, dtype_of_sums(like))


@cache
def _kernel_of(name: str, dtype: torch.dtype) -> Any:
    return getattr(cpu.native, f"{name}_{_SUFFIX[dtype]}")


def _storage(x: Tensor) -> int:
    return _HALVES.get(x.dtype, 0)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
