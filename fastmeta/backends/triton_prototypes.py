"""Prototypes of many tasks in the Triton kernels: the raw functions of `backends.prototypes`.

T tasks, S support samples, Q queries, N classes, D features. The same functions with the same
meaning, on the GPU; features of half precision are converted as they are loaded. Whether labels
and weights fit is read back once a call, after all else has been launched; inside a CUDA graph that
cannot be, and a label that does not fit makes the loss NaN.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.accuracy import accuracy_of
from fastmeta.backends import triton
from fastmeta.backends.halves import HALVES, dtype_of_sums, for_sums
from fastmeta.backends.operation import operation
from fastmeta.backends.prototypes import in_all

__all__ = [
    "LOADED", "can_find", "class_means", "loss_backward", "loss_forward", "nearest", "project",
    "pull", "squared",
]  # fmt: skip

LOADED = (torch.float32, torch.float64, *HALVES)  # dtypes of features for the loss and `nearest`

_MOST_NEAREST = 64


def can_find(x: Tensor, prototypes: Tensor, k: int) -> str | None:
    """None if `nearest` takes these, else the reason why not."""
    if x.dtype is torch.float64:
        return f"the tensors are {x.dtype}, and the kernel orders float32"
    if k > _MOST_NEAREST:
        return f"k is {k}, and the kernel keeps at most {_MOST_NEAREST}"
    if prototypes.shape[1] >= 2**31:
        return f"there are {prototypes.shape[1]} prototypes, and the kernel numbers 2^31"
    return triton.refusal(x, prototypes, dtypes=LOADED)


@triton.on_their_device
def class_means(
    features: Tensor, labels: Tensor, n_way: int, weight: Tensor | None
) -> Tensor | None:
    """[T, S, D], [T, S], and weights [T, S] -> [T, N, D]; None if labels or weights do not fit."""
    from fastmeta.kernels.class_means import class_means as kernel
    from fastmeta.kernels.labels_fit import misfits

    means, mass = kernel(features, labels, weight, n_way, features)
    return means if _all_fit(misfits(labels, weight, n_way, mass)) else None


@operation("triton_squared_distances(Tensor x, Tensor y) -> Tensor")
@triton.on_their_device
def squared(x: Tensor, y: Tensor) -> Tensor:
    """[T, Q, D], [T, N, D] -> |x_q - y_n|^2, [T, Q, N]"""
    from fastmeta.kernels.pairwise import pairwise

    return pairwise(x, y, "sqeuclidean", x)


@operation("triton_project_differences(Tensor a, Tensor x, Tensor y) -> Tensor")
@triton.on_their_device
def project(a: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[T, Q, D], [T, Q, D], [T, N, D] -> a_q . (x_q - y_n), [T, Q, N]"""
    from fastmeta.kernels.project import project as kernel

    return kernel(a, x, y)


@operation("triton_pull_differences(Tensor h, Tensor x, Tensor y) -> Tensor")
@triton.on_their_device
def pull(h: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[T, Q, N], [T, Q, D], [T, N, D] -> sum over n of h_qn (x_q - y_n), [T, Q, D]"""
    from fastmeta.kernels.pull import pull as kernel

    return kernel(h, x, y)


# support, support_y, support_weight, query, query_y, query_weight: as `backends.prototypes.Task`
_Task = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor | None]


class _Record(NamedTuple):
    """What a forward leaves for its backward."""

    temperature: Tensor  # [T]
    metric: str
    means: Tensor  # [T, N, D]
    mass: Tensor  # [T, N], sums of weights
    found: Any  # a PrototypeLoss
    version: int  # of the logits: how often they were written to in place


@triton.on_their_device
def loss_forward(
    task: _Task, n_way: int, metric: str, temperature: float | Tensor, differentiable: bool,
    accuracy: Tensor | None = None, share: float | None = None,
) -> tuple[Tensor, Tensor, Any] | None:  # fmt: skip
    """The loss [T], the logits [T, Q, N] and what `loss_backward` needs; fills `accuracy` [T].

    With a `share` the loss is [], the sum over tasks times the share. None if labels, weights or
    temperatures do not fit. support [T, S, D], query [T, Q, D], labels and weights [T, S] and
    [T, Q]; a temperature that is a tensor is [] or [T].
    """
    from fastmeta.kernels.class_means import class_means as means_of
    from fastmeta.kernels.labels_fit import misfits
    from fastmeta.kernels.prototype import prototype_loss

    support, support_y, support_weight, query, query_y, query_weight = task
    given_as_tensor = isinstance(temperature, Tensor)
    sums = query.new_empty(0, dtype=dtype_of_sums(query))
    if not isinstance(temperature, Tensor):
        temperature = sums.new_full((1,), temperature)
    temperature = temperature.reshape(-1).expand(len(query))
    means, mass = means_of(support, support_y, support_weight, n_way, sums)
    found = prototype_loss(query, means, query_y, query_weight, temperature, metric, sums)
    wrong = [misfits(support_y, support_weight, n_way, mass, query_y, query_weight)]
    if given_as_tensor:
        wrong.append(~((temperature > 0) & (temperature < torch.inf)))
    if not _all_fit(*wrong):
        return None
    if accuracy is not None:
        accuracy.copy_(accuracy_of(found.logits, query_y, query_weight))
    # An output in the record of its own node would keep itself, and all of the graph, forever.
    kept = found._replace(loss=found.loss.detach(), logits=found.logits.detach())
    record = _Record(temperature, metric, means, mass, kept, kept.logits._version)
    return in_all(found.loss, share), found.logits, record


@triton.on_their_device
def loss_backward(
    record: Any, task: _Task, grad_loss: Tensor, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients for support, query and the temperatures [T], of a gradient [T] for the loss.

    record: of `loss_forward` for the same task. wanted: which of the three.
    """
    from fastmeta.kernels.class_gradient import class_gradient
    from fastmeta.kernels.pair_weights import pair_weights
    from fastmeta.kernels.prototype_gradient import MOST_CLASSES, prototype_gradient

    r: _Record = record
    if r.found.logits._version != r.version:
        raise RuntimeError("the logits of prototype_loss were changed in place before its backward")
    support, support_y, support_weight, query, query_y, query_weight = task
    if r.means.shape[1] <= MOST_CLASSES:
        for_query, for_means, slopes = prototype_gradient(
            grad_loss, query, r.means, query_y, query_weight, r.temperature, r.metric, r.found
        )  # fmt: skip
    else:
        h, slopes = pair_weights(grad_loss, query_y, query_weight, r.temperature, r.metric, r.found)
        for_query, for_means = _gradient_of_many(r, for_sums(query), query_weight, h)
        for_query = for_query.to(query.dtype)
    for_support = None
    if wanted[0]:
        for_support = class_gradient(for_means, support_y, support_weight, r.mass, support.dtype)
    return (
        for_support,
        for_query if wanted[1] else None,
        slopes.sum(1) if wanted[2] else None,
    )


@operation(
    "triton_nearest(Tensor x, Tensor prototypes, int k, str metric) -> (Tensor, Tensor)"
)
@triton.on_their_device
def nearest(x: Tensor, prototypes: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    """The k least distances [T, Q, k] and their indices; ties by lowest index, NaN last.

    x [T, Q, D], prototypes [T, N, D]; unit vectors (or zeros) under "cosine".
    """
    from fastmeta.kernels.nearest import nearest as exact
    from fastmeta.kernels.nearest_rerank import nearest_by_bounds
    from fastmeta.kernels.prototype_configs import bound_block

    x, prototypes = for_sums(x), for_sums(prototypes)
    metric = "unit" if metric == "cosine" else metric
    tasks, queries, width = x.shape
    block = bound_block(tasks, queries, prototypes.shape[1], width, k)
    if block is None:
        return exact(x, prototypes, k, metric)
    return nearest_by_bounds(x, prototypes, k, metric, block)


def _gradient_of_many(
    r: _Record, query: Tensor, weight: Tensor | None, h: Tensor
) -> tuple[Tensor, Tensor]:
    """For more classes than a program holds, as sums with the weights of all pairs [T, Q, N]."""
    found = r.found
    logits = found.logits
    if weight is not None:  # a padding's logits need not be finite
        real = (weight > 0)[:, :, None]
        query, logits = torch.where(real, query, 0), torch.where(real, logits, 0)
    if r.metric in ("sqeuclidean", "euclidean"):
        return pull(h, query, r.means), pull(h.mT, r.means, query)
    if r.metric == "dot":
        return h @ r.means, h.mT @ query
    x_factor, y_factor = found.query_factor[:, :, None], found.mean_factor[:, :, None]
    along = h * (1 + r.temperature[:, None, None] * logits)
    h = h * x_factor * y_factor.mT
    for_query = h @ r.means - query * x_factor**2 * along.sum(2, keepdim=True)
    for_means = h.mT @ query - r.means * y_factor**2 * along.sum(1)[:, :, None]
    return for_query, for_means


def _all_fit(*wrong: Tensor) -> bool:
    """Whether nothing is wrong; True where it cannot be read, inside a CUDA graph."""
    if wrong[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return True
    return not bool((torch.cat(wrong) if len(wrong) > 1 else wrong[0]).any())
