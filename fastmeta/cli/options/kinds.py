"""What an option's text may be: each function returns the value or says what is wrong."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError


def natural(text: str) -> int:
    """A whole number from 0 on."""
    if not text.isdecimal():
        raise ArgumentTypeError(f"must be a whole number of at least 0, not {text!r}")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def seed(text: str) -> int:
    """A whole number that random generators take: 64 bits with a sign."""
    if not text.removeprefix("-").isdecimal() or not -(2**63) <= int(text) < 2**63:
        raise ArgumentTypeError(f"must be a whole number from -2^63 to 2^63 - 1, not {text!r}")
    return int(text)


def ways(text: str) -> int:
    """How many classes a task has: a whole number from 2 on, or there is nothing to tell apart."""
    if not text.isdecimal() or int(text) < 2:
        raise ArgumentTypeError(f"must be a whole number of at least 2, not {text!r}")
    return int(text)


def positive_number(text: str) -> float:
    """A finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return value


def number_from_0(text: str) -> float:
    """A finite number from 0 on."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise ArgumentTypeError(f"must be a number of at least 0, not {text!r}")
    return value


def fraction(text: str) -> float:
    """A number between 0 and 1."""
    value = _number(text)
    if not 0 < value < 1:
        raise ArgumentTypeError(f"must lie between 0 and 1, not {text!r}")
    return value


def share(text: str) -> float:
    """A number from 0 to below 1."""
    value = _number(text)
    if not 0 <= value < 1:
        raise ArgumentTypeError(f"must lie between 0 and 1, not {text!r}")
    return value


def norm(text: str) -> float:
    """A finite number from 1 on."""
    value = _number(text)
    if not 1 <= value < math.inf:
        raise ArgumentTypeError(f"must be a number from 1 on, not {text!r}")
    return value


def delimiter(text: str) -> str:
    """One character, or the word for a tab."""
    character = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(character) != 1:
        raise ArgumentTypeError(f"must be one character or 'tab', not {text!r}")
    return character


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
