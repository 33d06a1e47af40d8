"""Errors of use, told apart from bugs, and exit statuses."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 128 + signal.SIGINT


class UsageError(Exception):
    """Something the user can put right: printed as one line, exit status 2."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn what the library says about its arguments and files into a `UsageError`.

    For the parts of a command that read options and files; outside of them the same exceptions
    are bugs and keep their traceback.
    """
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise UsageError(_one_line(error)) from error


@contextmanager
def result_written(path: str) -> Iterator[None]:
    """Turn what the system says while the file of a result is written into a `UsageError`."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path} was not written: {error.strerror or error}") from error


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
