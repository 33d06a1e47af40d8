"""How this process gets memory from the system."""

from __future__ import annotations

import ctypes
import os
import platform

# As in malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
KEPT = 1 << 30  # bytes that may lie free at the end of the heap


def keep_freed_memory() -> bool:
    """Let the C library keep what tensors free for the next ones; return whether it will.

    For the whole process, before training on a CPU with large activations; `fastmeta train` does
    it. glibc maps each block of more than 32 MB anew and gives it back when it is freed, so that
    the system clears every page of every large activation: more than half of the time of an
    encoder's evaluation (docs/notes/metric-learners.md). Values do not depend on it. Another C
    library is left as it is, and so is one that the user has set.
    """
    if platform.libc_ver()[0] != "glibc" or _set_by_user():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, KEPT))


def _set_by_user() -> bool:
    names = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    return any(name in os.environ for name in names) or "malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    )
