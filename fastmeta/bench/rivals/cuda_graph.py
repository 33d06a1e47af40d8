"""A rival's step captured once in a CUDA graph and replayed: no launch overhead is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

WARM_UP = 3

Result = TypeVar("Result")


def capture(step: Callable[[], Result], device: torch.device) -> Callable[[], Result]:
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
        try:
            with torch.cuda.graph(graph):
                outcome = step()
        except RuntimeError as error:  # the end of the capture fails too: what came first tells why
            raise RuntimeError(f"cannot be captured: {error.__context__ or error}") from error

    def replay() -> Result:
        graph.replay()
        return outcome

    return replay


def needs_gpu(device: torch.device) -> str | None:
    """``why_not_on`` of a rival that uses a CUDA graph."""
    return None if device.type == "cuda" else "CUDA graphs need a GPU"
