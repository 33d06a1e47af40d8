"""Options of learners that share an encoder: ProtoNet, Matching Networks, R2D2."""

from __future__ import annotations

import argparse

from fastmeta.cli.options.kinds import positive, positive_number, ways

METRICS = ("sqeuclidean", "euclidean", "cosine", "dot")


def add_metric(parser: argparse.ArgumentParser) -> None:
    """Add what protonet and matchingnet take; r2d2 learns all that it has."""
    group = parser.add_argument_group("protonet, matchingnet")
    group.add_argument("--metric", choices=METRICS, help="default: %(default)s")
    group.add_argument(
        "--temperature",
        type=positive_number,
        help="what distances are divided by, or where it starts (default: %(default)s)",
    )
    group.add_argument(
        "--learn-temperature",
        action=argparse.BooleanOptionalAction,
        help="default: %(default)s",
    )
    group.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="protonet: divide features by their norm, in training too (default: %(default)s)",
    )
    group.add_argument(
        "--full-context",
        action=argparse.BooleanOptionalAction,
        help="matchingnet: embed samples in the context of the support (default: %(default)s)",
    )


def add_evaluation_tasks(parser: argparse.ArgumentParser) -> None:
    """Add ways and shots of validation and evaluation, where they differ from training."""
    group = parser.add_argument_group(
        "tasks of validation and evaluation", "`evaluate` can ask for others still."
    )
    group.add_argument(
        "--eval-ways",
        type=ways,
        metavar="WAYS",
        help="not for networks with a head of --ways outputs (default: %(default)s)",
    )
    group.add_argument(
        "--eval-shots",
        type=positive,
        metavar="SHOTS",
        help="default: %(default)s",
    )
