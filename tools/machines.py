"""Which machines native code is for: their instruction sets and GPU architectures."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolchain import BuildError, ToolchainError, try_compile

CPUINFO = Path("/proc/cpuinfo")
NVIDIA_DRIVER = Path("/dev/nvidiactl")
CUDA_ARCHS = ("80", "90", "100")


@dataclass(frozen=True)
class Isa:
    """An instruction set that the kernels are compiled for."""

    name: str
    vector_bytes: int
    flags: tuple[str, ...] = ()

    @property
    def needs(self) -> set[str]:
        """What the processor must have, as Linux names it."""
        machine = (flag.removeprefix("-m") for flag in self.flags)
        return {name for name in machine if not name.startswith("prefer-")}


# Weakest first, and linked in this order: of an inline function that several objects carry (say
# one of std::vector), the linker keeps the first copy, which must run on every machine.
ISAS = (
    Isa("portable", 16),
    Isa("avx2", 32, ("-mavx2", "-mfma")),
    Isa(
        "avx512",
        64,
        (
            *"-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma".split(),
            "-mprefer-vector-width=512",
        ),
    ),
)


# ---- processors ----------------------------------------------------------------------------------


def supported_isas(compiler: Sequence[str]) -> list[Isa]:
    """Return the instruction sets that the compiler can make code for."""
    x86_64 = "#include <immintrin.h>\n#ifndef __x86_64__\n#error not x86-64\n#endif\n"
    return [
        isa
        for isa in ISAS
        if not isa.flags or try_compile(compiler, isa.flags, x86_64) is None
    ]


def runnable_isas(isas: Sequence[Isa]) -> list[Isa]:
    """Return those of `isas` that this processor runs; all, if it does not tell what it is."""
    if not CPUINFO.exists():
        return list(isas)
    flags = set(CPUINFO.read_text().split())
    return [isa for isa in isas if flags.issuperset(isa.needs)]


def wanted_isas(compiler: Sequence[str], default: str) -> list[Isa]:
    """Return the instruction sets to make code for, those of FASTMETA_ISAS or `default`."""
    supported = supported_isas(compiler)
    wanted = _words_of("FASTMETA_ISAS") or [default]
    if wanted == ["here"]:
        return runnable_isas(supported)[-1:] if CPUINFO.exists() else supported
    if wanted == ["runnable"]:
        return runnable_isas(supported)
    if wanted == ["all"]:
        return supported
    names = _known_among(wanted, [isa.name for isa in ISAS], "FASTMETA_ISAS")
    found = [isa for isa in supported if isa.name in names]
    if len(found) < len(names):
        raise ToolchainError(f"{shlex.join(compiler)} has not all of FASTMETA_ISAS: {names}")
    return found


# ---- GPUs ----------------------------------------------------------------------------------------


def cuda_archs(default: str) -> list[str]:
    """Return the GPU architectures to make code for, those of FASTMETA_CUDA_ARCHS or `default`."""
    wanted = _words_of("FASTMETA_CUDA_ARCHS") or [default]
    if wanted == ["here"]:
        return archs_of(gpus_here())
    if wanted == ["all"]:
        return list(CUDA_ARCHS)
    return _known_among(wanted, CUDA_ARCHS, "FASTMETA_CUDA_ARCHS")


def gpus_here() -> list[str]:
    """Return the compute capabilities of this machine's NVIDIA GPUs, say "9.0"; "" if not told."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    if shutil.which(command[0]):
        told = subprocess.run(command, capture_output=True, text=True)
        if told.returncode == 0:
            return re.findall(r"^\d+\.\d+$", told.stdout, re.MULTILINE)
    return [""] if NVIDIA_DRIVER.exists() else []


def archs_of(gpus: Sequence[str]) -> list[str]:
    """Return the architectures whose code, or PTX, these GPUs run: the newest for each."""
    if "" in gpus:
        return list(CUDA_ARCHS)
    numbers = [int(gpu.replace(".", "")) for gpu in gpus]
    found = {max(arch for arch in map(int, CUDA_ARCHS) if arch <= n) for n in numbers if n >= 80}
    if not found:
        told = f"there {'are' if gpus else 'is'} {', '.join(gpus) or 'none'} here"
        raise BuildError(
            f"no GPU of compute capability 8.0 or later: {told}; FASTMETA_CUDA_ARCHS=all compiles "
            "for those of other machines"
        )
    return [arch for arch in CUDA_ARCHS if int(arch) in found]


def arch_flags(archs: Sequence[str]) -> list[str]:
    """Return nvcc's flags: machine code for each, and PTX of the newest for what comes after it."""
    codes = [f"sm_{arch}" for arch in archs]
    codes[-1] = f"[{codes[-1]},compute_{archs[-1]}]"
    pairs = zip(archs, codes, strict=True)
    return [w for arch, code in pairs for w in ("-gencode", f"arch=compute_{arch},code={code}")]


# ---- the environment -----------------------------------------------------------------------------


def _words_of(variable: str) -> list[str]:
    return os.environ.get(variable, "").replace(",", " ").split()


def _known_among(wanted: Sequence[str], known: Sequence[str], variable: str) -> list[str]:
    if unknown := set(wanted) - set(known):
        raise SystemExit(f"{variable}: {', '.join(sorted(unknown))} not in {', '.join(known)}")
    return [name for name in known if name in wanted]
