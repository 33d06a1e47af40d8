"""A training run: everything that a meta-step reads and changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmeta.training.checkpoint import (
    Checkpoint,
    check_same_run,
    load_checkpoint,
    save_checkpoint,
)
from fastmeta.training.graphed import GraphedStep, rates_on_device
from fastmeta.training.learner import MetaLearner
from fastmeta.training.schedule import Schedule
from fastmeta.training.source import Source
from fastmeta.training.validation import Score, Validation


class TrainingDiverged(RuntimeError):
    """The loss or a gradient is no longer a finite number."""


class Run:
    """A meta-learner, its source of tasks and its optimizer, at some step.

    Args:
        meta: the meta-learner.
        source: gives the tasks of each step.
        optimizer: over ``meta.parameters()``; its rates are what `schedule` starts from.
        meta_batch: tasks a step.
        clip: largest norm of the meta-gradient, or None.
        schedule: of the outer rate; None leaves it to the caller.
        cuda_graph: whether whole meta-steps are replayed from a CUDA graph (`GraphedStep`) where
            that is possible: on a GPU, with a fused, capturable optimizer.
        validation: judges the meta-learner now and then, or None.
        config: plain values that say what the run does; a checkpoint is only taken up by a run
            with the same config.
        notes: plain values for the checkpoint that may differ when the run continues.

    Attributes:
        step: meta-steps done.
        best: the best score in validation so far, or None.
    """

    def __init__(
        self,
        meta: MetaLearner,
        source: Source,
        optimizer: torch.optim.Optimizer,
        *,
        meta_batch: int,
        clip: float | None = None,
        schedule: Schedule | None = None,
        cuda_graph: bool = True,
        validation: Validation | None = None,
        config: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        self.meta = meta
        self.source = source
        self.optimizer = optimizer
        self.meta_batch = meta_batch
        self.clip = clip
        self.schedule = schedule
        self.validation = validation
        self.config = dict(config or {})
        self.notes = dict(notes or {})
        self.step = 0
        self.best: Score | None = None
        self._first_rates = [group["lr"] for group in optimizer.param_groups]
        self._graphed = GraphedStep(
            meta,
            optimizer,
            lambda: source.sample(meta_batch),
            clip=clip,
            generators=getattr(source, "generators", ()),
            enabled=cuda_graph,
        )
        if self._graphed.reason is None:
            rates_on_device(optimizer)

    @property
    def why_no_graph(self) -> str | None:
        """Why meta-steps are not replayed from a CUDA graph, or None."""
        return self._graphed.reason

    def advance(self) -> float:
        """Do one meta-step and return its loss, the mean over the tasks.

        Raises:
            TrainingDiverged: the loss or the meta-gradient is not finite; nothing was updated.
        """
        self._set_rates()
        outcome = self._graphed()
        value, norm = torch.stack(outcome).tolist()  # the one wait for a GPU in a step
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise TrainingDiverged(
                f"step {self.step + 1}: the loss is {value:g}, its gradient has norm {norm:g}"
            )
        self.step += 1
        return value

    def validate(self) -> Score | None:
        """Return the score if one is due at this step, and note it in `best` if it is."""
        if self.validation is None or self.step % self.validation.every:
            return None
        score = self.validation.score(self.meta, self.step)
        if score.beats(self.best):
            self.best = score
        return score

    def save(self, path: str | Path) -> None:
        """Write all that is needed to continue, atomically."""
        streams = {
            **self.source.state_dict(),
            # Layers may draw too: dropout in the vmap engine uses the global generator.
            "torch": torch.get_rng_state(),
        }
        if self._device.type == "cuda":
            streams["cuda"] = torch.cuda.get_rng_state(self._device)
        state = Checkpoint(
            step=self.step,
            config=self.config,
            notes=self.notes,
            best=None if self.best is None else asdict(self.best),
            meta=self.meta.state_dict(),
            optimizer=_plain(self.optimizer.state_dict()),
            streams=streams,
        )
        save_checkpoint(path, state)

    def resume(self, path: str | Path) -> None:
        """Continue from a checkpoint of the same run.

        Raises:
            ValueError: the file is damaged or from a run with another config.
        """
        saved = load_checkpoint(path)
        check_same_run(path, saved.config, self.config)
        self.meta.load_state_dict(saved.meta)
        groups = self.optimizer.param_groups
        capturable = [group.get("capturable") for group in groups]  # of this run's device
        self.optimizer.load_state_dict(dict(saved.optimizer))
        for group, own in zip(self.optimizer.param_groups, capturable, strict=True):
            if own is not None:
                group["capturable"] = own
        _lay_out_like_parameters(self.optimizer)
        if self._graphed.reason is None:
            rates_on_device(self.optimizer)
        streams = dict(saved.streams)
        torch.set_rng_state(streams.pop("torch"))
        on_gpu = streams.pop("cuda", None)
        if on_gpu is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(on_gpu, self._device)
        self.source.load_state_dict(streams)
        self.step = saved.step
        self.best = None if saved.best is None else Score(**saved.best)

    @property
    def _device(self) -> torch.device:
        return next(self.meta.parameters()).device

    def _set_rates(self) -> None:
        if self.schedule is None:
            return
        factor = self.schedule.factor(self.step)
        for group, rate in zip(self.optimizer.param_groups, self._first_rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """The optimizer's state with rates that are tensors on a device as numbers."""
    groups = [
        {name: v.item() if isinstance(v, Tensor) else v for name, v in group.items()}
        for group in state["param_groups"]
    ]
    return {**state, "param_groups": groups}


def _lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give moments the strides of their parameters: fused optimizers take them for the same."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
