"""`fastmeta evaluate`."""

from __future__ import annotations

import argparse
from typing import Any

from fastmeta.cli.options.common import add_command, add_machine
from fastmeta.cli.options.kinds import positive, ways

FEATURES = ("un", "l2n", "cl2n")


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
    _add_few_shot(evaluate)
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


def _add_few_shot(evaluate: argparse.ArgumentParser) -> None:
    group = evaluate.add_argument_group("images, vectors")
    group.add_argument(
        "--ways",
        type=ways,
        help="classes a task; protonet, matchingnet, r2d2 and protomaml take any (default: as in "
        "the training's validation)",
    )
    group.add_argument("--shots", type=positive, help="support samples a class (default: likewise)")
    group.add_argument(
        "--queries",
        type=positive,
        help="query samples a class (default: 15, or as many as the smallest class has left)",
    )
    group.add_argument(
        "--features",
        choices=FEATURES,
        default="un",
        help="protonet: what distances are taken between, by SimpleShot's names: un: features as "
        "they are; l2n: divided by their norm; cl2n: the mean over the classes learned from "
        "subtracted before (default: %(default)s)",
    )
    group.add_argument(
        "--embedding",
        metavar="FILE",
        help="protonet, matchingnet, r2d2: draw six tasks as the encoder sees them, with their "
        "prototypes, e.g. FILE.png",
    )
