"""Timing several things against each other, in rounds: A B C, A B C, ..."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

ROUNDS = 30
FEWEST_SAMPLES = 3


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median over samples, its quartiles, and the fastest sample."""

    median: float
    low: float
    high: float
    fastest: float
    samples: int
    calls_per_sample: int


@dataclass
class _Schedule:
    step: Callable[[], Any]
    visits: int  # in how many of the rounds it takes part
    calls: int  # a visit

    def is_due(self, round_index: int) -> bool:
        """Visits are spread evenly over the rounds, so that a drift meets everyone alike."""
        return (round_index + 1) * self.visits // ROUNDS > round_index * self.visits // ROUNDS


def nothing_to_wait_for() -> None:
    """A CPU is done when the call returns."""


def measure(
    steps: Mapping[str, Callable[[], Any]],
    seconds: float,
    wait: Callable[[], None] = nothing_to_wait_for,
) -> dict[str, Timing]:
    """Time every step for about ``seconds``, but for three samples at least.

    The steps must be warm: compiled, gated, called once. ``wait`` returns when the device has done
    what it was given; the clock of a sample stops after it.
    """
    schedules = {name: _schedule(step, seconds, wait) for name, step in steps.items()}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    with _quiet_garbage_collector():
        for round_index in range(ROUNDS):
            for name, schedule in schedules.items():
                if schedule.is_due(round_index):
                    samples[name].append(_sample(schedule, wait))
    return {name: _summary(samples[name], schedules[name].calls) for name in steps}


def seconds_of(step: Callable[[], Any], wait: Callable[[], None] = nothing_to_wait_for) -> float:
    """Seconds of one call."""
    wait()
    start = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - start


def _schedule(step: Callable[[], Any], seconds: float, wait: Callable[[], None]) -> _Schedule:
    estimate = seconds_of(step, wait)
    if estimate < seconds / 100:
        estimate = min(seconds_of(step, wait) for _ in range(10))
    visits = min(ROUNDS, max(FEWEST_SAMPLES, int(seconds / estimate)))
    return _Schedule(step, visits, max(1, int(seconds / visits / estimate)))


def _sample(schedule: _Schedule, wait: Callable[[], None]) -> float:
    gc.collect()
    if schedule.calls > 1:
        schedule.step()  # caches and thread pools come back from whoever ran before
    wait()
    start = time.perf_counter()
    for _ in range(schedule.calls):
        schedule.step()
    wait()
    return (time.perf_counter() - start) / schedule.calls


def _summary(samples: list[float], calls: int) -> Timing:
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, low, high, min(samples), len(samples), calls)


@contextmanager
def _quiet_garbage_collector() -> Iterator[None]:
    """It runs between samples only, and does not look at what is there already."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
