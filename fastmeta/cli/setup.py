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
from fastmeta.cli.device import chosen_device
from fastmeta.cli.learners import ANY_WAYS, make_learner
from fastmeta.cli.network import head_of, loss_of, make_network, sample_input
from fastmeta.cli.options.algorithms import ALL_SETTINGS, SETTINGS
from fastmeta.episodes import ImageEpisodes
from fastmeta.training import Checkpoint, MetaLearner, Run, Schedule, Source, Validation


@dataclass(frozen=True)
class Job:
    """What to train on, and all settings as plain values.

    `config` has the parts `source`, `model`, `meta` and `training`.
    """

    source: Source
    config: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)
    validation: Source | None = None


def set_threads(threads: int | None) -> None:
    """Let torch and the native code use this many threads; None leaves torch's choice."""
    if threads is not None:
        torch.set_num_threads(threads)


def check_writable(path: Path) -> None:
    """Make the folder of a result, so that what cannot be written fails at the start.

    Raises:
        OSError: `path` is a folder or a file that cannot be written over, its folder cannot be
            made or written, or the file system takes no file there.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} cannot be written")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{path} cannot be written over")
    if not path.exists():
        path.touch()
        path.unlink()


# ---- options to plain values --------------------------------------------------------------------


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


# ---- plain values to what runs ------------------------------------------------------------------


def make_meta(config: Mapping[str, Any]) -> MetaLearner:
    """Build the meta-learner, initialised from its seed.

    Args:
        config: of a `Job`.

    Raises:
        ValueError: settings that do not go together.
    """
    settings = config["meta"]
    torch.manual_seed(settings["seed"])
    model = make_network(config["model"])
    algorithm = settings["algorithm"]
    if algorithm in ANY_WAYS:
        return make_learner(settings, model, sample_input(config["model"]))
    common: dict[str, Any] = {
        "inner_lr": settings["inner_lr"],
        "inner_steps": settings["inner_steps"],
        "loss": loss_of(config["model"]),
        "engine": settings["engine"],
    }
    if algorithm == "reptile":
        return Reptile(model, **common)
    common["per_step_lr"] = settings["per_step_lr"]
    if algorithm == "metasgd":
        return MetaSGD(model, **common)
    learned = settings["learn_inner_lr"]
    common["learn_inner_lr"] = None if learned == "none" else learned
    if algorithm == "anil":
        return ANIL(model, head_of(model), **common)
    return MAML(model, order=1 if algorithm == "fomaml" else 2, **common)


def load_meta(checkpoint: Checkpoint, engine: str) -> MetaLearner:
    """Return the meta-learner of a checkpoint, to be run by this engine.

    Raises:
        ValueError: an engine that there is not.
    """
    config = checkpoint.config
    meta = make_meta({**config, "meta": {**config["meta"], "engine": engine}})
    meta.load_state_dict(checkpoint.meta)
    return meta.to(chosen_device())


def as_maml(meta: MetaLearner) -> MAML:
    """The meta-learner of a source that has no other ones, as what it is."""
    assert isinstance(meta, MAML)
    return meta


def make_run(job: Job, cuda_graph: bool = True) -> Run:
    """Return the run at step 0, on the device that was chosen."""
    meta = make_meta(job.config).to(chosen_device())
    source = job.source
    if chosen_device().type == "cuda" and isinstance(source, ImageEpisodes):
        source = source.drawn_on_device()  # in the graph of a meta-step
    training = job.config["training"]
    return Run(
        meta,
        source,
        _optimizer(meta, training["lr"], training["weight_decay"]),
        meta_batch=training["meta_batch"],
        clip=training["clip"],
        schedule=Schedule(**training["schedule"]),
        validation=_validation(job.validation, training["validation"]),
        config=job.config,
        notes=job.notes,
        cuda_graph=cuda_graph,
    )


def _validation(source: Source | None, settings: Mapping[str, int] | None) -> Validation | None:
    return None if source is None or settings is None else Validation(source, **settings)


def _optimizer(meta: MetaLearner, lr: float, weight_decay: float) -> torch.optim.AdamW:
    network = meta.model if isinstance(meta, MAML) else meta.encoder
    matrices = [p for p in network.parameters() if p.dim() > 1]
    chosen = {id(p) for p in matrices}
    others = [p for p in meta.parameters() if id(p) not in chosen]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    on_gpu = chosen_device().type == "cuda"
    return torch.optim.AdamW(groups, lr=lr, fused=True, capturable=on_gpu)
