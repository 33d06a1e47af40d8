"""From options of the command line to plain values."""

from __future__ import annotations

import argparse
from typing import Any

from fastmeta.cli.options.algorithms import ALL_SETTINGS, SETTINGS


def meta_config(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the algorithm.

    Raises:
        ValueError: Reptile with one inner step, which is no meta-learning, or a setting that the
            algorithm has not.
    """
    own = SETTINGS[options.algorithm]
    for name in ALL_SETTINGS:
        if name not in own and getattr(options, name, None) is not None:
            option = name.replace("_", "-")
            raise ValueError(f"--{option}: {options.algorithm} has no such setting")
    if options.algorithm == "reptile" and options.inner_steps == 1:
        raise ValueError("reptile with one inner step is joint training: give --inner-steps")
    return {name: getattr(options, name) for name in ("algorithm", *own, "engine", "seed")}


def training_config(options: argparse.Namespace, validation_batch: int = 0) -> dict[str, Any]:
    """Return the settings of the outer loop.

    Args:
        options: of the command line.
        validation_batch: validation tasks at once; 0: the source has none.
    """
    names = ("meta_batch", "lr", "weight_decay", "clip")
    return {
        **{name: getattr(options, name) for name in names},
        "schedule": _schedule_config(options),
        "validation": _validation_config(options, validation_batch),
    }


def _schedule_config(options: argparse.Namespace) -> dict[str, Any]:
    steps = {"constant": 1, "cosine": options.steps, "halving": options.halve_every}
    return {"kind": options.schedule, "steps": steps[options.schedule]}


def _validation_config(options: argparse.Namespace, batch: int) -> dict[str, int] | None:
    if not batch or not options.validate_every:
        return None
    return {"every": options.validate_every, "tasks": options.validation_tasks, "batch": batch}
