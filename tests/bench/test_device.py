"""What is measured on a GPU, on stand-ins for one, and what a GPU-only rival says on a CPU."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from tiny_workloads import TINY

from fastmeta import bench
from fastmeta.backends.device import find_device
from fastmeta.bench import (
    ceilings,
    device,
    encoders,
    machine,
    operations,
    prototypes,
    race,
    suite,
)
from fastmeta.bench.catalogue import LARGE, ON_GPU, USUAL, WORKLOADS
from fastmeta.bench.device import CPU, count_work, ieee_products, peak_memory, work_of
from fastmeta.bench.results import Entry, Point
from fastmeta.bench.rivals import FASTMETA, FASTMETA_GRAPH, RIVALS, cuda_graph
from fastmeta.bench.tables import format_table, markdown, summary
from fastmeta.bench.timing import measure

CUDA = torch.autograd.DeviceType.CUDA
HOST = torch.autograd.DeviceType.CPU
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


def event(kind, name, microseconds=0.0):
    span = SimpleNamespace(elapsed_us=lambda: microseconds)
    return SimpleNamespace(device_type=kind, name=name, time_range=span)


def test_launches_and_kernels_are_counted_apart():
    events = [
        event(HOST, "aten::mm"),
        event(HOST, "cudaLaunchKernel"),
        event(HOST, "cudaLaunchKernelExC"),
        event(HOST, "cudaGraphLaunch"),
        event(HOST, "cudaMemcpyAsync"),
        event(HOST, "cudaDeviceSynchronize"),
        event(CUDA, "gemm", 3.0),
        event(CUDA, "elementwise", 1.5),
        event(CUDA, "Memcpy HtoD (Pageable -> Device)", 9.0),
    ]
    assert count_work(events) == (4, 2, pytest.approx(4.5e-6))


def test_a_cpu_has_neither_kernels_nor_memory_of_its_own():
    assert work_of(lambda: None, CPU) is None
    with peak_memory(CPU) as peak:
        torch.ones(10)
    assert peak.bytes is None


def test_the_clock_stops_when_the_device_is_done():
    calls = []
    measure({"step": lambda: calls.append("step")}, 1e-4, lambda: calls.append("wait"))
    assert calls[0] == "wait" and calls[-1] == "wait"
    ends = [i for i, call in enumerate(calls) if call == "wait"]
    assert all(b - a > 1 for a, b in zip(ends[::2], ends[1::2], strict=True))


def test_tf32_is_off_inside_and_as_before_outside():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        with ieee_products():
            assert not torch.backends.cudnn.allow_tf32
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("name", ["vmap-forward-graph", "bmm-graph", "vmap-reduce-overhead"])
def test_graphs_need_a_gpu(name):
    assert RIVALS[name].why_not_on(CPU) == "CUDA graphs need a GPU"
    assert RIVALS[name].why_not_on(torch.device("cuda")) is None


def test_what_a_gpu_measures_is_there_and_a_cpu_is_spared():
    assert set(ON_GPU) <= set(WORKLOADS)
    assert not {workload.name for workload in LARGE} & set(USUAL)
    assert "sinusoid-T65536-K5" in bench.FAMILIES["large"]
    assert "sinusoid-T65536-K5" not in bench.FAMILIES["sinusoid"]


@pytest.fixture
def pretended_gpu(monkeypatch):
    """A run for "cuda:0" whose tensors stay on the CPU, with every call that needs a GPU faked."""
    gpu = torch.device("cuda:0")
    on_cpu = race.make_problem
    monkeypatch.setattr(race, "make_problem", lambda workload, device: on_cpu(workload))
    monkeypatch.setattr(race, "waits_for", lambda device: lambda: None)
    monkeypatch.setattr(race, "work_of", lambda step, device: device_work(step))
    monkeypatch.setattr(race, "peak_memory", lambda device: fixed_peak())
    monkeypatch.setattr(race, "engine", lambda workload, device: "resident")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    told = ceilings.Ceilings(1e12, 1e11, 2e12, 3e12)
    monkeypatch.setattr(race, "measure_ceilings", lambda device: told)
    judged = race.judge
    monkeypatch.setattr(race, "judge", lambda *arguments: judged(*arguments[:4]))
    replayed = race.replace(FASTMETA, name="fastmeta-graph")
    monkeypatch.setattr(race, "FASTMETA_GRAPH", replayed)
    monkeypatch.setattr(suite, "WORKLOADS", TINY)
    monkeypatch.setattr(suite, "FAMILIES", {})
    monkeypatch.setattr(operations, "OPERATIONS", {})
    monkeypatch.setattr(encoders, "OPERATIONS", {})
    monkeypatch.setattr(suite, "MEMORY", ())
    monkeypatch.setattr(machine, "describe_gpu", lambda device: {"gpu": "NVIDIA H200", "cuda": "1"})
    return gpu


def device_work(step):
    step()
    return device.Work(launches=2, kernels=7, busy_s=1e-5)


def fixed_peak():
    from contextlib import nullcontext

    return nullcontext(device.Peak(4096))


def test_a_run_on_a_gpu_reports_what_a_gpu_has(pretended_gpu, tmp_path):
    found = bench.run(
        ["relu"], ["loop", "bmm"], seconds=0.01, device=pretended_gpu, progress=lambda line: None
    )
    assert found["machine"]["device"] == "nvidia-h200"
    assert found["ceilings"]["bf16_flops_per_s"] == 3e12
    point = found["points"][0]
    entries = {entry["name"]: entry for entry in point["entries"]}
    assert list(entries) == ["fastmeta", "fastmeta-graph", "loop", "bmm"]
    assert all(entry["status"] == "timed" for entry in entries.values())
    assert {(e["launches"], e["kernels"], e["peak_bytes"]) for e in entries.values()} == {
        (2, 7, 4096)
    }
    fastest = min(entries["fastmeta"]["median_s"], entries["fastmeta-graph"]["median_s"])
    assert entries["loop"]["times_fastmeta"] == pytest.approx(entries["loop"]["median_s"] / fastest)
    assert point["best_rival"] in ("loop", "bmm")
    bench.write_json(found, tmp_path / "gpu.json")
    text = format_table(bench.read_json(tmp_path / "gpu.json"))
    assert "NVIDIA H200" in text and "makes 2 launches, 7 kernels run" in text
    assert "NVIDIA H200" in markdown(found)
    found["operations"] = found["points"]
    assert summary(found).count("relu") == 2


def test_a_quick_run_on_a_gpu_leaves_out_jax_too(pretended_gpu, monkeypatch):
    assert RIVALS["jax"].compiles_on_gpus
    slow = race.replace(RIVALS["loop"], name="slow", compiles_on_gpus=True)
    monkeypatch.setattr(suite, "RIVALS", {"slow": slow})
    options = dict(seconds=0.01, device=pretended_gpu, progress=lambda line: None)
    for chosen, status in ((None, "skipped"), (["slow"], "timed")):
        found = bench.run(["relu"], chosen, quick=True, **options)
        assert found["points"][0]["entries"][-1]["status"] == status


@pytest.mark.parametrize("k", [0, 2])
def test_on_a_gpu_prototypes_are_computed_in_graphs_too(pretended_gpu, monkeypatch, k):
    point = prototypes.Prototypes("few", 1, classes=5, shots=1, queries=2, features=4, k=k)
    everyone = [one.name for one in prototypes.contestants(point, pretended_gpu)]
    plain = [name for name in everyone if not name.endswith(("-graph", "-compiled"))]
    assert {name for name in everyone if name.endswith("-graph")} == {f"{n}-graph" for n in plain}
    assert not {name for name in everyone if "faiss" in name}
    assert not any(one.name.endswith("-graph") for one in prototypes.contestants(point, CPU))

    def refusing(step, device):
        step()
        raise RuntimeError("cannot be captured: it waits")

    arrays = prototypes.make_arrays(point)
    graph = prototypes.contestants(point, pretended_gpu)[everyone.index("fastmeta-graph")]
    exact = prototypes.exact_result(point, arrays)
    monkeypatch.setattr(prototypes, "capture", lambda step, device: step)
    assert graph.error(point, graph.build(point, arrays)(), exact) < 1e-5
    monkeypatch.setattr(prototypes, "capture", refusing)
    with pytest.raises(RuntimeError, match="it waits"):
        graph.build(point, arrays)


def test_a_call_before_leaves_nothing_on_the_leaves_of_another():
    point = prototypes.Prototypes("few", 1, classes=5, shots=1, queries=2, features=4)
    arrays = prototypes.make_arrays(point)
    for one in prototypes.contestants(point, CPU):
        if not one.compiles:
            one.build(point, arrays)()
            assert not arrays.support.requires_grad and arrays.support.grad is None


def test_why_a_capture_failed_is_told(monkeypatch):
    class Capture:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            raise RuntimeError("operation failed due to a previous error during capture")

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, fake in {
        "device": lambda device: nullcontext(), "stream": lambda stream: nullcontext(),
        "Stream": lambda: stream, "current_stream": lambda: stream, "CUDAGraph": lambda: None,
        "graph": lambda graph: Capture(),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    calls = []

    def step():
        calls.append(None)
        if len(calls) > cuda_graph.WARM_UP:
            raise RuntimeError("it waits for the GPU")

    with pytest.raises(RuntimeError, match="cannot be captured: it waits for the GPU"):
        cuda_graph.capture(step, torch.device("cuda:0"))


def test_our_two_ways_are_not_each_others_rival():
    entries = [
        Entry(FASTMETA.name, "", "timed", median_s=4.0),
        Entry(FASTMETA_GRAPH.name, "", "timed", median_s=1.0),
        Entry("loop", "", "timed", median_s=30.0),
    ]
    best = ceilings.Ceilings(1.0, 1.0)
    point = Point(TINY["relu"], "resident", 1, 1, best, entries)
    race.derive(point, best)
    assert point.best_rival == "loop" and point.times_best_rival == 30.0
    assert [entry.times_fastmeta for entry in entries] == [4.0, 1.0, 30.0]


def test_devices_by_name():
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="must be .* not 'tpu'"):
        find_device("tpu")


@without_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_no_gpu_is_told_with_the_reason(name):
    with pytest.raises(ValueError, match=f'"{name}": (this PyTorch|PyTorch sees)'):
        find_device(name)


@without_gpu
def test_the_command_line_tells_it_in_a_line(capsys):
    from fastmeta.cli import main

    assert main(["bench", "--device", "cuda"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
