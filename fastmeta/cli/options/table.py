"""`fastmeta train table`."""

from __future__ import annotations

import argparse
from typing import Any

from fastmeta.cli.options.common import add_command
from fastmeta.cli.options.kinds import delimiter, fraction, norm, positive
from fastmeta.cli.options.training import add_mlp, add_training

# Found by cross-validation over the training patients of the Parkinson's table, see
# docs/notes/parkinsons.md.
DEFAULTS: dict[str, Any] = dict(
    shots=5, hidden=[16], activation="tanh", algorithm="maml", inner_lr=0.1, inner_steps=5,
    learn_inner_lr="tensor", per_step_lr=False, meta_batch=None, steps=500, lr=3e-3,
    schedule="constant", weight_decay=None, checkpoint="fastmeta-table.safetensors",
)  # fmt: skip


def add_table(sources: Any) -> None:
    """Add the source."""
    table = add_command(sources, "table", "a CSV file in which one column names the task")
    table.add_argument("file", metavar="FILE", help="CSV file with a header")
    _add_columns(table)
    _add_tasks(table)
    add_mlp(table, DEFAULTS)
    add_training(table, DEFAULTS)


def _add_columns(table: argparse.ArgumentParser) -> None:
    group = table.add_argument_group(
        "columns",
        "Inputs are all columns but the task, the target, and by default those whose name holds "
        "the word time, date, datetime or timestamp, and those that end in the same word as a "
        "target of several words (total_UPDRS beside motor_UPDRS). What is used and what is left "
        "out is printed. Inputs and target are standardised on the tasks to learn from, and inputs "
        "cut at 5 standard deviations.",
    )
    group.add_argument("--task", required=True, metavar="COLUMN", help="names the task of a row")
    group.add_argument("--target", required=True, metavar="COLUMN", help="the number to predict")
    several: dict[str, Any] = dict(nargs="+", action="extend", metavar="COLUMN")
    group.add_argument("--features", **several, help="exactly these columns are the inputs")
    group.add_argument("--drop", **several, default=[], help="columns that are not inputs")
    group.add_argument("--keep", **several, default=[], help="inputs although left out by default")
    group.add_argument("--delimiter", type=delimiter, default=",", help="default: a comma")
    group.add_argument("--encoding", default="utf-8", help="of the file (default: %(default)s)")


def _add_tasks(table: argparse.ArgumentParser) -> None:
    group = table.add_argument_group("tasks")
    group.add_argument("--shots", type=positive, help="support rows a task (default: %(default)s)")
    group.add_argument(
        "--held-out",
        type=fraction,
        default=0.25,
        metavar="FRACTION",
        help="tasks kept for `evaluate` (default: %(default)s)",
    )
    group.add_argument(
        "--split-seed",
        type=int,
        default=0,
        help="another choice of held-out tasks: those whose SHA-256 of 'seed:name' is smallest "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--skip-small-tasks",
        action="store_true",
        help="leave out tasks with too few rows instead of stopping",
    )
    group.add_argument(
        "--support-norm",
        type=norm,
        metavar="P",
        help="weight the support rows so that their mean is their centre in this norm: 1 median, "
        "2 mean, more: closer to the middle of the extremes (default: the best of 1, 1.5, 2, 3 on "
        "the tasks to learn from)",
    )
