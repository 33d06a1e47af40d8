"""``python -m fastmeta.bench.report FILE``: the Markdown of a JSON file."""

from __future__ import annotations

import argparse

from fastmeta.bench.results import read_json
from fastmeta.bench.tables import format_table, markdown, summary


def main() -> None:
    """Print the results of a benchmark run as Markdown, for README and benchmarks/results."""
    parser = argparse.ArgumentParser("python -m fastmeta.bench.report", description=main.__doc__)
    parser.add_argument("file", help="what `fastmeta bench --json` wrote")
    parser.add_argument("--text", action="store_true", help="the full text report instead")
    parser.add_argument("--short", action="store_true", help="a line a workload, as text")
    options = parser.parse_args()
    results = read_json(options.file)
    form = summary if options.short else format_table if options.text else markdown
    print(form(results))


if __name__ == "__main__":
    main()
