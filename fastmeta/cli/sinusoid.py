"""Sine waves: `fastmeta train sinusoid`, and evaluation of what it trained."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from fastmeta.cli.errors import usage_errors
from fastmeta.cli.setup import Job, make_meta, meta_config, training_config
from fastmeta.episodes import Sinusoid
from fastmeta.training import Checkpoint, adaptation_seconds, error_by_step, interval

# Added to the seed of an evaluation, so that its waves are not those of a training.
EVALUATION = 1_000_003


def prepare(options: argparse.Namespace, saved: Mapping[str, Any] | None) -> Job:
    """Return the job that the options describe."""
    source = Sinusoid(shots=options.shots, queries=options.queries, seed=options.seed)
    told = {"kind": "sinusoid", "shots": options.shots, "queries": options.queries}
    return Job(
        source,
        {
            "source": told,
            "meta": meta_config(options, inputs=1),
            "training": training_config(options),
        },
    )


def evaluate(checkpoint: Checkpoint, options: argparse.Namespace) -> dict[str, Any]:
    """Print the error by inner step over fresh waves, and return the numbers."""
    told = checkpoint.config["source"]
    with usage_errors():
        meta = make_meta({**checkpoint.config["meta"], "engine": options.engine})
        meta.load_state_dict(checkpoint.meta)
        source = Sinusoid(shots=told["shots"], queries=100, seed=options.seed + EVALUATION)
        tasks = source.sample(options.tasks)
        errors = error_by_step(meta, tasks, options.inner_steps or meta.inner_steps)
    print(f"{options.tasks} waves not seen before, {told['shots']} support points, mean squared")
    print("error on 100 other points of each\n")
    print(f"{'inner steps':<12}{'MSE':>8}   95 % interval over waves")
    rows = [interval(error) for error in errors]
    for step, row in enumerate(rows):
        print(f"{step:<12}{row.mean:>8.4f}   {row.low:.4f} .. {row.high:.4f}")
    seconds = adaptation_seconds(meta, tasks)
    print(f"\nadaptation: {seconds * 1e6:.3g} us a task ({options.tasks} tasks at once)")
    return {
        "mse_by_step": [vars(row) for row in rows],
        "adaptation_seconds_per_task": seconds,
        "tasks": options.tasks,
    }
