import json

from fastmeta import bench


def test_names_and_results_are_passed_on(fastmeta, tmp_path, monkeypatch):
    asked = []

    def run(workloads, rivals, quick, seconds, *, device, time_limit):
        asked.append((workloads, rivals, quick, seconds, str(device), time_limit))
        return {"points": []}

    workload, rival = next(iter(bench.WORKLOADS)), next(iter(bench.RIVALS))
    monkeypatch.setattr(bench, "run", run)
    monkeypatch.setattr(bench, "format_table", lambda results: f"table of {results}")
    monkeypatch.setattr(bench, "write_json", lambda results, path: path.write_text("{}"))
    line = ["bench", "--quick", "--workload", workload, "--rival", rival, "--json", "new/b.json"]
    status, out, _ = fastmeta(*line, "--seconds", "0.5", "--time-limit", "9")
    assert status == 0 and "table of {'points': []}" in out
    assert asked == [([workload], [rival], True, 0.5, "cpu", 9.0)]
    assert json.loads((tmp_path / "new/b.json").read_text()) == {}


def test_unknown_names_are_told_with_those_like_them(fastmeta):
    for option, close in (("--workload", "sinusoid-T25-K5"), ("--rival", "torchopt")):
        status, _, err = fastmeta("bench", option, close.upper() + "x")
        assert status == 2 and err.count("\n") == 1
        assert f"did you mean {close}" in err and "--list" in err and len(err) < 250
        assert "did you mean" not in fastmeta("bench", option, "!")[2]


def test_the_list_has_all_names(fastmeta):
    status, out, _ = fastmeta("bench", "--list")
    assert status == 0
    assert all(name in out for name in (*bench.selectable(), *bench.RIVALS))


def test_fastmeta_as_its_own_rival_runs_alone(fastmeta, monkeypatch):
    asked = []
    monkeypatch.setattr(bench, "run", lambda _, rivals, *__, **___: asked.append(rivals))
    monkeypatch.setattr(bench, "format_table", str)
    for names in (["fastmeta"], ["fastmeta", "loop"], ["loop"]):
        assert fastmeta("bench", "--rival", *names)[0] == 0
    assert asked == [[], ["loop"], ["loop"]]


def test_ctrl_c_keeps_what_was_measured(fastmeta, tmp_path, monkeypatch):
    def run(*_, **__):
        raise bench.Interrupted({"points": [1]})

    monkeypatch.setattr(bench, "run", run)
    monkeypatch.setattr(bench, "format_table", lambda results: f"table of {results}")
    status, out, _ = fastmeta("bench", "--json", "b.json")
    assert status == 130 and "table of {'points': [1]}" in out
    assert json.loads((tmp_path / "b.json").read_text()) == {"points": [1]}
