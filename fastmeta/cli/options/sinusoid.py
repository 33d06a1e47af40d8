"""`fastmeta train sinusoid`."""

from __future__ import annotations

from typing import Any

from fastmeta.cli.options.common import add_command
from fastmeta.cli.options.kinds import positive
from fastmeta.cli.options.training import add_mlp, add_training

DEFAULTS: dict[str, Any] = dict(
    shots=10, queries=10, hidden=[40, 40], activation="relu", algorithm="maml", inner_lr=0.01,
    inner_steps=5, learn_inner_lr="none", per_step_lr=False, meta_batch=25, steps=20_000, lr=1e-3,
    schedule="constant", weight_decay=0.0, validate_every=1000, validation_tasks=1000,
    checkpoint="fastmeta-sinusoid.safetensors",
)  # fmt: skip


def add_sinusoid(sources: Any) -> None:
    """Add the source."""
    sinusoid = add_command(sources, "sinusoid", "sine waves of random amplitude and phase, endless")
    group = sinusoid.add_argument_group("tasks")
    group.add_argument(
        "--shots", type=positive, help="support points a task (default: %(default)s)"
    )
    group.add_argument(
        "--queries", type=positive, help="query points a task (default: %(default)s)"
    )
    add_mlp(sinusoid, DEFAULTS)
    add_training(sinusoid, DEFAULTS)
