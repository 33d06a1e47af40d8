"""Progress: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType


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

    def advance(self, loss: float) -> None:
        """One more step is done."""
        self._done += 1
        self._loss = loss if self._loss is None else 0.99 * self._loss + 0.01 * loss
        if self._bar is None:
            self._print_at_each_fifth()
        else:
            self._bar.update()
            if self._done % 50 == 0:
                self._bar.set_postfix(loss=f"{self._loss:.4g}", refresh=False)

    def _print_at_each_fifth(self) -> None:
        if self._done * 5 // self._steps > (self._done - 1) * 5 // self._steps:
            line = f"{self._title}: step {self._done} of {self._steps}, loss {self._loss:.4g}"
            print(line, file=sys.stderr, flush=True)
