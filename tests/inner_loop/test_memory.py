"""Peak memory over the number of inner steps: it grows by theta_k and by nothing else, but for the
graphs that are kept while they are small.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PEAK = Path("/proc/self/clear_refs")

# Each large tensor in pages of its own, given back when it dies: resident memory is what lives.
# From glibc's arenas the same run showed 140 to 205 MB by luck, so 79 within 0.3 %.
PAGES = {"MALLOC_MMAP_THRESHOLD_": "32768", "MALLOC_MMAP_MAX_": "1000000"}

# Run in a process of its own, so that nothing is left from before.
METER = """
import ctypes, sys, torch, fastmeta as fm
from fastmeta.inner_loop import kept

engine, steps = sys.argv[1], int(sys.argv[2])
kept._MOST_BYTES = 1 << 20  # less than the graph of a step
torch.set_num_threads(1)
model = fm.models.conv4(5, filters=16, image_size=14, layers=3)
meta = fm.MAML(model, engine=engine, inner_steps=steps)
# Enough samples that what one step keeps outweighs more lists of tensors.
x, y = torch.randn(4, 200, 1, 14, 14), torch.randint(5, (4, 200))
tasks = fm.TaskBatch(x, y, x, y)


def resident(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


meta(tasks, inner_steps=1).loss.sum().backward()
ctypes.CDLL(None).malloc_trim(0)
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
meta(tasks).loss.sum().backward()
kept = steps * 4 * sum(p.numel() * p.element_size() for p in model.parameters())
print(resident("VmHWM") - before - kept)
"""


def peak_beyond_the_weights(engine, steps):
    command = [sys.executable, "-c", METER, engine, str(steps)]
    run = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=300, env=os.environ | PAGES
    )
    return int(run.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not PEAK.exists(), reason="this system does not tell peak memory")
@pytest.mark.parametrize("engine", ["layered", "vmap"])
def test_the_peak_does_not_grow_with_the_steps(engine):
    few, many = (peak_beyond_the_weights(engine, steps) for steps in (3, 12))
    assert 0 < many <= 1.1 * few
