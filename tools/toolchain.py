"""The compilers, ninja, and what they say."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path


class BuildError(Exception):
    """The native code could not be built; the text says why."""


class ToolchainError(BuildError):
    """What is needed to compile at all is missing or does not work."""


def find_compiler() -> list[str]:
    """Return the C++ compiler's command: CXX, else the sibling of CC, else the first one found."""
    if sys.platform == "win32":
        raise ToolchainError("native code is not built on Windows yet")
    wanted = os.environ.get("CXX") or _cxx_of(os.environ.get("CC", ""))
    candidates = [wanted] if wanted else ["c++", "g++", "clang++"]
    for candidate in candidates:
        command = shlex.split(candidate)
        if shutil.which(command[0]):
            return command
    raise ToolchainError(f"no C++ compiler: {', '.join(candidates)} not found")


def _cxx_of(cc: str) -> str:
    cxx = {"cc": "c++", "gcc": "g++", "clang": "clang++"}
    return re.sub(r"(clang|gcc|cc)(-[\d.]+)?$", lambda m: cxx[m[1]] + (m[2] or ""), cc)


def find_ninja() -> list[str]:
    """Return the command of the ninja package, else of a ninja in PATH."""
    if importlib.util.find_spec("ninja"):
        return [sys.executable, "-m", "ninja"]
    if path := shutil.which("ninja"):
        return [path]
    raise ToolchainError("ninja is not installed (pip install ninja)")


def find_nvcc() -> list[str]:
    """Return the command of nvcc, of CUDA_HOME if that is set, else of the PATH."""
    home = os.environ.get("CUDA_HOME")
    wanted = str(Path(home, "bin/nvcc")) if home else "nvcc"
    candidates = [wanted] if home else [wanted, "/usr/local/cuda/bin/nvcc"]
    for candidate in candidates:
        if path := shutil.which(candidate):
            return [path]
    raise ToolchainError(f"no CUDA compiler: {wanted} not found")


def try_compile(compiler: Sequence[str], flags: Iterable[str], source: str) -> str | None:
    """Compile `source` to nothing; return None, or the compiler's complaint."""
    command = [*compiler, *flags, "-x", "c++", "-c", "-", "-o", os.devnull]
    result = subprocess.run(command, input=source, capture_output=True, text=True)
    return None if result.returncode == 0 else first_errors(result.stderr)


def first_errors(output: str, count: int = 5) -> str:
    """Return the first lines of a compiler's output that name an error, else its last lines."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return "\n".join([line for line in lines if "error:" in line][:count] or lines[-count:])


def compiler_version(compiler: Sequence[str]) -> str:
    """Return the compiler's name and version, its own first line."""
    output = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout
    return output.splitlines()[0] if output else shlex.join(compiler)


def nvcc_version(nvcc: Sequence[str]) -> str:
    """Return the line of `nvcc --version` that names the release."""
    output = subprocess.run([*nvcc, "--version"], capture_output=True, text=True).stdout
    lines = [line for line in output.splitlines() if "release" in line]
    return lines[0] if lines else shlex.join(nvcc)
