"""Every kernel compiled for every GPU it is meant for: what the compiler says of it.

In a process of its own, since this one may run kernels in the interpreter.
"""

import json
import os
import subprocess
import sys

import pytest

from fastmeta.kernels.aot import all_cases

CASES = {case.name: case for case in all_cases()}
AOT = [sys.executable, "-m", "fastmeta.kernels.aot"]
# Of a block, in bytes: what the card has, for sm_80 a little less.
SHARED = {80: 160 * 1024, 90: 227 * 1024, 100: 227 * 1024}


@pytest.fixture(scope="module")
def reports(request):
    """By name and target; only those that are asked for are compiled."""
    here = [item for item in request.session.items if item.fspath == request.fspath]
    params = [item.callspec.params for item in here if is_case(item)]
    jobs = [(p[key], p["target"]) for p in params for key in ("name", "other") if key in p]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    run = subprocess.run(
        [*AOT, "--json", "--jobs", json.dumps([*dict.fromkeys(jobs)])],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    found = [json.loads(line) for line in run.stdout.splitlines()]
    return {(report["name"], report["target"]): report for report in found}


def is_case(item):
    return hasattr(item, "callspec") and "target" in item.callspec.params


def test_names_are_unique():
    assert len(CASES) == len(all_cases())


@pytest.mark.parametrize(
    "name, target", [(name, target) for name, case in CASES.items() for target in case.targets]
)
def test_compiles_within_its_limits(reports, name, target):
    case, report = CASES[name], reports[name, target]
    assert not report["error"], report["error"]
    assert report["spilled_bytes"] <= case.spilled_bytes, report
    assert report["shared_bytes"] <= SHARED[target], report
    if case.tensor_cores is not None:
        assert bool(report["matrix_instructions"]) == case.tensor_cores, report
    if case.warpgroups and target == 90:
        assert any(kind.startswith("HGMMA") for kind in report["matrix_instructions"]), report


SAME_SUMS = [
    (name, name[:-3] + "[2]") for name in CASES if "by bounds" in name and name.endswith("[1]")
]
SAME_SUMS.append(("nearest 10", "nearest 10 by bounds, sqeuclidean, 1024 x 64 [1]"))


@pytest.mark.parametrize(
    "name, other, target",
    [(name, other, target) for name, other in SAME_SUMS for target in CASES[name].targets],
)
def test_distances_are_summed_alike_wherever_they_are_exact(reports, name, other, target):
    """So that a search by bounds finds the exact search's results to the last bit."""
    layout, same = (reports[case, target]["pair_sums"] for case in (name, other))
    assert len(layout) == 1 and layout == same
