import copy
import re

import pytest

from fastmeta.bench.tables import format_table, markdown


def entry(name, status="timed", **values):
    timed = {
        "measured_tasks": 64, "first_call_s": 1.5, "loss_error": 1e-8, "gradient_error": 2e-7,
        "median_s": 2e-3, "low_s": 1.9e-3, "high_s": 2.2e-3, "useful_flops_per_s": 5e9,
        "share_of_mm": 0.05, "times_fastmeta": 1.0, "peak_bytes": 3_000_000,
    }  # fmt: skip
    common = {"name": name, "status": status, "reason": None, "extrapolated": False}
    values = (timed if status == "timed" else dict.fromkeys(timed)) | values
    return {**common, **values}


POINT = {
    "workload": {"name": "rl"},
    "engine": "resident",
    "useful_flops": 10_000_000,
    "data_bytes": 1000,
    "entries": [
        entry("fastmeta"),
        entry("loop", median_s=0.5, times_fastmeta=250.0, extrapolated=True),
        entry("jax", median_s=4e-3, times_fastmeta=2.0, peak_bytes=None),
        entry("higher", "wrong", reason="the meta-gradient of 0.bias is off by 3.0e-01"),
    ],
    "roofline": {
        "native_share": 0.75, "autograd_s": 2e-4, "one_thread_s": 3.8e-3, "arithmetic_s": 1e-4,
        "data_s": 1e-8,
    },
    "best_rival": "jax",
    "times_best_rival": 2.0,
}  # fmt: skip
RESULTS = {
    "machine": {
        "cpu": "Some CPU", "threads": 2, "cores": 4, "cpu_capability": "AVX2",
        "native_kernels": "avx2", "versions": {"torch": "2.13", "jax": None}, "commit": None,
        "date": "2026-01-01",
    },
    "ceilings": {"mm_flops_per_s": 1e11, "copy_bytes_per_s": 1e10},
    "points": [POINT],
    "operations": [],
    "memory_in_steps": [],
    "notes": ["a note"],
}  # fmt: skip


@pytest.fixture
def results():
    return copy.deepcopy(RESULTS)


def cells(text, name):
    return next(line for line in text.splitlines() if line.strip().startswith(name)).split()


def test_text_rows(results):
    text = format_table(results)
    assert cells(text, "fastmeta ") == [
        "fastmeta", "2", "1.9..2.2", "1.00", "5", "5.0", "2e-07", "3", "1.5",
    ]  # fmt: skip
    assert cells(text, "loop*")[1:4] == ["500", "1.9..2.2", "250"]
    assert cells(text, "jax")[-2] == "-"
    assert "higher    wrong: the meta-gradient of 0.bias is off by 3.0e-01" in text


def test_text_tells_limits_and_where_the_time_went(results):
    text = format_table(results)
    assert "10 useful MFLOP: at least 0.1 ms at the rate of torch.mm, <0.001 ms" in text
    assert "resident engine: 5 % of the arithmetic limit" in text
    assert "75 % of the time in native kernels, 0.5 ms outside" in text
    assert "PyTorch's autograd alone takes 0.2 ms" in text
    assert "1.90 times as fast as on one thread" in text


def test_columns_line_up(results):
    rows = [line for line in format_table(results).splitlines() if line.startswith("  ")]
    ends = {len(row) for row in rows if "wrong" not in row}
    assert len(ends) == 1


def test_several_points_get_a_summary(results):
    results["points"] = [POINT, POINT]
    assert cells(format_table(results), "workload")[:3] == ["workload", "fastmeta", "ms"]
    assert "vs best rival" not in format_table(RESULTS)


def test_fastmeta_that_failed_is_shown_not_hidden(results):
    results["points"][0]["entries"][0] = entry("fastmeta", "failed", reason="it broke")
    for text in (format_table(results), markdown(results)):
        assert "failed: it broke" in text


def test_markdown(results):
    text = markdown(results)
    assert "| rl | 2 | 5 | 5 | 250* | 2.00 | jax |" in text
    assert "| workload | fastmeta | loop | jax |\n" in text
    assert "| rl | 2 | 500* | 4 |" in text
    assert "- higher wrong: the meta-gradient" in text and "- a note" in text
    assert "- rl: 10 useful MFLOP: at least 0.1 ms" in text
    tables = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    for table in tables:
        assert len({row.count("|") for row in table.splitlines()}) == 1


def test_memory_line(results):
    points = [
        {"steps": 5, "peak_bytes": 4e6, "fast_weight_bytes": 1e6},
        {"steps": 50, "peak_bytes": 2e7, "fast_weight_bytes": 9e6},
    ]
    of_sinusoid = {
        "workload": "sinusoid", "points": points, "limit_bytes": 14.2e6, "flat": False,
    }  # fmt: skip
    results["memory_in_steps"] = [of_sinusoid, {"workload": "conv", "reason": "no /proc"}]
    assert "conv was not measured: no /proc" in format_table(results)
    assert "K=50: 20 MB (fast weights of all tasks at once: 9 MB)" in format_table(results)
    assert "NOT flat" in markdown(results)


def test_operations(results):
    operation = {
        "workload": {"name": "conv2d"},
        "roofline": {"arithmetic_s": 0.0005, "data_s": 0.001},
        "entries": [
            entry("fastmeta"), entry("grouped", times_fastmeta=2.5), entry("per-task", "wrong",
            reason="the result is off by 1.0e+00"),
        ],
    }  # fmt: skip
    results["operations"] = [operation]
    assert cells(format_table(results), "conv2d") == ["conv2d", "2", "5", "5", "50", "2.50", "-"]
    assert "| conv2d | 2 | 5 | 5 | 50 | 2.50 | - |" in markdown(results)
    for text in (format_table(results), markdown(results)):
        assert "per-task wrong: the result is off by 1.0e+00" in text


def test_results_without_workloads_or_from_before_there_were_operations(results):
    del results["operations"]
    results["points"] = []
    for text in (format_table(results), markdown(results)):
        assert "a note" in text and "workload" not in text


DIRECT = entry("fastmeta-direct", median_s=1e-3, times_fastmeta=0.5)
DIRECT_HEADER = "| which | direct ms | direct vs loop | direct vs best rival |"


def test_the_direct_way_has_ratios_of_its_own_beside_those_of_fastmeta(results):
    results["points"][0]["entries"].insert(1, DIRECT)
    text = markdown(results)
    assert DIRECT_HEADER in text
    assert "| rl | 2 | 5 | 5 | 250* | 2.00 | jax | 1 | 500* | 4.00 |" in text
    assert "| workload | fastmeta | fastmeta-direct | loop | jax |\n" in text
    assert cells(format_table(results), "fastmeta-direct")[3] == "0.50"


def test_where_there_is_no_direct_way_the_rest_is_as_it_was(results):
    assert "direct" not in markdown(results)
    skipped = entry("fastmeta-direct", "skipped", reason="features are learned")
    other = copy.deepcopy(POINT)
    other["workload"]["name"] = "head"
    other["entries"].insert(1, skipped)
    results["points"].append(other)
    text = markdown(results)
    assert "| rl | 2 | 5 | 5 | 250* | 2.00 | jax | - | - | - |" in text
    assert "| head | 2 | 5 | 5 | 250* | 2.00 | jax | - | - | - |" in text
    results["points"][0]["entries"].insert(1, DIRECT)
    results["points"][0] |= {"best_rival": None, "times_best_rival": None}
    assert "| 250* | - | - | 1 | 500* | - |" in markdown(results)
