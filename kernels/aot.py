"""Kernels compiled ahead of time, which needs no GPU, and what the compiler says of them.

    python -m fastmeta.kernels.aot [NAME ...]       every case whose name contains one of these

prints a table of registers, spilled bytes, shared memory and matrix instructions.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

__all__ = [
    "TARGETS",
    "AotCase",
    "Report",
    "all_cases",
    "cases_of",
    "compile_case",
    "launches",
]

TARGETS = (80, 90, 100)  # sm_80 (A100), sm_90 (H100, H200), sm_100 (B200)


@dataclass(frozen=True)
class AotCase:
    """One form of a kernel, as a launch would compile it.

    Attributes:
        name: unique among all cases.
        kernel: the function under `triton.jit`.
        signature: the type of each argument that is not a constant, such as "*fp32" or "i32".
        constants: the value of each `tl.constexpr` argument.
        multiples_of_16: the whole numbers among the arguments that are divisible by 16; pointers
            are taken to be.
        num_warps, num_stages: of the launch.
        targets: compute capabilities, as 90 for 9.0.
        spilled_bytes: how many bytes of registers a thread may spill into memory.
        tensor_cores: whether its products must run on tensor cores (True), must not (False), or
            either (None).
        warpgroups: whether on sm_90 they must be Hopper's own, HGMMA.
    """

    name: str
    kernel: Any = field(repr=False)
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    multiples_of_16: Sequence[str] = ()
    num_warps: int = 4
    num_stages: int = 3
    targets: Sequence[int] = TARGETS
    spilled_bytes: int = 0
    tensor_cores: bool | None = None
    warpgroups: bool = False


@dataclass(frozen=True)
class Report:
    """What the compiler made of a case; bytes but for the registers of a thread.

    `pair_sums`: the layouts of tiles of three dimensions of which the last is summed. Kernels that
    sum in one layout sum in one order.
    """

    name: str
    target: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    matrix_instructions: tuple[str, ...]
    pair_sums: tuple[str, ...]
    error: str = ""


def cases_of(name: str, launch: Callable[[], Any], **expected: Any) -> list[AotCase]:
    """The kernels that `launch` starts on meta tensors, which are not run, as cases.

    What the launch would specialise, the cases do: whole numbers that are 1 or divisible by 16.
    """
    return [
        _case_of(name if not i else f"{name} [{i}]", *started, **expected)
        for i, started in enumerate(launches(launch))
    ]


def launches(run: Callable[[], Any]) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """What `run` starts: kernel, arguments and options of each launch, none of which happens."""
    from triton.runtime.jit import KernelInterface

    started = []

    def record(kernel: Any, grid: Any) -> Callable[..., None]:
        return lambda *args, **options: started.append((kernel, args, options))

    whole = KernelInterface.__getitem__
    KernelInterface.__getitem__ = record  # type: ignore[method-assign]
    try:
        run()
    finally:
        KernelInterface.__getitem__ = whole  # type: ignore[method-assign]
    return started


def _case_of(
    name: str, kernel: Any, args: tuple[Any, ...], options: dict[str, Any], **expected: Any
) -> AotCase:
    launch = {key: options.pop(key) for key in ("num_warps", "num_stages") if key in options}
    given = {**dict(zip(kernel.arg_names, args, strict=False)), **options}
    signature, constants, aligned = {}, {}, []
    for key, value in given.items():
        if isinstance(value, torch.Tensor):
            signature[key] = "*" + _TYPES[value.dtype]
        elif key in options or value == 1:
            constants[key] = value
        elif isinstance(value, int):
            signature[key] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned += [key] if value % 16 == 0 else []
        else:
            signature[key] = "fp32"
    return AotCase(name, kernel, signature, constants, aligned, **launch, **expected)


_TYPES = {
    torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16",
    torch.int64: "i64", torch.int32: "i32", torch.uint8: "u8", torch.int8: "i8", torch.bool: "i1",
}  # fmt: skip


def all_cases() -> list[AotCase]:
    """Those of every file of this folder: its `AOT`, or what its function `aot()` returns."""
    folder = str(__package__)
    names = [m.name for m in pkgutil.iter_modules(importlib.import_module(folder).__path__)]
    modules = [importlib.import_module(f"{folder}.{name}") for name in sorted(names)]
    listed = [case for module in modules for case in getattr(module, "AOT", ())]
    return listed + [case for module in modules if hasattr(module, "aot") for case in module.aot()]


def compile_case(case: AotCase, target: int) -> Report:
    """Compile for compute capability `target`; not under TRITON_INTERPRET."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    arguments = case.kernel.arg_names
    signature = {name: case.signature.get(name, "constexpr") for name in arguments}
    aligned = [
        (place,)
        for place, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in case.multiples_of_16
    ]
    source = ASTSource(
        case.kernel,
        signature,
        dict(case.constants),
        {p: [["tt.divisibility", 16]] for p in aligned},
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    sums = _pair_sums(compiled.asm["ttgir"])
    return _report(case, target, compiled.asm["cubin"], compiled.metadata.shared, sums)


def _pair_sums(ttgir: str) -> tuple[str, ...]:
    layouts = dict(re.findall(r"^(#\w+) = (#ttg\.\w+<.*>)$", ttgir, re.MULTILINE))
    reduction = r"axis = 2 : i32}> \(\{.*?\}\) : \(tensor<[^,]*, (#\w+)>\)"
    return tuple(layouts[name] for name in re.findall(reduction, ttgir, re.DOTALL))


def _report(
    case: AotCase, target: int, cubin: bytes, shared: int, pair_sums: tuple[str, ...]
) -> Report:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _cuobjdump("--dump-resource-usage", file.name)
        assembly = _cuobjdump("--dump-sass", file.name)
    amounts = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    instructions = re.findall(r"\b(?:HMMA|HGMMA|IGMMA|DMMA|UTC\w*MMA)\b[.\w]*", assembly)
    spilled = amounts["STACK"] + amounts["LOCAL"]
    kinds = tuple(sorted(set(instructions)))
    return Report(case.name, target, amounts["REG"], spilled, shared, kinds, pair_sums)


def _cuobjdump(*arguments: str) -> str:
    from triton import knobs

    command = [knobs.nvidia.cuobjdump.path, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _compile(job: tuple[str, int]) -> Report:
    name, target = job
    (case,) = (case for case in all_cases() if case.name == name)
    try:
        return compile_case(case, target)
    except Exception as error:  # a compiler's: the caller judges all of them together
        return Report(name, target, 0, 0, 0, (), (), f"{type(error).__name__}: {error}")


def _reports(jobs: Sequence[tuple[str, int]]) -> Iterator[Report]:
    workers = min(len(jobs), len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(max(1, workers)) as pool:
        yield from pool.map(_compile, jobs)


def main() -> int:
    """Print one line a case and target, or with --json the reports."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="parts of names; without any, every case")
    parser.add_argument("--jobs", help='JSON: [["name", target], ...], exactly these')
    parser.add_argument("--json", action="store_true", help="reports as JSON, one a line")
    options = parser.parse_args()
    wanted = [
        (case.name, target)
        for case in all_cases()
        for target in case.targets
        if not options.names or any(part in case.name for part in options.names)
    ]
    jobs = wanted if options.jobs is None else [tuple(job) for job in json.loads(options.jobs)]
    for report in _reports(jobs):
        print(json.dumps(asdict(report)) if options.json else _line(report), flush=True)
    return 0


def _line(report: Report) -> str:
    if report.error:
        return f"{report.name:<44} sm_{report.target:<4} {report.error}"
    kinds = sorted({kind.split(".")[0] for kind in report.matrix_instructions})
    return (
        f"{report.name:<44} sm_{report.target:<4} {report.registers:>3} registers "
        f"{report.spilled_bytes:>5} B spilled {report.shared_bytes:>7} B shared  {' '.join(kinds)}"
    )


if __name__ == "__main__":
    sys.exit(main())
