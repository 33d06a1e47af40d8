"""The meta-training loop: it can stop at any step, and goes on bit for bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from fastmeta.training.run import Run
from fastmeta.training.signals import signals_noted
from fastmeta.training.validation import Score


class Log(Protocol):
    """Where a learning curve goes."""

    def add(self, step: int, loss: float, score: Score | None) -> None:
        """Note the loss of a step, and its score if it was validated."""
        ...

    def flush(self) -> None:
        """Write what was noted."""
        ...


def train(
    run: Run,
    *,
    steps: int,
    checkpoint: str | Path | None = None,
    save_every: int = 500,
    logs: Sequence[Log] = (),
    report: Callable[[int, float, Score | None], None] | None = None,
    deadline: float | None = None,
) -> int | Literal["time"] | None:
    """Advance `run` until it has done `steps` meta-steps in all.

    SIGINT (Ctrl-C) and SIGTERM let the step in progress finish; then, as at the end, the
    checkpoint is written. A second signal interrupts at once.

    Args:
        run: where to go on from.
        steps: meta-steps in all, those before a resume included.
        checkpoint: file to save to, every `save_every` steps and when training stops. The run with
            the best score in validation is kept in `best_checkpoint` of it.
        save_every: steps between two saves.
        logs: get the loss of every step, and every score.
        report: called with the step, its loss, and its score or None.
        deadline: no step begins that would end after this ``time.monotonic()``, as far as the
            longest one so far tells.

    Returns:
        None if all steps were done, else what stopped them: the number of the signal, or "time".

    Raises:
        TrainingDiverged: see `Run.advance`; the last checkpoint stays as it is.
    """

    def flush() -> None:
        for log in logs:
            log.flush()

    def save() -> None:
        flush()  # first: a run that is killed in between must find all rows up to its checkpoint
        if checkpoint is not None:
            run.save(checkpoint)
            if run.best is None:  # what is there is of a run that this one has replaced
                best_checkpoint(checkpoint).unlink(missing_ok=True)

    def step() -> None:
        loss = run.advance()
        score = run.validate()
        for log in logs:
            log.add(run.step, loss, score)
        if report is not None:
            report(run.step, loss, score)
        if checkpoint is not None and score is not None and score is run.best:
            run.save(best_checkpoint(checkpoint))
        if run.step % save_every == 0 and run.step < steps:
            save()

    longest = 0.0
    with signals_noted() as noted:
        try:
            while run.step < steps and not noted:
                start = time.monotonic()
                if deadline is not None and start + longest > deadline:
                    break
                step()
                longest = max(longest, time.monotonic() - start)
            save()
        finally:
            flush()
    if run.step == steps:
        return None
    return noted[0] if noted else "time"


def best_checkpoint(path: str | Path) -> Path:
    """Where the best checkpoint lies beside the last one: ``run.best.safetensors``."""
    path = Path(path)
    return path.with_name(f"{path.stem}.best{path.suffix}")
