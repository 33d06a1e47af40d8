"""Where the generators of random numbers stand."""

from __future__ import annotations

import pickle
import random
import sys
from typing import Any, NamedTuple

import torch

__all__ = ["RandomState", "random_state"]


class RandomState(NamedTuple):
    of_torch: tuple[bytes, ...]  # those of all devices in use
    of_others: tuple[Any, ...]  # Python's and NumPy's, which no backward draws from again


def random_state() -> RandomState:
    numpy = sys.modules.get("numpy")
    of_numpy = None if numpy is None else pickle.dumps(numpy.random.get_state())
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing():
        states += torch.cuda.get_rng_state_all()
    return RandomState(tuple(s.numpy().tobytes() for s in states), (random.getstate(), of_numpy))
