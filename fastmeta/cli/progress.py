"""Progress: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

from fastmeta.training import Score


class Progress:
    """Reports steps on stderr, with their loss averaged over about the last 100.

    Args:
        title: what is going on.
        steps: in all.
        done: steps done before.
    """

    def __init__(self, title: str, steps: int, done: int = 0) -> None:
        self._title = title
        self._steps = steps
        self._done = done
        self._loss: float | None = None
        self._score: Score | None = None
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=title, total=steps, initial=done, unit="step", dynamic_ncols=True, leave=False
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, loss: float, score: Score | None = None) -> None:
        """One more step is done, and perhaps validated."""
        self._done += 1
        self._loss = loss if self._loss is None else 0.99 * self._loss + 0.01 * loss
        if self._bar is None:
            if self._at_a_fifth() or score is not None:
                self._print(score)
            return
        self._score = score or self._score
        self._bar.update()
        if self._done % 50 == 0 or score is not None:
            self._bar.set_postfix_str(self._numbers(self._score), refresh=False)

    def _at_a_fifth(self) -> bool:
        return self._done * 5 // self._steps > (self._done - 1) * 5 // self._steps

    def _print(self, score: Score | None) -> None:
        line = f"{self._title}: step {self._done} of {self._steps}, {self._numbers(score)}"
        print(line, file=sys.stderr, flush=True)

    def _numbers(self, score: Score | None) -> str:
        text = f"loss {self._loss:.4g}"
        return text if score is None else f"{text}, in validation {described(score)}"


def described(score: Score) -> str:
    """Return the number that a score is judged by, in words."""
    if score.accuracy is None:
        return f"loss {score.loss:.4g}"
    return f"accuracy {score.accuracy:.4f}"
