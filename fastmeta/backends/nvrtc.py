"""NVIDIA's run-time compiler, which PyTorch's CUDA packages bring along."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Iterator
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p, create_string_buffer
from functools import cache
from pathlib import Path

__all__ = ["compile_cuda"]


@cache
def compile_cuda(source: str, capability: tuple[int, int], cuda_version: str) -> bytes:
    """Compile `source`, which includes nothing, for a GPU.

    Args:
        source: CUDA C++17.
        capability: the GPU's compute capability, (9, 0) say.
        cuda_version: which NVRTC to look for, "13.0" say (``torch.version.cuda``).

    Returns:
        A cubin.

    Raises:
        RuntimeError: there is no such NVRTC, or it refuses the source, with what it says.
    """
    nvrtc, program = _load(cuda_version.split(".")[0]), c_void_p()
    _check(nvrtc, nvrtc.nvrtcCreateProgram(byref(program), source.encode(), b"program.cu", 0, 0, 0))
    try:
        major, minor = capability
        # The last is what CUDA 12 wants to be told of lambdas.
        options = [
            f"--gpu-architecture=sm_{major}{minor}".encode(),
            b"--std=c++17",
            b"--device-as-default-execution-space",
        ]
        result = nvrtc.nvrtcCompileProgram(
            program, len(options), (c_char_p * len(options))(*options)
        )
        log = _read(nvrtc, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
        _check(nvrtc, result, log.rstrip(b"\0").decode(errors="replace"))
        return _read(nvrtc, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(byref(program))


def _check(nvrtc: ctypes.CDLL, result: int, log: str = "") -> None:
    if result:
        what = nvrtc.nvrtcGetErrorString(result).decode()
        raise RuntimeError(f"NVRTC: {what}\n{log}".rstrip())


def _read(nvrtc: ctypes.CDLL, size_of: object, read: object, program: c_void_p) -> bytes:
    size = c_size_t()
    _check(nvrtc, size_of(program, byref(size)))  # type: ignore[operator]
    text = create_string_buffer(size.value)
    _check(nvrtc, read(program, text))  # type: ignore[operator]
    return text.raw


@cache
def _load(major: str) -> ctypes.CDLL:
    tried = []
    for path in _candidates(f"libnvrtc.so.{major}"):
        try:
            library = ctypes.CDLL(path)
        except OSError as error:
            tried.append(str(error))
            continue
        library.nvrtcGetErrorString.restype = c_char_p
        library.nvrtcGetErrorString.argtypes = [c_int]
        return library
    raise RuntimeError(f"no NVRTC of CUDA {major}: {'; '.join(tried)}")


def _candidates(name: str) -> Iterator[str]:
    """Of NVIDIA's packages, of the toolkit, and wherever the system looks."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        yield from map(str, sorted(Path(folder).glob(f"*/lib/{name}")))
    if home := os.environ.get("CUDA_HOME"):
        yield str(Path(home, "lib64", name))
    yield name
