"""`fastmeta evaluate`."""

from __future__ import annotations

from typing import Any

from fastmeta.cli.options.common import add_command, add_machine
from fastmeta.cli.options.kinds import positive


def add_evaluate(commands: Any) -> None:
    """Add the command."""
    evaluate = add_command(
        commands, "evaluate", "measure a checkpoint on tasks it has not seen, step by step"
    )
    evaluate.add_argument("checkpoint", metavar="CHECKPOINT")
    evaluate.add_argument(
        "--inner-steps", type=positive, help="adapt this far (default: as in training)"
    )
    evaluate.add_argument(
        "--tasks", type=positive, help="sinusoid, images: tasks (default: 1000, 600)"
    )
    evaluate.add_argument(
        "--draws",
        type=positive,
        default=100,
        help="table: random choices of the support rows of each task (default: %(default)s)",
    )
    evaluate.add_argument(
        "--data",
        metavar="PATH",
        help="where the data is now; table: also a file of the same columns with new tasks; all "
        "tasks that were not trained on are evaluated",
    )
    evaluate.add_argument("--json", metavar="FILE", help="write the numbers too")
    add_machine(evaluate)
