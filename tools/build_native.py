"""Compiles csrc/ with ninja: fastmeta._native and fastmeta._cuda.

    python tools/build_native.py    # fastmeta/_native*.so and _cuda*.so in this checkout

Needs a C++17 compiler, pybind11 and ninja, and no PyTorch. Those files of csrc/cpu/ that KERNELS
names are compiled once per instruction set and real type; csrc/cpu/dispatch.cpp chooses among them
at run time. csrc/cuda/ is compiled where there is an nvcc, in PATH or in CUDA_HOME.

Environment: CXX (or CC), CXXFLAGS and LDFLAGS as usual, and FASTMETA_BUILD:
    auto     without a working toolchain, go on in pure Python (default)
    native   no native code is an error
    python   do not compile
FASTMETA_CUDA:
    auto     without an nvcc that works, go on without (default)
    1        no CUDA module is an error
    0        do not compile it
FASTMETA_ISAS, for which processors:
    here     the widest instruction set that this one runs (default in a checkout)
    runnable each that this one runs, for tests of them all
    all      each that the compiler knows, chosen from at run time (default of a wheel)
    or names, say "portable avx2"
FASTMETA_CUDA_ARCHS, for which GPUs:
    here     those of this machine, or no CUDA module (default in a checkout; with FASTMETA_CUDA=1
             and without a GPU: all)
    all      each architecture that is supported (default of a wheel)
    or numbers, say "90"
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from machines import Isa, arch_flags, cuda_archs, gpus_here, wanted_isas
from toolchain import (
    BuildError,
    ToolchainError,
    compiler_version,
    find_compiler,
    find_ninja,
    find_nvcc,
    first_errors,
    nvcc_version,
    try_compile,
)

ROOT = Path(__file__).resolve().parents[1]

COMMON_FLAGS = (
    "-std=c++17 -fPIC -fvisibility=hidden -fno-math-errno -ffp-contract=fast -Wall -Wextra"
).split()
SYSTEM_LIBRARIES = [] if sys.platform == "darwin" else ["-ldl", "-lpthread"]
MODULE_LINK_FLAGS = ["-shared"] + (
    ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
)
CUDA_BUILD = ROOT / "build/cuda"
CUDA_FLAGS = ("-O3 -std=c++17 -Werror all-warnings -Xcompiler -fPIC,-fvisibility=hidden").split()
# A private copy of the CUDA runtime, hidden from PyTorch's.
CUDA_LINK_FLAGS = "-shared -cudart static -Xlinker --exclude-libs -Xlinker ALL".split()
REALS = ("float", "double")
KERNELS = (
    "kernels", "stages", "written", "headed", "products", "row_machine", "convolution", "norm",
    "max_pool", "pixels", "prototypes", "prototype_loss", "prototype_gradient", "nearest",
)  # fmt: skip


# ---- toolchain ----------------------------------------------------------------------------------


def binding_flags() -> list[str]:
    """Return the include flags of Python and pybind11."""
    if not importlib.util.find_spec("pybind11"):
        raise ToolchainError("pybind11 is not installed (pip install pybind11)")
    import pybind11

    directories = (sysconfig.get_path("include"), pybind11.get_include())
    return [word for directory in directories for word in ("-isystem", directory)]


def check_toolchain(compiler: Sequence[str]) -> None:
    """Raise ToolchainError unless the compiler works and finds Python's headers."""
    flags = [*COMMON_FLAGS, *binding_flags()]
    complaint = try_compile(compiler, flags, "#include <vector>\n#include <Python.h>\n")
    if complaint is not None:
        raise ToolchainError(f"{shlex.join(compiler)} cannot compile for Python: {complaint}")


# ---- ninja --------------------------------------------------------------------------------------


@dataclass
class NinjaBuild:
    """The edges of one build.ninja in `directory`, where its objects go too."""

    directory: Path
    compiler: Sequence[str]
    flags: Sequence[str]
    link_flags: Sequence[str]
    edges: list[str] = field(default_factory=list)

    def compile(self, source: Path, output: str, flags: Iterable[str] = ()) -> str:
        """Add the object `output` of `source`; return its name."""
        self.edges.append(
            f"build {output}: compile {_ninja_path(source)}\n  flags = {_ninja_words(flags)}\n"
        )
        return output

    def link(self, objects: Iterable[str], output: str) -> Path:
        """Add the program or shared object `output`; return where it will be."""
        self.edges.append(f"build {output}: link {' '.join(objects)}\n")
        return self.directory / output

    def run(self) -> None:
        """Write build.ninja and bring everything up to date, in parallel."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "build.ninja").write_text(self._text())
        command = [*find_ninja(), "-C", str(self.directory)]
        output = []
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                output.append(line)
        if process.returncode:
            raise BuildError(first_errors("".join(output)))

    def _text(self) -> str:
        rules = f"""\
rule compile
  command = {_ninja_words(self.compiler)} {_ninja_words(self.flags)} $flags $
      -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = compile $out
rule link
  command = {_ninja_words(self.compiler)} $in {_ninja_words(self.link_flags)} -o $out
  description = link $out
"""
        return rules + "".join(self.edges)


def _ninja_words(words: Iterable[str]) -> str:
    return shlex.join(words).replace("$", "$$")


def _ninja_path(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


# ---- what is built ------------------------------------------------------------------------------


def common_flags(isas: Iterable[Isa]) -> list[str]:
    """Return the flags of every file: FASTMETA_HAS_... tells dispatch.cpp what it can call."""
    variants = [f"-DFASTMETA_HAS_{isa.name.upper()}" for isa in isas]
    return [*COMMON_FLAGS, *variants, f"-I{ROOT / 'csrc'}"]


def kernel_flags(isa: Isa, real: str) -> list[str]:
    """Return what makes a file of kernels the variant (isa, real)."""
    return [
        f"-DFASTMETA_ISA={isa.name}",
        f"-DFASTMETA_REAL={real}",
        f"-DFASTMETA_VECTOR_BYTES={isa.vector_bytes}",
        *isa.flags,
    ]


def add_library(ninja: NinjaBuild, variants: Iterable[tuple[Isa, str]]) -> list[str]:
    """Add everything of csrc but the binding, the kernels of each (instruction set, real type).

    Returns the objects in link order.
    """
    dispatch = ninja.compile(ROOT / "csrc/cpu/dispatch.cpp", "dispatch.o")
    kernels = [
        ninja.compile(
            ROOT / f"csrc/cpu/{name}.cpp",
            f"{name}.{isa.name}.{real}.o",
            kernel_flags(isa, real),
        )
        for isa, real in variants
        for name in KERNELS
    ]
    return [dispatch, *kernels]


def compile_module(destination: Path, machines: str) -> dict:
    """Build fastmeta._native into the folder `destination`; return what build_info records."""
    compiler = find_compiler()
    check_toolchain(compiler)
    isas = wanted_isas(compiler, machines)
    flags = ["-O3", *common_flags(isas), *shlex.split(os.environ.get("CXXFLAGS", ""))]
    link_flags = [
        *MODULE_LINK_FLAGS,
        *SYSTEM_LIBRARIES,
        *shlex.split(os.environ.get("LDFLAGS", "")),
    ]
    ninja = NinjaBuild(ROOT / "build/native", compiler, flags, link_flags)
    binding = ninja.compile(ROOT / "csrc/bindings.cpp", "bindings.o", binding_flags())
    library = add_library(ninja, itertools.product(isas, REALS))
    module = ninja.link([binding, *library], module_name())
    ninja.run()
    replace(module, destination / module.name)
    return {
        "native": True,
        "isas": [isa.name for isa in isas],
        "compiler": compiler_version(compiler),
        "flags": [flag for flag in flags if not flag.startswith("-I")],
    }


def flat(path: Path, seen: set[Path]) -> str:
    """Return the text of a header with the project's own headers in place, each once."""
    seen.add(path)
    lines = []
    for line in path.read_text().splitlines():
        found = re.match(r'#include (?:"(.*)"|<.*>)', line)
        if not found and line != "#pragma once":
            lines.append(line)
        elif found and found[1] and (other := (path.parent / found[1]).resolve()) not in seen:
            lines.append(flat(other, seen))
    return "\n".join(lines)


def kernel_text(header: Path, folder: Path) -> Path:
    """Write a source file that holds the text of `header`, which programs are compiled with."""
    text = flat(header.resolve(), set())
    declaration = "extern const char* const fastmeta_kernel_text;\n"
    source = f'{declaration}const char* const fastmeta_kernel_text = R"~({text})~";\n'
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "kernel_text.cpp"
    if not path.exists() or path.read_text() != source:
        path.write_text(source)
    return path


def compile_cuda(destination: Path, machines: str) -> dict:
    """Build fastmeta._cuda into the folder `destination`; return what build_info records."""
    nvcc, archs = find_nvcc(), cuda_archs(machines)
    flags = [*CUDA_FLAGS, *arch_flags(archs), f"-I{ROOT / 'csrc'}"]
    ninja = NinjaBuild(CUDA_BUILD, nvcc, flags, CUDA_LINK_FLAGS)
    source = ROOT / "csrc/cuda"
    binding = ninja.compile(source / "bindings.cpp", "bindings.o", binding_flags())
    programs = ninja.compile(source / "record.cpp", "record.o")
    compiled = ninja.compile(source / "compiled.cpp", "compiled.o")
    text = ninja.compile(kernel_text(source / "run.cuh", CUDA_BUILD), "kernel_text.o")
    launches = [
        ninja.compile(source / "launch.cu", f"launch.{real}.o", [f"-DFASTMETA_REAL={real}"])
        for real in REALS
    ]
    objects = [binding, programs, compiled, text, *launches]
    module = ninja.link(objects, module_name("_cuda"))
    ninja.run()
    replace(module, destination / module.name)
    return {"cuda": [f"sm_{arch}" for arch in archs], "nvcc": nvcc_version(nvcc)}


def build_cuda(destination: Path, machines: str) -> dict:
    """Build the CUDA module, or say why there is none; an error only where it is demanded."""
    mode = os.environ.get("FASTMETA_CUDA", "auto")
    if mode not in ("auto", "0", "1"):
        raise SystemExit(f"FASTMETA_CUDA={mode}: expected auto, 0 or 1")
    try:
        if mode == "0":
            raise ToolchainError("not asked for (FASTMETA_CUDA=0)")
        demanded_elsewhere = mode == "1" and not gpus_here()
        return compile_cuda(destination, "all" if demanded_elsewhere else machines)
    except BuildError as error:
        if mode == "1":
            raise
        # An older module left here would be loaded in place of the one that failed.
        (destination / module_name("_cuda")).unlink(missing_ok=True)
        return {"cuda": False, "cuda_error": str(error)}


def build(destination: Path, machines: str, tolerate: type[BuildError]) -> dict:
    """Build into the package folder `destination` and leave `_build_info.json` beside.

    `machines` is "here" or "all": what it is for where the environment does not say.
    An error of the class `tolerate` leaves a package in pure Python, with the reason recorded,
    unless FASTMETA_BUILD=native.
    """
    mode = os.environ.get("FASTMETA_BUILD", "auto")
    if mode not in ("auto", "native", "python"):
        raise SystemExit(f"FASTMETA_BUILD={mode}: expected auto, native or python")
    destination.mkdir(parents=True, exist_ok=True)
    try:
        if mode == "python":
            raise ToolchainError("not asked for (FASTMETA_BUILD=python)")
        outcome = compile_module(destination, machines) | build_cuda(destination, machines)
    except tolerate as error:
        if mode == "native" or os.environ.get("FASTMETA_CUDA") == "1":
            raise
        # An older module left here would be loaded in place of the one that failed.
        for name in ("_native", "_cuda"):
            (destination / module_name(name)).unlink(missing_ok=True)
        outcome = {"native": False, "error": str(error)}
    info = {**outcome, "python": platform.python_version(), "commit": commit()}
    (destination / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")
    return info


def module_name(stem: str = "_native") -> str:
    """Return the file name of an extension module for this Python."""
    return stem + sysconfig.get_config_var("EXT_SUFFIX")


def commit() -> str | None:
    """Return the commit of this checkout, with "-dirty" if it has changes; None outside git."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    result = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True)
    return result.stdout.strip() or None


def replace(source: Path, target: Path) -> None:
    """Copy `source` over `target` in one step: a running process may have the old one mapped."""
    partial = target.with_name(target.name + ".partial")
    shutil.copy2(source, partial)
    partial.replace(target)


def main(arguments: Sequence[str]) -> int:
    """Run the command line described at the top of this file."""
    if arguments:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        # In a checkout, only a missing toolchain is no reason to stop: broken sources are.
        info = build(ROOT / "fastmeta", "here", tolerate=ToolchainError)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"native code: {', '.join(info['isas'])}"
        if info["native"]
        else f"no native code, pure Python only: {info['error']}"
    )
    if info["native"]:
        print(f"CUDA: {' '.join(info['cuda']) if info['cuda'] else info['cuda_error']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
