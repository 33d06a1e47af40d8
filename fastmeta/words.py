"""How messages put things: names that are close, counts, durations. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "adaptation_time", "after_steps", "counted", "did_you_mean", "duration", "kind_of", "nearest",
    "one_of",
]  # fmt: skip


def nearest(name: object, known: Iterable[object], most: int = 1) -> list[str]:
    """The known names most like `name`, best first; none if none is like it."""
    names = {str(one).lower(): str(one) for one in known}
    return [names[one] for one in get_close_matches(str(name).lower(), names, most)]


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """"; did you mean ...?", or nothing if no known name is like this one."""
    close = nearest(name, known)
    return f"; did you mean {close[0]!r}?" if close else ""


def one_of(what: str, name: object, known: Iterable[object]) -> str:
    """What a message says of a name that is not known."""
    known = [*known]
    listed = ", ".join(map(str, known))
    return f"{what} must be one of {listed}, not {name!r}{did_you_mean(name, known)}"


def kind_of(value: object) -> str:
    """The type of what should have been a tensor, and the way out for NumPy's arrays."""
    name = type(value).__name__
    if type(value).__module__.partition(".")[0] == "numpy":
        return f"{name} (torch.from_numpy makes a tensor of a NumPy array)"
    return name


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """"1 query", "2 queries"."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """Three digits in the unit that suits them: us, ms or s."""
    for factor, unit in ((1e6, "us"), (1e3, "ms")):
        if seconds * factor < 999.5:
            return f"{_three_digits(seconds * factor)} {unit}"
    return f"{_three_digits(seconds)} s"


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def after_steps(steps: int) -> str:
    """When, counted in inner steps."""
    return f"after {counted(steps, 'step')}" if steps else "before adaptation"


def adaptation_time(seconds: float, tasks: int) -> str:
    """What evaluations say of the time that adapting to one of so many tasks takes."""
    return f"{duration(seconds)} a task ({counted(tasks, 'task')} at once)"
