"""Sine waves: `fastmeta train sinusoid`, and evaluation of what it trained."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from fastmeta.cli.config import meta_config, training_config
from fastmeta.cli.device import chosen_device
from fastmeta.cli.errors import usage_errors
from fastmeta.cli.network import mlp_config
from fastmeta.cli.setup import Job, as_maml, load_meta
from fastmeta.episodes import Sinusoid
from fastmeta.training import Checkpoint, adaptation_seconds, error_by_step, interval
from fastmeta.words import adaptation_time, counted

# Added to the seed, so that the waves are not those of the training.
VALIDATION, EVALUATION = 2_000_003, 1_000_003
TASKS = 1000


def prepare(options: argparse.Namespace, saved: Mapping[str, Any] | None) -> Job:
    """Return the job that the options describe."""
    numbers = {"shots": options.shots, "queries": options.queries}
    config = {
        "source": {"kind": "sinusoid", **numbers},
        "model": mlp_config(options, inputs=1),
        "meta": meta_config(options),
        "training": training_config(options, validation_batch=options.validation_tasks),
    }
    return Job(
        Sinusoid(**numbers, seed=options.seed, device=chosen_device()),
        config,
        validation=Sinusoid(**numbers, seed=options.seed + VALIDATION, device=chosen_device()),
    )


def evaluate(checkpoint: Checkpoint, options: argparse.Namespace) -> dict[str, Any]:
    """Print the error by inner step over fresh waves, and return the numbers."""
    told = checkpoint.config["source"]
    with usage_errors():
        meta = as_maml(load_meta(checkpoint, options.engine))
        source = Sinusoid(
            shots=told["shots"],
            queries=100,
            seed=options.seed + EVALUATION,
            device=chosen_device(),
        )
        tasks = source.sample(options.tasks or TASKS)
        errors = error_by_step(meta, tasks, options.inner_steps or meta.inner_steps)
    shots = counted(told["shots"], "support point")
    print(f"{counted(len(tasks), 'wave')} not seen before, {shots}, mean squared")
    print("error on 100 other points of each\n")
    print(f"{'inner steps':<12}{'MSE':>8}   95 % interval over waves")
    rows = [interval(error) for error in errors]
    for step, row in enumerate(rows):
        print(f"{step:<12}{row.mean:>8.4f}   {row.low:.4f} .. {row.high:.4f}")
    seconds = adaptation_seconds(meta, tasks)
    print(f"\nadaptation: {adaptation_time(seconds, len(tasks))}")
    return {
        "mse_by_step": [vars(row) for row in rows],
        "adaptation_seconds_per_task": seconds,
        "tasks": len(tasks),
    }
