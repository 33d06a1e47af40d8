"""vmap of the forward with plain ``torch.autograd`` outside it, captured in a CUDA graph."""

from __future__ import annotations

from fastmeta.bench.rivals import vmap_forward
from fastmeta.bench.rivals.cuda_graph import capture, needs_gpu
from fastmeta.bench.rivals.rival import Rival, Step
from fastmeta.bench.workloads import Problem


def build(problem: Problem) -> Step:
    return capture(vmap_forward.build(problem), problem.device)


RIVAL = Rival(
    "vmap-forward-graph",
    "vmap forward + autograd.grad in a CUDA graph",
    build,
    why_not_on=needs_gpu,
)
