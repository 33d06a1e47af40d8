"""What flows through everything: a batch of tasks, and what comes out of it."""

from fastmeta.tasks.batch import TaskBatch
from fastmeta.tasks.results import Adapted, MetaOutput, check_queries

__all__ = ["Adapted", "MetaOutput", "TaskBatch", "check_queries"]
