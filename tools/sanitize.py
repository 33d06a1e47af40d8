"""Compiles tests/csrc/ under ASan + UBSan, then under TSan, and runs the programs.

    python tools/sanitize.py

Needs what tools/build_native.py needs, and heeds the same of the environment.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from build_native import ROOT, SYSTEM_LIBRARIES, NinjaBuild, add_library, common_flags
from machines import CPUINFO, runnable_isas, supported_isas
from toolchain import BuildError, find_compiler

# No threads; code that a test compiles by itself, without a sanitizer.
WITHOUT_RACES = ("test_math", "test_cuda_printed")
# The compiler takes a minute to optimise what runs for seconds.
UNOPTIMISED = ("test_cuda_blocks", "test_cuda_printed")
# Checks of every pointer double the time to compile, and find what AddressSanitizer stops at; that
# of alignment costs less beside the other sanitizer.
SANITIZERS = {
    "address": [
        "-fsanitize=address,undefined",
        "-fno-sanitize=null,object-size,pointer-overflow,alignment",
    ],
    "thread": ["-fsanitize=thread,alignment"],
}


def sanitize() -> None:
    """Build every tests/csrc/test_*.cpp with csrc under each sanitizer, and run them."""
    tests = sorted((ROOT / "tests/csrc").glob("test_*.cpp"))
    if not tests:
        raise BuildError("no tests/csrc/test_*.cpp")
    compiler = find_compiler()
    for name in SANITIZERS:
        programs = build_sanitized(name, tests, compiler)
        with ThreadPoolExecutor(max_workers=2) as pool:  # most are one thread most of the time
            for output in pool.map(partial(run_sanitized, name), programs):
                print(output, end="", flush=True)


def build_sanitized(name: str, tests: Sequence[Path], compiler: Sequence[str]) -> list[Path]:
    """Build one program per test under the sanitizer `name`; return the programs."""
    isas = runnable_isas(supported_isas(compiler))
    if name == "thread":
        isas = isas[:1]  # races are the same at every width
        tests = [test for test in tests if not test.stem.startswith(WITHOUT_RACES)]
    weakest, widest = isas[0], isas[-1]
    sanitizer = [*SANITIZERS[name], "-fno-sanitize-recover=all"]
    flags = ["-O1", "-g1", "-fno-omit-frame-pointer", "-Wno-unknown-pragmas"]
    flags += [*sanitizer, *common_flags(isas)]
    # Each takes minutes: the others are the same text with another width, and larger tiles of
    # products the same text unrolled further.
    flags += [f"-DFASTMETA_FLOATS_OF={widest.name}", "-DFASTMETA_REGISTERS=8"]
    # -rdynamic: a test may bring its own GOMP_parallel, which dispatch.cpp looks up by name.
    link_flags = [*sanitizer, "-rdynamic", *SYSTEM_LIBRARIES]
    ninja = NinjaBuild(ROOT / f"build/sanitize-{name}", compiler, flags, link_flags)
    library = add_library(ninja, [(weakest, "double"), (widest, "float")])
    programs = []
    for test in tests:
        own = ninja.compile(test, f"{test.stem}.o", ["-O0"] * (test.stem in UNOPTIMISED))
        programs.append(ninja.link([own, *library], test.stem))
    ninja.run()
    return programs


def run_sanitized(name: str, program: Path) -> str:
    """Run one test program; return what it wrote, or raise BuildError with that if it fails."""
    heading = f"{name} sanitizer: {program.name}"
    if program.name.endswith("_avx512") and "avx512bw" not in CPUINFO.read_text():
        return f"{heading} left out: no AVX-512 here\n"
    # ThreadSanitizer of older compilers stops at start on kernels that randomise addresses widely.
    fixed_addresses = ["setarch", "-R"] if name == "thread" and shutil.which("setarch") else []
    command = [*fixed_addresses, str(program)]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    output = f"{heading}\n{result.stdout}"
    if result.returncode:
        raise BuildError(f"{output}\n{program.name} failed (exit {result.returncode})")
    return output


def main() -> int:
    """Return 0, or 1 after a program that cannot be built or fails."""
    try:
        sanitize()
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
