"""From plain values to what runs: threads, the meta-learner, its optimizer, the run."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastmeta import ANIL, MAML, MetaSGD, Reptile
from fastmeta.models import mlp
from fastmeta.training import Run, Source


@dataclass(frozen=True)
class Job:
    """What to train on, and all settings as plain values: `source`, `meta` and `training`."""

    source: Source
    config: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)


def set_threads(threads: int | None) -> None:
    """Let torch and the native code use this many threads; None leaves torch's choice."""
    if threads is not None:
        torch.set_num_threads(threads)


def check_writable(path: Path) -> None:
    """Make the folder of a result, so that what cannot be written fails at the start.

    Raises:
        OSError: `path` is a folder, or its folder cannot be made or written.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} cannot be written")


def meta_config(options: argparse.Namespace, inputs: int) -> dict[str, Any]:
    """Return the settings of `make_meta`."""
    return {
        "sizes": [inputs, *options.hidden, 1],
        "activation": options.activation,
        "algorithm": options.algorithm,
        "inner_lr": options.inner_lr,
        "inner_steps": options.inner_steps,
        "learn_inner_lr": options.learn_inner_lr,
        "per_step_lr": options.per_step_lr,
        "engine": options.engine,
        "seed": options.seed,
    }


def training_config(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the outer loop."""
    return {name: getattr(options, name) for name in ("meta_batch", "lr", "weight_decay", "clip")}


def make_meta(config: Mapping[str, Any]) -> MAML:
    """Build the meta-learner, initialised from its seed.

    Raises:
        ValueError: settings that do not go together.
    """
    torch.manual_seed(config["seed"])
    model = mlp(config["sizes"], config["activation"])
    algorithm = config["algorithm"]
    common: dict[str, Any] = {
        "inner_lr": config["inner_lr"],
        "inner_steps": config["inner_steps"],
        "loss": "mse",
        "engine": config["engine"],
    }
    if algorithm == "reptile":
        return Reptile(model, **common)
    common["per_step_lr"] = config["per_step_lr"]
    if algorithm == "metasgd":
        return MetaSGD(model, **common)
    learned = config["learn_inner_lr"]
    common["learn_inner_lr"] = None if learned == "none" else learned
    if algorithm == "anil":
        return ANIL(model, model[-1], **common)
    return MAML(model, order=1 if algorithm == "fomaml" else 2, **common)


def make_run(job: Job) -> Run:
    """Return the run at step 0."""
    meta = make_meta(job.config["meta"])
    training = job.config["training"]
    return Run(
        meta,
        job.source,
        _optimizer(meta, training["lr"], training["weight_decay"]),
        meta_batch=training["meta_batch"],
        clip=training["clip"],
        config=job.config,
        notes=job.notes,
    )


def _optimizer(meta: MAML, lr: float, weight_decay: float) -> torch.optim.AdamW:
    matrices = [p for p in meta.model.parameters() if p.dim() > 1]
    chosen = {id(p) for p in matrices}
    others = [p for p in meta.parameters() if id(p) not in chosen]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, fused=True)
