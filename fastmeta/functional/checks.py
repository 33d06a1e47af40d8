"""What every task-batched operation checks before it computes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import SymInt, Tensor

from fastmeta.counts import whole_number
from fastmeta.words import kind_of

__all__ = ["check_parameter", "check_samples", "count_of", "pair"]


def check_samples(name: str, x: Tensor, form: str) -> None:
    """TypeError or ValueError unless `x` is floating and has the dimensions that `form` names.

    `form` is like "[T, S, C, H, W]", or "[T, S, C, ...]" for that many or more.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor {form}, not {kind_of(x)}")
    rank = form.count(",") + (not form.endswith("...]"))
    if x.dim() < rank or (x.dim() > rank and not form.endswith("...]")):
        raise ValueError(f"{name} must be {form}, not {list(x.shape)}")
    if x.shape[0] == 0 or x.shape[1] == 0:
        raise ValueError(f"{name} is empty: {list(x.shape)} has no tasks or no samples")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be a floating tensor, not {x.dtype}")


def check_parameter(name: str, parameter: Tensor, shape: Sequence[int], x: Tensor) -> None:
    """TypeError or ValueError unless it is [*shape] or [T, *shape], with T and the rest of x."""
    if not isinstance(parameter, Tensor):
        raise TypeError(f"{name} must be a tensor, not {kind_of(parameter)}")
    given = tuple(parameter.shape)
    if given not in (tuple(shape), (x.shape[0], *shape)):
        raise ValueError(
            f"{name} must be {[*shape]} or {[len(x), *shape]} for x {list(x.shape)}, "
            f"not {list(parameter.shape)}"
        )
    if parameter.dtype is not x.dtype or parameter.device != x.device:
        raise TypeError(
            f"{name} is {parameter.dtype} on {parameter.device}, x {x.dtype} on {x.device}"
        )


def pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """A whole number, or two of them for height and width, each at least `least`."""
    both = (value, value) if isinstance(value, (int, SymInt)) else value
    values = tuple(map(_plain, both))
    if len(values) != 2 or any(type(v) is not int or v < least for v in values):
        raise ValueError(
            f"{name} must be one or two whole numbers of at least {least}, not {value!r}"
        )
    return values


def count_of(name: str, value: int) -> int:
    """A whole number of at least 1."""
    return whole_number(name, _plain(value))


def _plain(value: int) -> int:
    """A number that a compiler would leave open is fixed: it compiles again for another."""
    return int(value) if isinstance(value, SymInt) else value
