"""Meta-training that can stop and continue bit for bit, and evaluation with intervals."""

from fastmeta.algorithms.learner import in_evaluation
from fastmeta.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fastmeta.training.curve import Curve, read_curve
from fastmeta.training.embedding import plot_embedding
from fastmeta.training.evaluate import (
    accuracy_by_step,
    adaptation_seconds,
    cross_validated_error,
    error_by_step,
)
from fastmeta.training.graphed import GraphedStep, StepOutcome, rates_on_device
from fastmeta.training.interval import Interval, interval, student_t
from fastmeta.training.learner import MetaLearner
from fastmeta.training.loop import Log, best_checkpoint, train
from fastmeta.training.memory import keep_freed_memory
from fastmeta.training.plot import check_picture, plot_curve
from fastmeta.training.run import Run, TrainingDiverged
from fastmeta.training.schedule import Schedule
from fastmeta.training.source import Source
from fastmeta.training.tensorboard import TensorBoard
from fastmeta.training.validation import Score, Validation

__all__ = [
    "Checkpoint",
    "Curve",
    "GraphedStep",
    "Interval",
    "Log",
    "MetaLearner",
    "Run",
    "Schedule",
    "Score",
    "Source",
    "StepOutcome",
    "TensorBoard",
    "TrainingDiverged",
    "Validation",
    "accuracy_by_step",
    "adaptation_seconds",
    "best_checkpoint",
    "check_picture",
    "cross_validated_error",
    "error_by_step",
    "in_evaluation",
    "interval",
    "keep_freed_memory",
    "load_checkpoint",
    "plot_curve",
    "plot_embedding",
    "rates_on_device",
    "read_curve",
    "save_checkpoint",
    "student_t",
    "train",
]


def __dir__() -> list[str]:
    return [*__all__]
