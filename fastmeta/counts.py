"""Counts and seeds that users give. Imports nothing heavy."""

from __future__ import annotations

import operator
from typing import Any

__all__ = ["as_whole", "check_seed", "whole_number"]


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int; ValueError unless it is a whole number, and not below `least`."""
    number = as_whole(value)
    if number is None or number < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return number


def check_seed(seed: Any) -> int:
    """`seed` as an int; ValueError unless it is a whole number that PyTorch's generators take."""
    number = as_whole(seed)
    if number is None or not -(2**63) <= number < 2**64:
        raise ValueError(f"seed must be a whole number of 64 bits, not {seed!r}")
    return number


def as_whole(value: Any) -> int | None:
    """`value` as an int, or None where it is no whole number; True and 2.0 are none."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
