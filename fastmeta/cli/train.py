"""`fastmeta train`."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from fastmeta.cli.errors import usage_errors
from fastmeta.cli.progress import Progress
from fastmeta.cli.setup import check_writable, make_run, set_threads
from fastmeta.training import Curve, Run, TrainingDiverged, load_checkpoint, train


def run(options: argparse.Namespace) -> int:
    """Train on a source, from the start or from a checkpoint."""
    set_threads(options.threads)
    with usage_errors():
        job = _prepare(options)
        curve = Curve(options.curve, after=job.step) if options.curve else None
    start = job.step
    try:
        with Progress("training", options.steps, start) as progress:
            stopped = train(
                job,
                steps=options.steps,
                checkpoint=options.checkpoint,
                save_every=options.save_every,
                curve=curve,
                report=lambda _, loss: progress.advance(loss),
            )
    except TrainingDiverged as error:
        print(f"fastmeta: {error}; try a smaller --inner-lr or --lr, or --clip", file=sys.stderr)
        return 1
    if stopped is not None:
        print(f"stopped after step {job.step}, saved {options.checkpoint}; go on with --resume")
        return 128 + stopped
    print(f"trained   from step {start} to {job.step}, saved {options.checkpoint}")
    print(f"now       fastmeta evaluate {options.checkpoint}")
    return 0


def _prepare(options: argparse.Namespace) -> Run:
    for path in (options.checkpoint, options.curve):
        if path is not None:
            check_writable(Path(path))
    saved = None
    if options.resume:
        saved = load_checkpoint(options.checkpoint).config
        kind = saved["source"]["kind"]
        if kind != options.source:
            raise ValueError(f"{options.checkpoint} was trained on {kind}, not {options.source}")
    source = importlib.import_module(f"fastmeta.cli.{options.source}")
    job = make_run(source.prepare(options, saved))
    if options.resume:
        job.resume(options.checkpoint)
        if job.step > options.steps:
            raise ValueError(f"{options.checkpoint} is at step {job.step}, past --steps")
    print(f"engine    {job.meta.choice().name}", flush=True)
    return job
