import gc
import itertools
import time

import pytest

from fastmeta.bench import timing
from fastmeta.bench.timing import measure


def test_rounds_are_interleaved():
    calls = []
    steps = {name: lambda name=name: (calls.append(name), time.sleep(0.002)) for name in "AB"}
    measure(steps, seconds=0.006)
    assert "".join(calls[-6:]) == "ABABAB"


def test_a_slow_step_is_sampled_three_times_and_a_fast_one_in_every_round():
    steps = {"slow": lambda: time.sleep(0.02), "fast": lambda: None}
    timings = measure(steps, seconds=0.01)
    assert timings["slow"].samples == timing.FEWEST_SAMPLES
    assert timings["fast"].samples == timing.ROUNDS
    assert timings["fast"].calls_per_sample > 10


def test_seconds_are_per_call_and_quartiles_are_in_order():
    found = measure({"sleep": lambda: time.sleep(0.003)}, seconds=0.03)["sleep"]
    assert 0.003 <= found.fastest <= found.low <= found.median <= found.high
    assert found.median < 0.03


def test_a_time_that_varies_shows_in_the_quartiles():
    naps = itertools.chain([0.001] * 2, itertools.cycle([0.001, 0.1]))
    found = measure({"varies": lambda: time.sleep(next(naps))}, seconds=0.02)["varies"]
    assert found.high > 2 * found.low


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(enabled):
    was_enabled = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        seen = []
        measure({"step": lambda: seen.append(gc.isenabled())}, seconds=1e-4)
        assert gc.isenabled() is enabled
        assert seen[-1] is False
        assert gc.get_freeze_count() == 0
    finally:
        (gc.enable if was_enabled else gc.disable)()
