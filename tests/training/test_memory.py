"""What the system is asked for where freed memory is kept."""

import os
import platform
import subprocess
import sys

import pytest

BLOCK_MB = 200
# A large tensor is made and freed; does its memory stay with the process?
PROGRAM = f"""
import resource, sys
import torch
from fastmeta.training.memory import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

print(keep_freed_memory() if "keep" in sys.argv else False)
before = resident()
torch.ones({BLOCK_MB} << 18)
print((resident() - before) >> 20)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc alone is asked"
)
@pytest.mark.parametrize(
    ("word", "variables", "kept"),
    [("keep", {}, True), ("", {}, False), ("keep", {"MALLOC_TRIM_THRESHOLD_": "100000"}, False)],
)
def test_freed_memory_is_kept_where_asked_for(word, variables, kept):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    clean.pop("GLIBC_TUNABLES", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, word],
        env=clean | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    said, grown = done.stdout.split()
    assert said == str(kept)
    assert (int(grown) > BLOCK_MB // 2) == kept
