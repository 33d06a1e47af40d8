"""The meta-training loop: a run that can stop at any step and continue bit for bit."""

from __future__ import annotations

import csv
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastmeta.algorithms import MAML
from fastmeta.tasks import TaskBatch
from fastmeta.training.checkpoint import (
    Checkpoint,
    check_same_run,
    load_checkpoint,
    save_checkpoint,
)


class Source(Protocol):
    """Where tasks come from: a seeded stream that can be continued."""

    def sample(self, n_tasks: int) -> TaskBatch:
        """Draw the next tasks."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Where the stream stands."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue the stream from there."""
        ...


class TrainingDiverged(RuntimeError):
    """The loss or a gradient is no longer a finite number."""


class Run:
    """A meta-learner, its source of tasks and its optimizer, at some step.

    Args:
        meta: the meta-learner.
        source: gives the tasks of each step.
        optimizer: over ``meta.parameters()``.
        meta_batch: tasks a step.
        clip: largest norm of the meta-gradient, or None.
        config: plain values that say what the run does; a checkpoint is only taken up by a run
            with the same config.
        notes: plain values for the checkpoint that may differ when the run continues.
    """

    def __init__(
        self,
        meta: MAML,
        source: Source,
        optimizer: torch.optim.Optimizer,
        *,
        meta_batch: int,
        clip: float | None = None,
        config: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        self.meta = meta
        self.source = source
        self.optimizer = optimizer
        self.meta_batch = meta_batch
        self.clip = clip
        self.config = dict(config or {})
        self.notes = dict(notes or {})
        self.step = 0

    def advance(self) -> float:
        """Do one meta-step and return its loss, the mean over the tasks.

        Raises:
            TrainingDiverged: the loss or the meta-gradient is not finite; nothing was updated.
        """
        self.optimizer.zero_grad()
        loss = self.meta(self.source.sample(self.meta_batch)).loss.mean()
        loss.backward()
        limit = math.inf if self.clip is None else self.clip
        norm = nn.utils.clip_grad_norm_(self.meta.parameters(), limit)
        value = loss.item()
        if not math.isfinite(value) or not math.isfinite(norm.item()):
            raise TrainingDiverged(
                f"step {self.step + 1}: the loss is {value:g}, its gradient has norm {norm:g}"
            )
        self.optimizer.step()
        self.step += 1
        return value

    def save(self, path: str | Path) -> None:
        """Write all that is needed to continue, atomically."""
        streams = {
            **self.source.state_dict(),
            # Layers may draw too: dropout in the vmap engine uses the global generator.
            "torch": torch.get_rng_state(),
        }
        state = Checkpoint(
            step=self.step,
            config=self.config,
            notes=self.notes,
            meta=self.meta.state_dict(),
            optimizer=self.optimizer.state_dict(),
            streams=streams,
        )
        save_checkpoint(path, state)

    def resume(self, path: str | Path) -> None:
        """Continue from a checkpoint of the same run.

        Raises:
            ValueError: the file is damaged or from a run with another config.
        """
        saved = load_checkpoint(path)
        check_same_run(path, saved.config, self.config)
        self.meta.load_state_dict(saved.meta)
        self.optimizer.load_state_dict(dict(saved.optimizer))
        streams = dict(saved.streams)
        torch.set_rng_state(streams.pop("torch"))
        self.source.load_state_dict(streams)
        self.step = saved.step


def train(
    run: Run,
    *,
    steps: int,
    checkpoint: str | Path | None = None,
    save_every: int = 500,
    curve: Curve | None = None,
    report: Callable[[int, float], None] | None = None,
) -> int | None:
    """Advance `run` until it has done `steps` meta-steps in all.

    SIGINT (Ctrl-C) and SIGTERM let the step in progress finish; then, as at the end, the
    checkpoint is written. A second signal interrupts at once.

    Args:
        run: where to go on from.
        steps: meta-steps in all, those before a resume included.
        checkpoint: file to save to, every `save_every` steps and when training stops.
        save_every: steps between two saves.
        curve: gets the loss of every step.
        report: called with the step and its loss.

    Returns:
        None if all steps were done, else the number of the signal that stopped them.

    Raises:
        TrainingDiverged: see `Run.advance`; the last checkpoint stays as it is.
    """

    def save() -> None:
        if checkpoint is not None:
            run.save(checkpoint)
        if curve is not None:
            curve.flush()

    with signals_noted() as noted:
        while run.step < steps and not noted:
            loss = run.advance()
            if curve is not None:
                curve.add(run.step, loss)
            if report is not None:
                report(run.step, loss)
            if run.step % save_every == 0 and run.step < steps:
                save()
        save()
    return noted[0] if noted and run.step < steps else None


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM inside the block instead of acting on it."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted  # only the main thread can handle signals
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(number: int, _frame: FrameType | None) -> None:
        noted.append(number)
        restore()

    for number in previous:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        restore()


class Curve:
    """The loss of every step as a CSV file (step, loss), written at each save.

    Args:
        path: the file.
        after: keep what the file says up to this step (0: begin anew).

    Raises:
        ValueError: the file is there but is no such curve.
    """

    def __init__(self, path: str | Path, *, after: int = 0) -> None:
        self.path = Path(path)
        self._rows: list[tuple[int, float]] = self._read(after) if after else []

    def add(self, step: int, loss: float) -> None:
        """Note the loss of a step."""
        self._rows.append((step, loss))

    def flush(self) -> None:
        """Write the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("step", "loss"))
            writer.writerows(self._rows)

    def _read(self, after: int) -> list[tuple[int, float]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            rows = list(csv.reader(file))
        try:
            if rows[:1] != [["step", "loss"]]:
                raise ValueError("no header 'step,loss'")
            values = [(int(step), float(loss)) for step, loss in rows[1:]]
        except ValueError as error:
            raise ValueError(f"{self.path} is no training curve: {error}") from error
        return [(step, loss) for step, loss in values if step <= after]
