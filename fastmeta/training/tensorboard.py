"""Learning curves for TensorBoard, an optional dependency."""

from __future__ import annotations

from pathlib import Path

from fastmeta.training.validation import Score


class TensorBoard:
    """Writes the loss of every step, and the validation scores, as event files.

    Args:
        folder: where the event files go; several runs can have folders beside each other.
        after: the run continues from this step; what the folder shows beyond it is dropped.

    Raises:
        ImportError: tensorboard is not installed.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, *, after: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("tensorboard is not installed: pip install tensorboard") from error
        self._writer = SummaryWriter(str(folder), purge_step=after + 1 if after else None)

    def add(self, step: int, loss: float, score: Score | None = None) -> None:
        """Note the loss of a step, and its score if it was validated."""
        self._writer.add_scalar("loss/training", loss, step)
        if score is not None:
            self._writer.add_scalar("loss/validation", score.loss, step)
            if score.accuracy is not None:
                self._writer.add_scalar("accuracy/validation", score.accuracy, step)

    def flush(self) -> None:
        """Write what was noted."""
        self._writer.flush()
