"""`fastmeta bench`."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

from fastmeta import bench
from fastmeta.backends.device import find_device
from fastmeta.cli.errors import INTERRUPTED, UsageError, usage_errors
from fastmeta.cli.setup import check_writable, set_threads


def run(options: argparse.Namespace) -> int:
    """Time the workloads, print the table and write the JSON, also of a run cut short."""
    set_threads(options.threads)
    _check_names("--workload", options.workload, bench.selectable())
    _check_names("--rival", options.rival, bench.RIVALS)
    with usage_errors():
        device = find_device(options.device)
        if options.json:
            check_writable(Path(options.json))
    status = 0
    try:
        results = bench.run(
            options.workload,
            options.rival,
            options.quick,
            options.seconds,
            device=device,
            time_limit=options.time_limit,
        )
    except bench.Interrupted as stop:
        results, status = stop.results, INTERRUPTED
    print(bench.format_table(results))
    if options.json:
        bench.write_json(results, Path(options.json))
    return status


def _check_names(option: str, names: Collection[str] | None, known: Collection[str]) -> None:
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise UsageError(f"{option} {unknown[0]!r} is none of {', '.join(known)}")
