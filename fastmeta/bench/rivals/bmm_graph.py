"""The hand-batched step captured in a CUDA graph."""

from __future__ import annotations

from fastmeta.bench.rivals import bmm
from fastmeta.bench.rivals.cuda_graph import capture, needs_gpu
from fastmeta.bench.rivals.rival import Rival, Step
from fastmeta.bench.workloads import Problem


def build(problem: Problem) -> Step:
    return capture(bmm.build(problem), problem.device)


RIVAL = Rival(
    "bmm-graph",
    "batched by hand (baddbmm) in a CUDA graph",
    build,
    bmm.why_not,
    why_not_on=needs_gpu,
)
