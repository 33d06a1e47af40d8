import json
import os
from dataclasses import fields, replace

import pytest
import torch
from tiny_workloads import FIRST_ORDER, TINY

from fastmeta import bench
from fastmeta.backends import cpu
from fastmeta.bench import ceilings, encoders, memory, operations, prototypes, race, suite
from fastmeta.bench.catalogue import sinusoid
from fastmeta.bench.encoders import Episodes
from fastmeta.bench.gate import relative_error
from fastmeta.bench.operations import Contestant, Operation
from fastmeta.bench.prototypes import Prototypes
from fastmeta.bench.results import SCHEMA, Entry, Point
from fastmeta.bench.rivals import FASTMETA_DIRECT, RIVALS, Rival
from fastmeta.bench.workloads import make_problem


def break_down(problem):
    raise RuntimeError("no such op\nand a long trace")


RIVALS_HERE = {
    "loop": RIVALS["loop"],
    "bmm": RIVALS["bmm"],
    "first-order": FIRST_ORDER,
    "broken": Rival("broken", "breaks", break_down),
    "absent": Rival("absent", "is not installed", break_down, lambda workload: "not installed"),
}


OPERATIONS_HERE = {
    product: Operation(product, product, tasks=3, samples=2, inputs=2, outputs=4, size=5)
    for product in ("forward", "input", "weight")
}


EPISODES_HERE = {
    name: Episodes(name, 2, 3, 1, 2, filters=4, channels=1, size=16, trains=name == "train")
    for name in ("train", "judge")
}


@pytest.fixture(autouse=True)
def small_suite(monkeypatch):
    monkeypatch.setattr(suite, "WORKLOADS", TINY)
    monkeypatch.setattr(suite, "RIVALS", RIVALS_HERE)
    monkeypatch.setattr(suite, "FAMILIES", {"family": ["head", "deep-head"]})
    monkeypatch.setattr(operations, "OPERATIONS", OPERATIONS_HERE)
    monkeypatch.setattr(encoders, "OPERATIONS", EPISODES_HERE)
    monkeypatch.setattr(suite, "MEMORY", ())  # it takes processes of its own
    monkeypatch.setattr(suite, "SMALL", ("relu", "head"))
    monkeypatch.setattr(suite, "USUAL", ("relu", "conv"))
    monkeypatch.setattr(ceilings, "SIZE", 64)
    monkeypatch.setattr(ceilings, "COPIED_BYTES", 1 << 16)


def run(workloads=("relu",), rivals=None, **options):
    return bench.run(
        workloads, rivals, quick=True, seconds=0.01, progress=lambda line: None, **options
    )


@pytest.fixture
def results():
    return run()


def entries(results, point=0):
    return {entry["name"]: entry for entry in results["points"][point]["entries"]}


def test_results_are_complete_and_go_through_json(results, tmp_path):
    assert set(results) == {
        "schema", "machine", "settings", "ceilings", "points", "operations", "memory_in_steps",
        "notes",
    }  # fmt: skip
    assert results["schema"] == SCHEMA
    assert {"device", "cpu", "threads", "versions", "commit", "date"} <= set(results["machine"])
    assert set(results["points"][0]) == {field.name for field in fields(Point)}
    assert set(entries(results)["loop"]) == {field.name for field in fields(Entry)}
    bench.write_json(results, tmp_path / "results.json")
    assert json.dumps(bench.read_json(tmp_path / "results.json")) == json.dumps(results)


def test_each_entry_says_how_it_went(results):
    status = {name: entry["status"] for name, entry in entries(results).items()}
    assert status == {
        "fastmeta": "timed",
        "fastmeta-direct": "timed" if cpu.unavailable() is None else "skipped",
        "loop": "timed",
        "bmm": "timed",
        "first-order": "wrong",
        "broken": "failed",
        "absent": "skipped",
    }


def test_what_is_wrong_is_not_timed_but_its_error_is_reported(results):
    wrong = entries(results)["first-order"]
    assert wrong["median_s"] is None and wrong["times_fastmeta"] is None
    assert wrong["gradient_error"] > 1e-3 and "meta-gradient" in wrong["reason"]
    assert "wrong: the meta-gradient" in bench.format_table(results)


def test_what_breaks_or_is_absent_says_why(results):
    assert entries(results)["broken"]["reason"] == "RuntimeError: no such op"
    assert entries(results)["absent"]["reason"] == "not installed"


def test_ratios_follow_from_the_times(results):
    found, point = entries(results), results["points"][0]
    ours, loop = found["fastmeta"], found["loop"]
    assert ours["times_fastmeta"] == 1
    assert loop["times_fastmeta"] == pytest.approx(loop["median_s"] / ours["median_s"])
    rate = point["useful_flops"] / ours["median_s"]
    assert ours["share_of_mm"] == pytest.approx(rate / results["ceilings"]["mm_flops_per_s"])
    best = min(("loop", "bmm"), key=lambda name: found[name]["median_s"])
    assert point["best_rival"] == best
    assert point["times_best_rival"] == found[best]["times_fastmeta"]


@pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")
def test_the_direct_way_is_measured_beside_but_where_autograd_does_it_anyway(monkeypatch):
    asked = []
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: (asked.append(1), backward(loss)))
    FASTMETA_DIRECT.build(make_problem(TINY["relu"]))()
    assert not asked
    results = run(("relu", "head"), rivals=["loop"])
    relu, head = (entries(results, point)["fastmeta-direct"] for point in range(2))
    assert relu["gradient_error"] == entries(results)["fastmeta"]["gradient_error"] < 1e-5
    assert head["status"] == "skipped" and "leaves it to autograd" in head["reason"]
    rows = [line.split() for line in bench.markdown(results).splitlines()]
    assert next(row for row in rows if row[1:2] == ["head"])[-6:] == [*"-|-|-|"]


def test_the_direct_way_is_no_rival_and_no_ratio_is_to_it():
    timed = [
        Entry("fastmeta", "", "timed", median_s=4.0),
        Entry("fastmeta-direct", "", "timed", median_s=1.0),
        Entry("loop", "", "timed", median_s=30.0),
    ]
    best = ceilings.Ceilings(1.0, 1.0)
    point = Point(TINY["relu"], "resident", 1, 1, best, timed)
    race.derive(point, best)
    assert point.best_rival == "loop" and point.times_best_rival == 7.5
    assert [entry.times_fastmeta for entry in timed] == [1.0, 0.25, 7.5]


def test_a_long_loop_is_timed_on_a_part_and_says_so(monkeypatch):
    monkeypatch.setattr(suite, "WORKLOADS", {"relu": replace(TINY["relu"], tasks=40)})
    monkeypatch.setattr(race, "PART", 4)
    monkeypatch.setattr(suite, "QUICK_LONGEST_STEP_S", 1e-6)
    results = run(rivals=["loop", "bmm"])
    loop, batched = entries(results)["loop"], entries(results)["bmm"]
    assert loop["extrapolated"] and loop["measured_tasks"] == 4
    assert not batched["extrapolated"] and batched["measured_tasks"] == 40
    assert any("extrapolated" in note and "loop" in note for note in results["notes"])
    assert "loop*" in bench.format_table(results)


def test_a_full_run_measures_memory_or_says_why_not(monkeypatch):
    hidden = replace(RIVALS["bmm"], hides_memory="it hides it")
    monkeypatch.setattr(suite, "RIVALS", {"loop": RIVALS["loop"], "bmm": hidden})
    sizes = {"fastmeta": 5_000_000, "fastmeta-direct": 4_000_000}

    def peak_bytes(workload, name, threads):
        if name not in sizes:
            raise RuntimeError("no /proc")
        return sizes[name]

    monkeypatch.setattr(race, "peak_bytes", peak_bytes)
    found = bench.run(["relu"], None, False, 0.01, progress=lambda line: None)
    memory = {name: (e["peak_bytes"], e["memory_reason"]) for name, e in entries(found).items()}
    direct = memory.pop("fastmeta-direct")
    assert direct == ((4_000_000, None) if cpu.unavailable() is None else (None, None))
    assert memory == {
        "fastmeta": (5_000_000, None),
        "loop": (None, "no /proc"),
        "bmm": (None, "it hides it"),
    }


def test_each_workload_is_told_when_it_is_done():
    told = []
    bench.run(["relu", "head"], ["loop"], True, 0.01, progress=told.append)
    done = [line for line in told if line.endswith(" ms")]
    assert [line.split(":")[0] for line in done] == ["relu", "head"]
    assert all("fastmeta " in line and "loop " in line for line in done)


@pytest.mark.parametrize(("at_50", "flat"), [(90e6, True), (200e6, False)])
def test_memory_in_inner_steps(monkeypatch, at_50, flat):
    peaks = {5: 11e6, 50: at_50}
    monkeypatch.setattr(memory, "peak_bytes", lambda workload, *_: peaks[workload.steps])
    found = memory.memory_in_steps(sinusoid(tasks=256, steps=5), threads=1)
    weights = 256 * (40 + 40 + 1600 + 40 + 40 + 1) * 4 * 50
    assert found["flat"] is flat
    assert found["limit_bytes"] == pytest.approx(1.3 * 11e6 + weights)
    assert found["points"][1] == {
        "steps": 50, "peak_bytes": at_50, "fast_weight_bytes": weights,
    }  # fmt: skip


def test_memory_that_cannot_be_measured_loses_no_results(monkeypatch):
    def peak_bytes(*_):
        raise RuntimeError("no /proc")

    monkeypatch.setattr(memory, "peak_bytes", peak_bytes)
    monkeypatch.setattr(suite, "MEMORY", (TINY["relu"],))
    monkeypatch.setattr(suite, "RIVALS", {})
    found = run()
    reason = {"workload": "relu", "reason": "no /proc"}
    assert found["points"] and found["memory_in_steps"] == [reason]
    assert "was not measured: no /proc" in bench.format_table(found)


def test_memory_is_measured_for_the_families_that_were(monkeypatch):
    monkeypatch.setattr(suite, "MEMORY", (TINY["relu"], TINY["conv"]))
    monkeypatch.setattr(suite, "memory_in_steps", lambda workload, *_: workload.name)
    assert run(("tanh",))["memory_in_steps"] == []
    assert run(("relu",))["memory_in_steps"] == ["relu"]


def test_a_quick_run_measures_the_small_workloads(monkeypatch):
    monkeypatch.setattr(suite, "RIVALS", {"loop": RIVALS["loop"]})
    results = run(workloads=None)
    assert [point["workload"]["name"] for point in results["points"]] == ["relu", "head"]
    assert results["operations"] == []


def test_a_quick_run_leaves_out_what_compiles_unless_it_is_asked_for(monkeypatch):
    compiled = replace(RIVALS["loop"], name="compiled", compiles=lambda w: w.name == "head")
    monkeypatch.setattr(suite, "RIVALS", {"compiled": compiled})
    relu, head = (entries(run(("relu", "head")), point)["compiled"] for point in range(2))
    assert relu["status"] == "timed"
    assert head["status"] == "skipped" and "compiles" in head["reason"]
    assert entries(run(("head",), rivals=["compiled"]))["compiled"]["status"] == "timed"


def test_a_full_run_measures_the_usual_workloads_and_all_operations(monkeypatch):
    small = Prototypes("few", tasks=2, classes=3, shots=1, queries=2, features=4)
    monkeypatch.setattr(prototypes, "OPERATIONS", {"few": small})
    monkeypatch.setattr(suite, "RIVALS", {})
    everyone, of_prototypes = operations.CONTESTANTS, prototypes.contestants
    of_encoders = encoders.CONTESTANTS

    def instant(contestants):  # what compiles is measured in tests of its own
        return tuple(one for one in contestants if not one.compiles)

    monkeypatch.setattr(operations, "CONTESTANTS", instant(everyone))
    monkeypatch.setattr(encoders, "CONTESTANTS", instant(of_encoders))
    monkeypatch.setattr(prototypes, "contestants", lambda *of: instant(of_prototypes(*of)))
    monkeypatch.setattr(race, "peak_bytes", lambda *_: 1)
    results = bench.run(None, None, False, 0.01, progress=lambda line: None)
    assert [point["workload"]["name"] for point in results["points"]] == ["relu", "conv"]
    names = [point["workload"]["name"] for point in results["operations"]]
    assert names == [*OPERATIONS_HERE, "few", *EPISODES_HERE]


def test_a_family_stands_for_its_workloads_and_none_is_measured_twice():
    results = run(("relu", "family", "deep-head"), rivals=[])
    assert [p["workload"]["name"] for p in results["points"]] == ["relu", "head", "deep-head"]


def test_operations_are_gated_and_timed(monkeypatch, tmp_path):
    wrong = Contestant("wrong", "adds one", lambda o, arrays: lambda: arrays.grad + 1)
    monkeypatch.setattr(operations, "CONTESTANTS", (*operations.CONTESTANTS, wrong))
    results = run(("conv2d",))
    assert results["points"] == []
    for point in results["operations"]:
        found = {entry["name"]: entry for entry in point["entries"]}
        assert found.pop("wrong")["status"] == "wrong"
        assert {entry["status"] for entry in found.values()} == {"timed"}
        assert point["useful_flops"] == 2 * 3 * 2 * 25 * 9 * 2 * 4
        ratio = found["grouped"]["median_s"] / found["fastmeta"]["median_s"]
        assert found["grouped"]["times_fastmeta"] == pytest.approx(ratio)
    bench.write_json(results, tmp_path / "results.json")
    for text in (bench.format_table, bench.markdown):
        assert "weight" in text(results) and "the result is off by" in text(results)


@pytest.mark.parametrize("operation", OPERATIONS_HERE.values(), ids=list(OPERATIONS_HERE))
def test_an_operation_of_other_tasks_or_layout_is_caught(operation):
    arrays = operations.make_arrays(operation)
    exact = operations.exact_result(operation, arrays)
    rolled = arrays._replace(weight=arrays.weight.roll(1, 0), grad=arrays.grad.roll(1, 0))
    for contestant in operations.CONTESTANTS:
        for drawn, right in ((arrays, True), (rolled, False)):
            result = contestant.by_task(operation, contestant.build(operation, drawn)())
            assert (relative_error(list(result), exact) < 1e-5) is right


@pytest.mark.parametrize("name", EPISODES_HERE)
def test_encoders_are_gated_and_timed(monkeypatch, name):
    def other(point, arrays):
        return encoders._plain(point, arrays._replace(query_y=arrays.query_y.flip(1)))

    wrong = encoders.Contestant("wrong", "with other labels", other)
    instant = [one for one in encoders.CONTESTANTS if not one.compiles]
    monkeypatch.setattr(encoders, "CONTESTANTS", (*instant, wrong))
    (point,) = run((name,))["operations"]
    found = {entry["name"]: entry["status"] for entry in point["entries"]}
    assert found.pop("wrong") == "wrong"
    assert set(found) == {"fastmeta", "pytorch", "channels-last"}
    assert set(found.values()) == {"timed"}


@pytest.mark.parametrize(
    "arguments", [{"workloads": ["reluu"]}, {"rivals": ["lop"]}], ids=["workload", "rival"]
)
def test_unknown_names_are_refused_with_the_known_ones(arguments):
    with pytest.raises(ValueError, match=r"unknown \w+ (reluu|lop); there are .*(relu|loop)"):
        run(**arguments)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no processor affinity here")
def test_cores_threads_and_environment_are_given_back():
    before = (os.sched_getaffinity(0), torch.get_num_threads(), dict(os.environ))
    run(rivals=["loop"])
    assert (os.sched_getaffinity(0), torch.get_num_threads(), dict(os.environ)) == before


def test_other_files_are_not_read_as_results(tmp_path):
    path = tmp_path / "other.json"
    path.write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="schema"):
        bench.read_json(path)


def test_ctrl_c_loses_no_results(monkeypatch):
    measure = suite._measure

    def interrupted(workload, *more):
        if workload.name == TINY["head"].name:
            raise KeyboardInterrupt
        return measure(workload, *more)

    monkeypatch.setattr(suite, "_measure", interrupted)
    with pytest.raises(bench.Interrupted) as stop:
        run(("relu", "head"))
    results = stop.value.results
    assert [entry["workload"]["name"] for entry in results["points"]] == [TINY["relu"].name]
    assert results["notes"][-1] == "Interrupted: 1 of 2 workloads."
    assert "relu" in bench.format_table(results)
    with pytest.raises(KeyboardInterrupt) as stop:
        run(("head", "relu"))
    assert not isinstance(stop.value, bench.Interrupted)
