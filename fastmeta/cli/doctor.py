"""`fastmeta doctor`: what was built, what runs here, and why not the rest."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import fastmeta
from fastmeta.backends.cpu import native, usable_cores
from fastmeta.words import counted

PACKAGES = ("torch", "numpy", "triton", "safetensors", "tqdm", "matplotlib")
CPU_FEATURES = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512dq", "avx512_bf16")


def run(options: argparse.Namespace) -> int:
    """Print the report; what is missing is no failure."""
    folder = Path(fastmeta.__file__).parent
    print(f"{'fastmeta':<11} {fastmeta.__version__} in {folder}")
    print(f"{'python':<11} {platform.python_version()} on {platform.platform()}")
    for name in PACKAGES:
        print(f"{name:<11} {_version(name)}")
    _print_processor()
    _print_build(folder / "_build_info.json")
    if native is not None:
        _print_native(native)
    print("\nbackends")
    for name, state in fastmeta.available_backends().items():
        print(f"  {name:<10} {'runs here' if state is True else f'not available: {state}'}")
    requested = os.environ.get("FASTMETA_BACKEND")
    if requested:
        print(f"  FASTMETA_BACKEND={requested} is set")
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _print_processor() -> None:
    facts = _cpuinfo()
    flags = set(facts.get("flags", "").split())
    print("\nprocessor")
    print(f"  model      {facts.get('model name') or platform.processor() or 'unknown'}")
    if flags:
        print(f"  has        {' '.join(f for f in CPU_FEATURES if f in flags) or '-'}")
        print(f"  lacks      {' '.join(f for f in CPU_FEATURES if f not in flags) or '-'}")
    print(f"  torch uses {torch.backends.cpu.get_cpu_capability()}")
    cores = counted(usable_cores(), "core")
    print(f"  threads    {torch.get_num_threads()} (torch and fastmeta), {cores}")


def _cpuinfo() -> dict[str, str]:
    """Return the first processor of /proc/cpuinfo, which only Linux has."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _print_build(path: Path) -> None:
    print("\nbuild")
    try:
        info = json.loads(path.read_text())
    except FileNotFoundError:
        print("  no record: this copy was not built by `pip install`")
        return
    except ValueError as error:
        info = error
    if not isinstance(info, dict):
        print(f"  {path} cannot be read: {info}")
        return
    for name, value in info.items():
        print(f"  {name:<10} {_as_text(value)}")


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return " ".join(str(value).split()) or "-"


def _print_native(module: ModuleType) -> None:
    variants = module.variants()
    lacking = [name for name, runs in variants.items() if not runs]
    print("\nnative code")
    print(f"  variants   {' '.join(variants)}")
    if lacking:
        print(f"  not here   {' '.join(lacking)}: this processor lacks the instructions")
    print(f"  in use     {module.variant()}")
    print(f"  threads    {module.thread_runtime() or 'none'}")
