"""`fastmeta train vectors`: labelled vectors in an npz file."""

from __future__ import annotations

import argparse
from typing import Any

from fastmeta.cli.options.algorithms import CLASSIFIERS, defaults_by_algorithm
from fastmeta.cli.options.common import add_command
from fastmeta.cli.options.kinds import fraction, natural, positive, share, ways
from fastmeta.cli.options.metric import add_evaluation_tasks, add_metric
from fastmeta.cli.options.training import add_training

TRANSFORMS = ("none", "sqrt", "standardise")

GRADIENT: dict[str, Any] = dict(
    ways=5, shots=1, queries=5, eval_ways=None, eval_shots=None, hidden=[64], activation="relu",
    dropout=0.0, inner_lr=0.1, inner_steps=1, learn_inner_lr="tensor", per_step_lr=False,
    meta_batch=8, steps=2000, lr=1e-3, schedule="constant", weight_decay=0.0, validate_every=100,
    validation_tasks=400, checkpoint="fastmeta-vectors.safetensors",
)  # fmt: skip
METRIC: dict[str, Any] = dict(
    ways=30, eval_ways=5, eval_shots=1, hidden=[512], dropout=0.5, meta_batch=2, steps=300,
    lr=3e-4, validate_every=50,
)  # fmt: skip


def add_vectors(sources: Any) -> None:
    """Add the source."""
    source: Any = add_command(sources, "vectors", "a NumPy archive of feature vectors and labels")
    source.add_argument("data", metavar="FILE", help="npz file")
    by_algorithm = defaults_by_algorithm(GRADIENT, METRIC)
    # With vectors ProtoNet comes first: features near those of the file are good features.
    source.by_algorithm = {"protonet": by_algorithm["protonet"], **by_algorithm}
    _add_arrays(source)
    _add_tasks(source)
    add_evaluation_tasks(source)
    _add_network(source)
    add_metric(source)
    add_training(source, by_algorithm["protonet"], CLASSIFIERS)


def _add_arrays(source: argparse.ArgumentParser) -> None:
    group = source.add_argument_group("vectors")
    group.add_argument(
        "--features", required=True, metavar="ARRAY", help="numbers [n, D], one row a sample"
    )
    group.add_argument(
        "--labels", default="labels", metavar="ARRAY", help="its classes [n] (default: %(default)s)"
    )
    group.add_argument(
        "--drop-rows",
        type=natural,
        nargs="+",
        default=[],
        metavar="ROW",
        help="rows to leave out, counted from 0",
    )
    group.add_argument(
        "--transform",
        choices=TRANSFORMS,
        default="none",
        help="sqrt: for histograms, whose distance then is Hellinger's, times 8; standardise: by "
        "the classes to learn from (default: %(default)s)",
    )
    group.add_argument(
        "--test-classes",
        type=fraction,
        default=0.4,
        metavar="FRACTION",
        help="classes kept for `evaluate` (default: %(default)s)",
    )
    group.add_argument(
        "--validation-classes",
        type=share,
        default=0.15,
        metavar="FRACTION",
        help="classes to choose the best checkpoint with; 0: none (default: %(default)s)",
    )
    group.add_argument(
        "--split-seed",
        type=int,
        default=0,
        help="another choice; classes are ordered by the SHA-256 of 'seed:name' "
        "(default: %(default)s)",
    )


def _add_tasks(source: argparse.ArgumentParser) -> None:
    group = source.add_argument_group("tasks")
    group.add_argument("--ways", type=ways, help="classes a task (default: %(default)s)")
    for name, about in (("--shots", "support"), ("--queries", "query")):
        group.add_argument(
            name, type=positive, help=f"{about} vectors a class (default: %(default)s)"
        )


def _add_network(source: argparse.ArgumentParser) -> None:
    group = source.add_argument_group(
        "network", "A perceptron; as an encoder, it learns what to add to its input."
    )
    group.add_argument(
        "--hidden",
        type=positive,
        nargs="*",
        metavar="WIDTH",
        help="hidden layers (default: %(default)s)",
    )
    group.add_argument("--activation", help="as of sinusoid (default: %(default)s)")
    group.add_argument(
        "--dropout", type=share, help="of hidden layers, in encoders (default: %(default)s)"
    )
