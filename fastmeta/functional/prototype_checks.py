"""What the loss of prototypes checks of its arguments: once for all calls that look alike."""

from __future__ import annotations

import math
from collections.abc import Hashable
from numbers import Real
from operator import is_
from types import ModuleType
from typing import NamedTuple

from torch import Tensor

from fastmeta.backends import prototypes, requested_backend
from fastmeta.backends.halves import dtype_of_sums, for_sums
from fastmeta.backends.looks import plain_looks
from fastmeta.backends.prototypes import Task
from fastmeta.functional.checks import check_samples, count_of
from fastmeta.functional.distances import check_features, check_metric
from fastmeta.functional.habit import Habit
from fastmeta.functional.labels import check_labels, check_ways, check_weight
from fastmeta.functional.prototypes import in_sums, native_for
from fastmeta.functional.transforms import nobody_transforms

__all__ = ["Known", "checked"]

_most_calls = 256  # ragged batches have ever new looks
_known: dict[Hashable, Known] = {}  # by the look of a call that needs no change


class Known(NamedTuple):
    """What calls that look alike have in common."""

    kernels: ModuleType
    habit: Habit | None  # of the factor that backwards have for the losses; None: of no use


def checked(
    given: Task, n_way: int, metric: str, temperature: float | Tensor
) -> tuple[Known | None, Task, int, float | Tensor]:
    """The kernels that take the arguments, and these as they take them; None for no kernels.

    Raises:
        ValueError, TypeError: an argument does not fit, whatever its values.
    """
    look = _look(given, n_way, metric, temperature)
    known = _known.get(look)
    if known is not None:
        return known, given, n_way, temperature
    task, n_way, wanted = _arguments(given, n_way, metric, temperature)
    kernels = _kernels(task)
    if kernels is None:
        return None, task, n_way, wanted
    task, known = task.contiguous(), Known(kernels, Habit() if kernels is prototypes else None)
    if look is not None and all(map(is_, (*task, wanted), (*given, temperature))):
        if len(_known) >= _most_calls:
            _known.clear()
        _known[look] = known
    return known, task, n_way, wanted


def _look(given: Task, n_way: int, metric: str, temperature: float | Tensor) -> Hashable:
    """All that the checks and the choice of kernels depend on; None where that cannot be told."""
    if type(n_way) is not int or type(metric) is not str or not nobody_transforms():
        return None
    tensors: list[Tensor | None] = [*given]
    number = None
    if type(temperature) is float:
        number = temperature
    else:
        tensors.append(temperature)  # type: ignore[arg-type]
    looks = plain_looks([tensor for tensor in tensors if tensor is not None])
    if looks is None:
        return None
    weighted = given.support_weight is None, given.query_weight is None
    return looks, weighted, number, n_way, metric, requested_backend()


def _arguments(
    given: Task, n_way: int, metric: str, temperature: float | Tensor
) -> tuple[Task, int, float | Tensor]:
    """The arguments, in the precision of sums unless kernels convert them as they load them."""
    support, support_y, support_weight, query, query_y, query_weight = given
    check_metric(metric)
    n_way = count_of("n_way", n_way)
    check_samples("support", support, "[T, S, D]")
    check_labels("support_y", support_y, "support", support)
    check_ways(n_way, "support", support)
    check_features("query", query, "support", support)
    check_labels("query_y", query_y, "query", query)
    temperature = _temperature(temperature, query)
    if support_weight is not None:
        check_weight("support_weight", support_weight, "support", support)
        support_weight = for_sums(support_weight)
    if query_weight is not None:
        check_weight("query_weight", query_weight, "query", query)
        query_weight = for_sums(query_weight)
    support, query = in_sums(support, query)
    task = Task(support, support_y, support_weight, query, query_y, query_weight)
    return task, n_way, temperature


def _kernels(task: Task) -> ModuleType | None:
    if task.query_weight is not None and task.query_weight.requires_grad:
        return None
    return native_for(task.support, task.query, weight=task.support_weight, features=True)


def _temperature(temperature: float | Tensor, query: Tensor) -> float | Tensor:
    """A number, or a tensor [] or [T] in the precision of sums."""
    if not isinstance(temperature, Tensor):
        if not isinstance(temperature, Real) or isinstance(temperature, bool):
            raise TypeError(
                f"temperature must be a number or a tensor, not {type(temperature).__name__}"
            )
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be above 0 and finite, not {temperature!r}")
        return temperature if type(temperature) is float else float(temperature)
    tasks = query.shape[0]
    if list(temperature.shape) not in ([], [tasks]):
        raise ValueError(f"temperature must be [] or [{tasks}], not {list(temperature.shape)}")
    temperature = for_sums(temperature)
    if temperature.dtype is not dtype_of_sums(query) or temperature.device != query.device:
        raise TypeError(
            f"temperature is {temperature.dtype} on {temperature.device}, query {query.dtype} on "
            f"{query.device}"
        )
    return temperature.resolve_neg().contiguous()
