"""What nvcc says of the CUDA kernels, on machines that have it; no GPU is needed."""

import importlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Bytes a thread that a program's kernel may spill: loops over tasks and operations, not products.
MOST_SPILLED = 64
# The same of the kernel with losses of the user's own, which calls functions for them.
MOST_SPILLED_AROUND_CALLS = 512
# With 256 threads a block and two blocks an SM; a block of a cluster has one to itself.
MOST_REGISTERS = 128


@pytest.fixture
def build_native(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("build_native")


@pytest.fixture
def nvcc(build_native):
    try:
        return build_native.find_nvcc()
    except build_native.ToolchainError as error:
        pytest.skip(str(error))


def resources(report):
    """[(function, spilled bytes, registers or None)] of what ptxas -v said."""
    pattern = re.compile(
        r"Function properties for (\S+)\n.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
        r"(?:\n.*?Used (\d+) registers)?"
    )
    return [
        (name, int(stores) + int(loads), int(registers) if registers else None)
        for name, stores, loads, registers in pattern.findall(report)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["80", "90", "100"])
def test_products_do_not_spill_and_blocks_fit_an_sm(build_native, nvcc, tmp_path, arch):
    command = [
        *nvcc, *build_native.CUDA_FLAGS, f"-arch=sm_{arch}", "-Xptxas", "-v",
        "-DFASTMETA_REAL=float", f"-I{ROOT / 'csrc'}", "-cubin", str(ROOT / "csrc/cuda/launch.cu"),
        "-o", str(tmp_path / "launch.cubin"),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = resources(result.stderr)
    products = [entry for entry in found if "tiles" in entry[0]]
    assert len(products) >= 3 or arch == "80"  # which makes them part of the kernels
    assert all(spilled == 0 for _, spilled, _ in products)
    own_losses = [spilled for name, spilled, _ in found if "run_kernelIfLb1" in name]
    assert len(own_losses) == 1 and own_losses[0] <= MOST_SPILLED_AROUND_CALLS
    others = [spilled for name, spilled, _ in found if "run_kernelIfLb1" not in name]
    assert max(others) <= MOST_SPILLED
    kernels = [entry for entry in found if "kernel" in entry[0]]
    of_blocks = [used for name, _, used in kernels if "run" in name]  # one of them with own losses
    of_clusters = [spilled for name, spilled, _ in kernels if "Cluster" in name]
    assert len(of_blocks) == 3 and all(used <= MOST_REGISTERS for used in of_blocks)
    assert len(of_clusters) == 3 and not any(of_clusters)


def test_without_nvcc_the_reason_is_recorded(build_native, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("FASTMETA_CUDA", raising=False)
    stale = tmp_path / build_native.module_name("_cuda")
    stale.write_bytes(b"of an earlier build")
    outcome = build_native.build_cuda(tmp_path, "all")
    assert outcome["cuda"] is False and "nvcc not found" in outcome["cuda_error"]
    assert not stale.exists()


def test_an_nvcc_that_fails_breaks_only_what_demands_it(build_native, tmp_path, monkeypatch):
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'error: broken on purpose' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("FASTMETA_CUDA", "auto")
    monkeypatch.setattr(build_native, "CUDA_BUILD", tmp_path / "build")
    assert "broken on purpose" in build_native.build_cuda(tmp_path, "all")["cuda_error"]
    monkeypatch.setenv("FASTMETA_CUDA", "1")
    with pytest.raises(build_native.BuildError, match="broken on purpose"):
        build_native.build_cuda(tmp_path, "all")
    monkeypatch.setenv("FASTMETA_CUDA", "0")
    assert "FASTMETA_CUDA=0" in build_native.build_cuda(tmp_path, "all")["cuda_error"]


@pytest.fixture
def machines(build_native):
    return importlib.import_module("machines")


def test_architectures_by_name(machines, monkeypatch):
    monkeypatch.setenv("FASTMETA_CUDA_ARCHS", "")
    flags = machines.arch_flags(machines.cuda_archs("all"))
    assert "arch=compute_80,code=sm_80" in flags
    assert "arch=compute_100,code=[sm_100,compute_100]" in flags
    monkeypatch.setenv("FASTMETA_CUDA_ARCHS", "90")
    assert machines.cuda_archs("all") == ["90"]
    monkeypatch.setenv("FASTMETA_CUDA_ARCHS", "90,75")
    with pytest.raises(SystemExit, match="75"):
        machines.cuda_archs("all")


def with_gpus(monkeypatch, folder, *capabilities, status=0):
    """Put an nvidia-smi that tells of these GPUs, and ends so, in place of all programs."""
    program = folder / "nvidia-smi"
    lines = "".join(f"echo {capability}\n" for capability in capabilities)
    program.write_text(f"#!/bin/sh\n{lines}exit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize(
    "capabilities, archs",
    [("9.0", "90"), ("8.6", "80"), ("9.0 8.0 9.0", "80 90"), ("7.5 10.3", "100"), ("12.0", "100")],
)
def test_architectures_of_the_gpus_here(machines, tmp_path, monkeypatch, capabilities, archs):
    with_gpus(monkeypatch, tmp_path, *capabilities.split())
    monkeypatch.delenv("FASTMETA_CUDA_ARCHS", raising=False)
    assert machines.cuda_archs("here") == archs.split()


@pytest.mark.parametrize("capabilities", ["", "7.5"])
def test_without_a_gpu_for_it_a_checkout_compiles_no_cuda(
    build_native, machines, tmp_path, monkeypatch, capabilities
):
    with_gpus(monkeypatch, tmp_path, *capabilities.split())
    monkeypatch.setattr(machines, "NVIDIA_DRIVER", tmp_path / "none")
    monkeypatch.delenv("FASTMETA_CUDA_ARCHS", raising=False)
    monkeypatch.setenv("FASTMETA_CUDA", "auto")
    (tmp_path / "bin").mkdir()
    shutil.copy(tmp_path / "nvidia-smi", tmp_path / "bin/nvcc")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    outcome = build_native.build_cuda(tmp_path, "here")
    assert outcome["cuda"] is False and "FASTMETA_CUDA_ARCHS=all" in outcome["cuda_error"]


def test_gpus_that_do_not_tell_what_they_are_get_all_architectures(machines, tmp_path, monkeypatch):
    with_gpus(monkeypatch, tmp_path, status=9)
    monkeypatch.delenv("FASTMETA_CUDA_ARCHS", raising=False)
    monkeypatch.setattr(machines, "NVIDIA_DRIVER", tmp_path)
    assert machines.cuda_archs("here") == list(machines.CUDA_ARCHS)


def test_ptxas_report_is_read(build_native):
    report = (
        "ptxas info : Function properties for a_kernel\n"
        "    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n"
        "ptxas info : Used 40 registers, used 1 barriers\n"
        "ptxas info : Function properties for tiles\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
    )
    assert resources(report) == [("a_kernel", 16, 40), ("tiles", 0, None)]


def test_nvcc_is_found_beside_cuda_home(build_native, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    assert build_native.find_nvcc() == [str(nvcc)]
