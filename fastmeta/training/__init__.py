"""Meta-training that can stop and continue bit for bit, and evaluation with intervals."""

from fastmeta.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fastmeta.training.evaluate import (
    Interval,
    adaptation_seconds,
    cross_validated_error,
    error_by_step,
    interval,
    student_t,
)
from fastmeta.training.loop import Curve, Run, Source, TrainingDiverged, train

__all__ = [
    "Checkpoint",
    "Curve",
    "Interval",
    "Run",
    "Source",
    "TrainingDiverged",
    "adaptation_seconds",
    "cross_validated_error",
    "error_by_step",
    "interval",
    "load_checkpoint",
    "save_checkpoint",
    "student_t",
    "train",
]
