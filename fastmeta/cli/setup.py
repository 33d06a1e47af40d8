"""From plain values to what runs: threads, the meta-learner, its optimizer, the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fastmeta import ANIL, MAML, MetaSGD, Reptile
from fastmeta.cli.device import chosen_device
from fastmeta.cli.learners import ANY_WAYS, make_learner
from fastmeta.cli.network import head_of, loss_of, make_network, sample_input
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
