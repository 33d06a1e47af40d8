"""fastmeta as its training loop runs on a GPU: the step captured in a CUDA graph.

The checks of `TaskBatch` that look at values are made in the graph, on the GPU.
"""

from __future__ import annotations

from fastmeta.bench.rivals import fastmeta_maml
from fastmeta.bench.rivals.cuda_graph import capture, needs_gpu
from fastmeta.bench.rivals.rival import Rival, Step
from fastmeta.bench.workloads import Problem


def build(problem: Problem) -> Step:
    return capture(fastmeta_maml.build(problem), problem.device)


RIVAL = Rival("fastmeta-graph", "fastmeta in a CUDA graph", build, why_not_on=needs_gpu)
