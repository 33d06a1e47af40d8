"""`fastmeta train`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from fastmeta import MAML
from fastmeta.cli.device import choose_device, chosen_device
from fastmeta.cli.errors import UsageError, result_written, usage_errors
from fastmeta.cli.files import check_writable
from fastmeta.cli.progress import Progress, described
from fastmeta.cli.setup import make_run, set_threads
from fastmeta.cli.sources import module_of
from fastmeta.training import (
    Curve,
    Log,
    Run,
    TensorBoard,
    TrainingDiverged,
    best_checkpoint,
    check_picture,
    keep_freed_memory,
    load_checkpoint,
    plot_curve,
    read_curve,
    train,
)


def run(options: argparse.Namespace) -> int:
    """Train on a source, from the start or from a checkpoint."""
    begun = time.monotonic()
    set_threads(options.threads)
    keep_freed_memory()
    with usage_errors():
        choose_device(options.device)
        options.curve = options.curve or _curve_beside(options.checkpoint)
        _check_files(options)
        job = _prepare(options)
        logs: list[Log] = [Curve(options.curve, after=job.step)]
    if options.tensorboard:
        logs.append(_tensorboard(options.tensorboard, after=job.step))
    deadline = begun + 60 * options.time_limit if options.time_limit else None
    start = job.step
    try:
        stopped = _train(job, options, logs, deadline)
    except TrainingDiverged as error:
        _plot(options)
        print(f"fastmeta: {error}; try a smaller --inner-lr or --lr, or --clip", file=sys.stderr)
        return 1
    _plot(options)
    _report(job, options, start, stopped)
    return 128 + stopped if isinstance(stopped, int) else 0


def _curve_beside(checkpoint: str) -> str:
    return checkpoint.removesuffix(".safetensors") + ".curve.csv"


def _check_files(options: argparse.Namespace) -> None:
    named = (options.checkpoint, options.curve, options.plot)
    files = [Path(name) for name in named if name]
    for path in files:
        check_writable(path)
    files.append(best_checkpoint(options.checkpoint))
    if len({path.resolve() for path in files}) < len(files):
        raise ValueError(f"two of these are the same file: {', '.join(map(str, files))}")
    if options.plot:
        check_picture(options.plot)


def _prepare(options: argparse.Namespace) -> Run:
    saved = None
    if options.resume:
        saved = load_checkpoint(options.checkpoint).config
        kind = saved["source"]["kind"]
        if kind != options.source:
            raise ValueError(f"{options.checkpoint} was trained on {kind}, not {options.source}")
    job = make_run(module_of(options.source).prepare(options, saved), options.cuda_graph)
    if options.resume:
        job.resume(options.checkpoint)
        if job.step > options.steps:
            raise ValueError(f"{options.checkpoint} is at step {job.step}, past --steps")
    print(f"device    {chosen_device()}{_graph_of(job)}", flush=True)
    if isinstance(job.meta, MAML):
        print(f"engine    {job.meta.choice().name}", flush=True)
    return job


def _graph_of(job: Run) -> str:
    if chosen_device().type == "cpu":
        return ""
    reason = job.why_no_graph
    return ", meta-steps in a CUDA graph" if reason is None else f", no CUDA graph: {reason}"


def _tensorboard(folder: str, after: int) -> TensorBoard:
    try:
        with usage_errors():
            return TensorBoard(folder, after=after)
    except ImportError as error:
        raise UsageError(f"--tensorboard: {error}") from error


def _train(
    job: Run, options: argparse.Namespace, logs: Sequence[Log], deadline: float | None
) -> int | Literal["time"] | None:
    with Progress("training", options.steps, job.step) as progress:
        return train(
            job,
            steps=options.steps,
            checkpoint=options.checkpoint,
            save_every=options.save_every,
            logs=logs,
            report=lambda _, loss, score: progress.advance(loss, score),
            deadline=deadline,
        )


def _plot(options: argparse.Namespace) -> None:
    rows = read_curve(options.curve) if options.plot else []
    if rows:
        with result_written(options.plot):
            plot_curve(rows, options.plot)


def _report(
    job: Run, options: argparse.Namespace, start: int, stopped: int | Literal["time"] | None
) -> None:
    last = newest = Path(options.checkpoint)
    if stopped is None:
        print(f"trained   from step {start} to {job.step}, saved {last}")
    else:
        why = " as the time is over" if stopped == "time" else ""
        print(f"stopped after step {job.step}{why}, saved {last}; go on with --resume")
    if job.best is not None:
        newest = best_checkpoint(last)
        print(f"best      {described(job.best)} at step {job.best.step}, saved {newest}")
    drawn = f", drawn in {options.plot}" if options.plot else ""
    print(f"curve     {options.curve}{drawn}")
    if stopped is None:
        print(f"now       fastmeta evaluate {newest}")
