"""A rival's step captured once in a CUDA graph and replayed: no launch overhead is left."""

from __future__ import annotations

import torch

from fastmeta.bench.rivals.rival import Outcome, Step

WARM_UP = 3


def capture(step: Step, device: torch.device) -> Step:
    """The replay of a step whose results are always in the same tensors.

    Raises:
        RuntimeError: the step does what cannot be captured, like waiting for the GPU.
    """
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):  # libraries choose their algorithms in the first calls
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outcome = step()

    def replay() -> Outcome:
        graph.replay()
        return outcome

    return replay


def needs_gpu(device: torch.device) -> str | None:
    """``why_not_on`` of a rival that uses a CUDA graph."""
    return None if device.type == "cuda" else "CUDA graphs need a GPU"
