"""What is learned: each algorithm is a module that takes a TaskBatch; none knows a kernel."""

from fastmeta.algorithms.anil import ANIL
from fastmeta.algorithms.explain import explain
from fastmeta.algorithms.maml import MAML
from fastmeta.algorithms.metasgd import MetaSGD
from fastmeta.algorithms.reptile import Reptile

__all__ = ["ANIL", "MAML", "MetaSGD", "Reptile", "explain"]
