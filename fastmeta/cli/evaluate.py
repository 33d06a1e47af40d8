"""`fastmeta evaluate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fastmeta.cli.device import choose_device
from fastmeta.cli.errors import UsageError, result_written, usage_errors
from fastmeta.cli.files import check_writable
from fastmeta.cli.setup import set_threads
from fastmeta.cli.sources import module_of
from fastmeta.training import keep_freed_memory, load_checkpoint
from fastmeta.words import counted


def run(options: argparse.Namespace) -> int:
    """Evaluate a checkpoint on tasks that it was not trained on."""
    set_threads(options.threads)
    keep_freed_memory()
    with usage_errors():
        choose_device(options.device)
        checkpoint = load_checkpoint(options.checkpoint)
        if options.json:
            check_writable(Path(options.json))
    print(f"{options.checkpoint}, {counted(checkpoint.step, 'meta-step')}")
    kind = checkpoint.config["source"]["kind"]
    _check_few_shot(kind, options)
    source = module_of(kind)
    numbers = {"meta_steps": checkpoint.step, **source.evaluate(checkpoint, options)}
    if options.json:
        with result_written(options.json):
            Path(options.json).write_text(json.dumps(numbers, indent=2) + "\n")
    return 0


def _check_few_shot(kind: str, options: argparse.Namespace) -> None:
    if kind not in ("sinusoid", "table"):
        return
    for name in ("ways", "shots", "queries", "embedding"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name}: the tasks of {kind} are not classification")
    if kind == "sinusoid" and options.data is not None:
        raise UsageError("--data: sinusoids are drawn, not read")
