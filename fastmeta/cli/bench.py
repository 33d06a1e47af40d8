"""`fastmeta bench`."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path
from textwrap import TextWrapper

from fastmeta import bench
from fastmeta.backends.device import find_device
from fastmeta.cli.errors import INTERRUPTED, UsageError, usage_errors
from fastmeta.cli.files import check_writable
from fastmeta.cli.setup import set_threads
from fastmeta.words import nearest

FASTMETA = "fastmeta"  # among the rivals: itself


def run(options: argparse.Namespace) -> int:
    """Time the workloads, print the table and write the JSON, also of a run cut short."""
    if options.list:
        _print_names()
        return 0
    set_threads(options.threads)
    _check_names("--workload", options.workload, bench.selectable())
    _check_names("--rival", options.rival, [FASTMETA, *bench.RIVALS])
    with usage_errors():
        device = find_device(options.device)
        if options.json:
            check_writable(Path(options.json))
    status = 0
    try:
        results = bench.run(
            options.workload,
            _without_fastmeta(options.rival),
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
    for name in names or ():
        if name in known:
            continue
        close = nearest(name, known, most=4)
        hint = f"; did you mean {' or '.join(close)}?" if close else ";"
        raise UsageError(f"{option}: there is no {name!r}{hint} `fastmeta bench --list` names all")


def _without_fastmeta(rivals: Sequence[str] | None) -> list[str] | None:
    """The others; it always runs, and alone if nobody else is named."""
    return None if rivals is None else [name for name in rivals if name != FASTMETA]


_WRAP = TextWrapper(96, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _print_names() -> None:
    for title, names in (("workloads", bench.selectable()), ("rivals", [*bench.RIVALS])):
        print(f"{title}\n{_WRAP.fill(', '.join(names))}")
