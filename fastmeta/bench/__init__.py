"""The benchmark suite: fastmeta against its rivals on this machine.

Example::

    results = fastmeta.bench.run(quick=True)
    print(fastmeta.bench.format_table(results))
"""

from fastmeta.bench.catalogue import FAMILIES, WORKLOADS
from fastmeta.bench.operations import OPERATIONS
from fastmeta.bench.results import read_json, write_json
from fastmeta.bench.rivals import RIVALS
from fastmeta.bench.suite import Interrupted, run, selectable
from fastmeta.bench.tables import format_table, markdown
from fastmeta.bench.workloads import Workload, make_problem

__all__ = [
    "FAMILIES",
    "OPERATIONS",
    "RIVALS",
    "WORKLOADS",
    "Interrupted",
    "Workload",
    "format_table",
    "make_problem",
    "markdown",
    "read_json",
    "run",
    "selectable",
    "write_json",
]
