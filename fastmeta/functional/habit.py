"""What callers have been asking for, so that it can be done before they ask."""

from __future__ import annotations

from typing import Any

__all__ = ["Habit"]


class Habit:
    """What a forward had better do for the backward to come, by what the latest ones asked for.

    It saves what lies between the two calls, and is wasted where no backward comes, or one that
    asks for something else. So a thing is expected when it was asked for twice in a row, or once
    if it is what is expected at first; and until two forwards have waited for a backward in vain.
    """

    __slots__ = ("_at_first", "_expected", "_latest", "_waiting")

    def __init__(self, at_first: Any = None) -> None:
        self._at_first = self._expected = self._latest = at_first
        self._waiting = 0

    def expected(self) -> Any:
        """Asked by a forward, which then does it; None: nothing is."""
        if self._expected is None or self._waiting == 2:
            return None
        self._waiting += 1
        return self._expected

    def met(self, asked: Any) -> None:
        """Told by a backward; None if it asked for what cannot be done before."""
        self._expected = asked if asked in (self._latest, self._at_first) else None
        self._latest = asked
        self._waiting = 0
