"""Sources of tasks: each has ``sample(n_tasks) -> TaskBatch`` and a state that can be resumed."""

from fastmeta.episodes.csv_table import Table, read_table
from fastmeta.episodes.sinusoid import Sinusoid
from fastmeta.episodes.table import (
    Standardisation,
    TableEpisodes,
    check_rows,
    choose_support_norm,
    split_tasks,
    tasks_with_rows,
)

__all__ = [
    "Sinusoid",
    "Standardisation",
    "Table",
    "TableEpisodes",
    "check_rows",
    "choose_support_norm",
    "read_table",
    "split_tasks",
    "tasks_with_rows",
]
