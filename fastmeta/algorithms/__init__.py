"""What is learned: each algorithm is a module that takes a TaskBatch; none knows a kernel."""

from fastmeta.algorithms.anil import ANIL
from fastmeta.algorithms.explain import explain
from fastmeta.algorithms.maml import MAML
from fastmeta.algorithms.matchingnet import MatchingNet
from fastmeta.algorithms.metasgd import MetaSGD
from fastmeta.algorithms.proto_maml import ProtoMAML
from fastmeta.algorithms.protonet import ProtoNet
from fastmeta.algorithms.r2d2 import R2D2
from fastmeta.algorithms.reptile import Reptile

__all__ = [
    "ANIL",
    "MAML",
    "MatchingNet",
    "MetaSGD",
    "ProtoMAML",
    "ProtoNet",
    "R2D2",
    "Reptile",
    "explain",
]


def __dir__() -> list[str]:
    return [*__all__]
