"""Whether Python objects are what they were: many small comparisons in one native call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from fastmeta.backends import cpu

__all__ = ["COMPARED", "distinct_items", "flat", "unchanged"]

COMPARED = (bool, int, float, str, tuple, type(None))  # by value; all else by identity


def flat(groups: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    """One tuple: the native code reads it faster than tuples in a tuple."""
    return tuple(chain.from_iterable(groups))


def _groups(flat: tuple[Any, ...], n: int) -> Iterator[tuple[Any, ...]]:
    return zip(*[iter(flat)] * n, strict=True)


def _all_same(
    owners: tuple[Any, ...],
    objects: tuple[Any, ...],
    lengths: tuple[Any, ...],
    values: tuple[Any, ...],
    items: tuple[Any, ...],
    keys: tuple[Any, ...],
) -> bool:
    """What the native `unchanged` tells, where there is none."""
    return (
        all(type(o) is kind and o.__dict__ is own for o, kind, own in _groups(owners, 3))
        and all(own.get(key) is held for own, key, held in _groups(objects, 3))
        and all(len(each) == length for each, length in _groups(lengths, 2))
        and all([*map(id, each.values())] == [*map(id, held)] for each, held in _groups(values, 2))
        and all(key in own and _same(own[key], value) for own, key, value in _groups(items, 3))
        and all((key in own) is there for own, key, there in _groups(keys, 3))
    )


def _same(found: Any, value: Any) -> bool:
    """Whether plain values are equal; all else, tensors for one, is the same only as itself."""
    if found is value:
        return True
    if type(found) is not type(value) or type(found) not in COMPARED:
        return False
    if type(found) is tuple:
        return len(found) == len(value) and all(map(_same, found, value))
    return bool(found == value)


def _all_distinct(sources: tuple[Any, ...]) -> dict[str, Any] | None:
    """What the native `distinct_items` gives, where there is none."""
    found = {name: own.get(key) for name, own, key in _groups(sources, 3)}
    numbers = {*map(id, found.values())}
    whole = len(numbers) == len(found) and id(None) not in numbers
    return found if whole else None


unchanged, distinct_items = (
    (_all_same, _all_distinct)
    if cpu.native is None
    else (cpu.native.unchanged, cpu.native.distinct_items)
)
