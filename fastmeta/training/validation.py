"""Validation: the same tasks every time, and which score is the best so far."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastmeta.algorithms.learner import in_evaluation
from fastmeta.counts import whole_number
from fastmeta.tasks import MetaOutput
from fastmeta.training.learner import MetaLearner
from fastmeta.training.source import Source


@dataclass(frozen=True)
class Score:
    """How a meta-learner does on the validation tasks.

    Attributes:
        step: meta-steps it had done.
        loss: mean query loss over tasks.
        accuracy: mean query accuracy over tasks; None where targets are no class labels.
    """

    step: int
    loss: float
    accuracy: float | None = None

    def beats(self, other: Score | None) -> bool:
        """By accuracy, or by loss where there is none; what came first keeps its place."""
        if other is None:
            return True
        if self.accuracy is None or other.accuracy is None:
            return self.loss < other.loss
        return self.accuracy > other.accuracy


class Validation:
    """Judges a meta-learner on the next tasks of a source, and always on the same ones.

    The source is set back before each use, so the tasks need no memory between two of them.

    Args:
        source: of tasks that are not trained on; nobody else may draw from it.
        every: meta-steps between two validations.
        tasks: how many.
        batch: tasks at once; None: all.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(
        self, source: Source, *, every: int = 500, tasks: int = 200, batch: int | None = None
    ) -> None:
        self.every = whole_number("every", every)
        self.tasks = whole_number("tasks", tasks)
        self.batch = self.tasks if batch is None else whole_number("batch", batch)
        self._source = source
        self._start = source.state_dict()

    def score(self, meta: MetaLearner, step: int) -> Score:
        """Judge `meta` in eval() mode, when it has done `step` meta-steps."""
        self._source.load_state_dict(self._start)
        with in_evaluation(meta):
            outputs = [self._output(meta, first) for first in range(0, self.tasks, self.batch)]
        loss = torch.cat([output.loss for output in outputs]).mean().item()
        if outputs[0].targets.is_floating_point():
            return Score(step, loss)
        accuracy = torch.cat([output.accuracy for output in outputs])
        return Score(step, loss, accuracy.double().mean().item())

    def _output(self, meta: MetaLearner, first: int) -> MetaOutput:
        with torch.no_grad():
            return meta(self._source.sample(min(self.batch, self.tasks - first)))
