"""The loss of prototypical networks."""

from __future__ import annotations

import math

from torch import Tensor

from fastmeta.functional.checks import check_samples, count_of
from fastmeta.functional.distances import check_metric, check_pair, distance
from fastmeta.functional.labels import (
    check_labels,
    check_weight,
    labels_in_range,
    without_padding,
)
from fastmeta.functional.losses import task_loss
from fastmeta.functional.precision import for_sums
from fastmeta.functional.prototypes import class_means

__all__ = ["prototype_loss"]


def prototype_loss(
    support: Tensor,
    support_y: Tensor,
    query: Tensor,
    query_y: Tensor,
    *,
    n_way: int,
    metric: str = "sqeuclidean",
    temperature: float | Tensor = 1.0,
    support_weight: Tensor | None = None,
    query_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Classify the queries of each task by their distances to its prototypes.

    The logits are minus the distances over the temperature; the loss is the mean cross-entropy
    over the task's queries: Snell et al. 2017, equation 2 and algorithm 1.

    Args:
        support: [T, S, D] features, floating; half precision is summed in float32.
        support_y: [T, S], int64, in [0, n_way), in any order and any number a class.
        query: [T, Q, D].
        query_y: [T, Q], int64, in [0, n_way).
        n_way: N, the number of classes.
        metric: "sqeuclidean", "euclidean", "cosine" or "dot", as in `pairwise_distance`.
        temperature: above 0; a number, or a tensor [] or [T], which may be learned.
        support_weight: [T, S], finite and not negative, as in `prototypes`. A sample of weight 0
            is padding, and may hold anything; so below.
        query_weight: [T, Q]; the mean over queries becomes sum(weight * loss) / sum(weight).

    Returns:
        The loss [T] and the logits [T, Q, N], of the dtype of the features (float32 for half
        precision), differentiable to any order. The logits of padding have no meaning.

    Raises:
        ValueError: shapes that do not fit, a label outside [0, n_way), a class without a support
            sample of weight above 0, a weight that is negative or not finite, an unknown metric,
            a temperature that is not above 0.
        TypeError: dtypes or devices that do not fit.

    Equivalent to::

        means = prototypes(support, support_y, n_way)
        logits = -pairwise_distance(query, means, metric) / temperature
        loss = torch.stack([F.cross_entropy(logits[t], query_y[t]) for t in range(T)])
    """
    check_metric(metric)
    n_way = count_of("n_way", n_way)
    check_samples("support", support, "[T, S, D]")
    check_labels("support_y", support_y, "support", support)
    query_sums, support_sums = check_pair("query", query, "support", support)
    check_labels("query_y", query_y, "query", query)
    temperature = _temperature(temperature, query_sums)
    if support_weight is not None:
        check_weight("support_weight", support_weight, "support", support)
        support_weight = for_sums(support_weight)
    if query_weight is not None:
        check_weight("query_weight", query_weight, "query", query)
        query_weight = for_sums(query_weight)
    return _composed(
        support_sums, support_y, query_sums, query_y, n_way, metric, temperature,
        support_weight, query_weight,
    )  # fmt: skip


def _composed(
    support: Tensor, support_y: Tensor, query: Tensor, query_y: Tensor, n_way: int, metric: str,
    temperature: float | Tensor, support_weight: Tensor | None, query_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The loss made of differentiable operations."""
    support_y = labels_in_range("support_y", support_y, support_weight, n_way, every_class=True)
    query_y = labels_in_range("query_y", query_y, query_weight, n_way, every_class=False)
    support = without_padding(support, support_weight)
    query = without_padding(query, query_weight)
    means = class_means(support, support_y, n_way, support_weight)
    logits = -distance(query, means, metric) / temperature
    return task_loss("cross_entropy", logits, query_y, query_weight), logits


def _temperature(temperature: float | Tensor, query: Tensor) -> float | Tensor:
    """A number, or a tensor that broadcasts with [T, Q, N]."""
    if not isinstance(temperature, Tensor):
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be above 0 and finite, not {temperature!r}")
        return temperature
    tasks = len(query)
    if list(temperature.shape) not in ([], [tasks]):
        raise ValueError(f"temperature must be [] or [{tasks}], not {list(temperature.shape)}")
    temperature = for_sums(temperature)
    if temperature.dtype is not query.dtype or temperature.device != query.device:
        raise TypeError(
            f"temperature is {temperature.dtype} on {temperature.device}, query {query.dtype} on "
            f"{query.device}"
        )
    return temperature.reshape(-1, 1, 1)
