"""Programs as text for a compiler (csrc/cuda/compiled.h), by nvcc and NVRTC; no GPU is needed."""

import importlib
import re
import subprocess
from pathlib import Path

import pytest

from fastmeta.backends import nvrtc

ROOT = Path(__file__).resolve().parents[1]
H100 = (232448, 132)  # bytes of shared memory a block, processors
WIDTHS = {"sinusoid": (1, 40, 40, 1), "rl": (20, 64, 64, 6)}


@pytest.fixture(scope="module")
def native():
    try:
        return importlib.import_module("fastmeta._cuda")
    except ImportError as error:
        pytest.skip(f"no CUDA module: {error}")


def source(
    native, widths, backward, activation="relu", tasks=25, steps=5, real="float32", loss="mse"
):
    nodes = []
    for layer, (fan_in, fan_out) in enumerate(zip(widths, widths[1:], strict=False)):
        if layer:
            nodes.append(("activation", activation, 0.0, 0.0, fan_in, fan_in, -1, -1))
        nodes.append(("linear", "", 0.0, 0.0, fan_in, fan_out, 2 * layer, 2 * layer + 1))
    n = 2 * len(widths) - 2
    chain = native.Chain(nodes, loss, n)
    call = getattr(native, f"call_{real}")(
        chain, tasks, steps, 2, [0] * n, [(0, 1)] * n, True, (10, 10), False, (False, False)
    )
    wanted = (backward, not backward, backward, backward, backward, backward, False, False)
    return getattr(native, f"source_{real}")(call, *wanted, *H100)


def multiply_adds(text):
    """What the products of each shape have at least, written out: forty steps, ten down columns."""
    total = 0
    for code, rows, fields in re.findall(r"carry_out<Do\((\d+)\), (\d)>\(here, Op\{(.*)\}", text):
        if 19 <= int(code) <= 23:
            most = 10 if int(code) == 21 else 40
            total += 4 * int(rows) * min(int(fields.split(", ")[14]), most)
    return total


@pytest.mark.slow
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("arch", ["80", "90", "100"])
def test_nvcc_keeps_every_product_in_registers(native, tmp_path, monkeypatch, arch, backward):
    monkeypatch.syspath_prepend(ROOT / "tools")
    build_native = importlib.import_module("build_native")
    try:
        nvcc = build_native.find_nvcc()
    except build_native.ToolchainError as error:
        pytest.skip(str(error))
    text = source(native, WIDTHS["sinusoid"], backward)
    # Of the standard library that the text brings for NVRTC, nvcc has its own.
    own = re.compile(r"#define (INFINITY|NAN) [^\n]*\n|namespace std \{.*?\n\}\n", re.S)
    path = tmp_path / "program.cu"
    headers = "".join(f"#include <{name}>\n" for name in ("cmath", "cstdint", "type_traits"))
    path.write_text(headers + own.sub("", text))
    command = [
        *nvcc, "-std=c++17", "-O3", f"-arch=sm_{arch}", "-Xptxas", "-v", "-keep", "-keep-dir",
        tmp_path, "-cubin", path, "-o", tmp_path / "program.cubin",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "0 bytes spill stores, 0 bytes spill loads" in result.stderr
    ptx = (tmp_path / "program.ptx").read_text()
    # Two shapes may share some code.
    assert len(re.findall(r"fma\.rn\.f32", ptx)) > multiply_adds(text) / 2 > 250
    assert not re.search(r"\bld\.f32", ptx)  # of memory that it does not know to be shared


def log_cosh(native):
    steps = [
        ("subtract", 0, 1, 0, 0.0, 0.0, 6), ("exp", 2, 0, 0, 0.0, 0.0, 6),
        ("negative", 2, 0, 0, 0.0, 0.0, 6), ("exp", 4, 0, 0, 0.0, 0.0, 6),
        ("add", 3, 5, 0, 0.0, 0.0, 6), ("log", 6, 0, 0, 0.0, 0.0, 6), ("sum", 7, 0, 0, 0.0, 0.0, 1),
    ]  # fmt: skip
    return native.Loss(6, 6, False, steps)


def test_a_program_too_long_for_constants_has_no_source(native):
    assert source(native, (1, 8, 1), True, steps=100) != ""
    assert source(native, (1, 8, 1), True, steps=1000) == ""


@pytest.mark.parametrize("real", ["float32", "float64"])
@pytest.mark.parametrize("version", ["12", "13"])
def test_nvrtc_compiles_what_is_printed(native, version, real):
    try:
        nvrtc._load(version)
    except RuntimeError as error:
        pytest.skip(str(error))
    text = source(native, WIDTHS["rl"], True, "tanh", real=real)
    assert nvrtc.compile_cuda(text, (9, 0), version).startswith(b"\x7fELF")
    text = source(native, WIDTHS["rl"], True, "tanh", real=real, loss=log_cosh(native))
    assert "carry_out<Do(29)" in text and "carry_out<Do(17)" not in text  # its gradient
    assert nvrtc.compile_cuda(text, (9, 0), version).startswith(b"\x7fELF")
    with pytest.raises(RuntimeError, match="(?s)COMPILATION.*expected"):
        nvrtc.compile_cuda("int", (9, 0), version)


def test_without_nvrtc_the_error_names_what_was_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"no NVRTC of CUDA 9: .*libnvrtc\.so\.9"):
        nvrtc.compile_cuda("", (9, 0), "9.2")
