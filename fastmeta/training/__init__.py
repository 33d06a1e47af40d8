"""Meta-training that can stop and continue bit for bit, and evaluation with intervals."""

from fastmeta.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fastmeta.training.curve import Curve, read_curve
from fastmeta.training.embedding import plot_embedding
from fastmeta.training.evaluate import (
    Interval,
    accuracy_by_step,
    adaptation_seconds,
    cross_validated_error,
    error_by_step,
    interval,
    student_t,
)
    "plot_embedding",
