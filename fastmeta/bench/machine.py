"""Where and with what the numbers were measured, and holding all rivals to the same cores."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import fastmeta
from fastmeta.backends.cpu import native, usable_cores
from fastmeta.bench.device import CPU

PACKAGES = ("torch", "triton", "numpy", "jax", "jaxlib", "higher", "torchopt", "learn2learn")


def describe_machine(threads: int, device: torch.device = CPU) -> dict[str, Any]:
    """Processor, threads, GPU, versions of everything, commit and date."""
    gpu = describe_gpu(device) if device.type == "cuda" else {}
    # Some systems name processors of several generations alike: what they can tells them apart.
    capability = torch.backends.cpu.get_cpu_capability()
    name = gpu.get("gpu") or f"cpu-{cpu_model()}-{capability}-{threads}-threads"
    return {
        "device": _slug(name),
        **gpu,
        "cpu": cpu_model(),
        "cpu_capability": capability,
        "native_kernels": None if native is None else native.variant(),
        "cores": usable_cores(),
        "threads": threads,
        "system": platform.platform(),
        "versions": versions(),
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def describe_gpu(device: torch.device) -> dict[str, Any]:
    """Name, size, driver, and clocks in MHz as the driver's tool gives them."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "gpu_memory_bytes": properties.total_memory,
        "gpu_multiprocessors": properties.multi_processor_count,
        "gpu_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        **_driver_says(device.index or 0),
    }


_DRIVER_FIELDS = (
    "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem",
    "power.limit", "temperature.gpu",
)  # fmt: skip


def _driver_says(index: int) -> dict[str, str]:
    """What nvidia-smi tells, or nothing."""
    query = [f"--query-gpu={','.join(_DRIVER_FIELDS)}", "--format=csv,noheader", f"--id={index}"]
    try:
        answer = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return {}
    values = [value.strip() for value in answer.stdout.split(",")]
    if answer.returncode != 0 or len(values) != len(_DRIVER_FIELDS):
        return {}
    names = (f"gpu_{field.replace('.', '_')}" for field in _DRIVER_FIELDS)
    return dict(zip(names, values, strict=True))


def versions() -> dict[str, str | None]:
    """Version of Python, fastmeta and every rival's package; None: not installed."""
    found = {"python": platform.python_version(), "fastmeta": fastmeta.__version__}
    return {**found, **{package: _version(package) for package in PACKAGES}}


def commit() -> str | None:
    """The commit of the checkout that fastmeta is imported from, with ``+changes`` if it has any.

    Of a copy without its history it is that which the native code was built from, if that is known;
    None for an installed copy otherwise, and where git is missing.
    """
    package = Path(fastmeta.__file__).resolve().parent
    root = package.parent
    if not (root / ".git").exists():
        built = package / "_build_info.json"
        return json.loads(built.read_text()).get("commit") if built.exists() else None
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        return None
    return head + ("+changes" if _git(root, "status", "--porcelain") else "")


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


@contextmanager
def only_cores(threads: int) -> Iterator[None]:
    """Run on as many cores as there are threads: JAX's pool obeys nothing else."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
