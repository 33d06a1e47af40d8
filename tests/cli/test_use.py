"""How the command line is used: help, errors of use, exit statuses."""

import subprocess
import sys

import pytest
import torch

import fastmeta as fm
from fastmeta.cli.options.algorithms import ALL_SETTINGS, CLASSIFIERS, SETTINGS


def test_help_does_not_wait_for_torch():
    code = """
import sys
from fastmeta.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    sys.exit("torch" in sys.modules or end.code)
"""
    for line in ("--version", "--help", "train omniglot --help", "train --what"):
        done = subprocess.run([sys.executable, "-c", code, *line.split()], capture_output=True)
        assert done.returncode == (2 if "what" in line else 0), line


def test_version_and_help(fastmeta):
    assert fastmeta("--version") == (0, f"fastmeta {fm.__version__}\n", "")
    status, out, _ = fastmeta("--help")
    assert status == 0
    for command in ("demo", "train", "evaluate", "doctor", "bench"):
        assert command in out
        assert fastmeta(command, "--help")[0] == 0
    for source in ("sinusoid", "table"):
        assert "--resume" in fastmeta("train", source, "--help")[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "COMMAND"),
        ("dance", "invalid choice: 'dance'"),
        ("train", "SOURCE"),
        ("train sinusoid --shots 0", "--shots: must be a whole number of at least 1, not '0'"),
        ("train sinusoid --lr nan", "--lr: must be a number above 0"),
        ("train sinusoid --weight-decay=-1", "--weight-decay: must be a number of at least 0"),
        ("train sinusoid --algorithm sgd", "invalid choice: 'sgd'"),
        ("train sinusoid --activation step", "activation must be one of relu"),
        ("train sinusoid --per-step-lr", "per_step_lr needs rates to learn"),
        ("train sinusoid --resume", "there is no checkpoint fastmeta-sinusoid.safetensors"),
        ("train sinusoid --checkpoint .", ". is a folder"),
        ("train sinusoid --plot p.exe", "p.exe is no picture: its name must end in one of"),
        ("train sinusoid --curve a --plot a", "two of these are the same file"),
        ("train sinusoid --algorithm reptile --inner-steps 1", "is joint training"),
        ("train sinusoid --schedule linear", "invalid choice: 'linear'"),
        ("train sinusoid --time-limit 0", "--time-limit: must be a number above 0"),
        ("train sinusoid --validate-every -1", "--validate-every: "),
        ("train table none.csv --task a --target b", "none.csv: No such file or directory"),
        ("train table none.csv --task a", "--target"),
        ("train table x --task a --target b --held-out 1", "--held-out: must lie between 0 and 1"),
        ("train table x --task a --target b --support-norm 0.5", "--support-norm: must be"),
        ("train table x --task a --target b --delimiter ab", "--delimiter: must be one character"),
        ("evaluate none.safetensors", "there is no checkpoint none.safetensors"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(fastmeta, line, message):
    status, out, err = fastmeta(*line.split())
    assert status == 2 and not out
    assert message in err and "error:" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "person", "--target", "x"], "no column 'person' (task)"),
        (["--task", "patient", "--target", "first_score", "--shots", "60"], "60 shots and one"),
        (
            ["--task", "x", "--target", "first_score", "--drop", "patient"],
            "but 5 shots and one query row need 6",
        ),
        (["--task", "patient", "--target", "constant"], "the target is 7.0 in every row"),
        (["--task", "visit_time", "--target", "patient"], "is not a number"),
    ],
)
def test_wrong_tables(fastmeta, clinic, options, message):
    status, _, err = fastmeta("train", "table", clinic, *options)
    assert status == 2 and message in err and err.count("\n") == 1


def test_a_bug_keeps_its_traceback(fastmeta, monkeypatch):
    def broken(_):
        raise ValueError("a bug")

    monkeypatch.setattr("fastmeta.cli.doctor.run", broken)
    with pytest.raises(ValueError, match="a bug"):
        fastmeta("doctor")


def test_doctor_tells_every_backend_and_reason(fastmeta, monkeypatch):
    found = {"reference": True, "cpu": "no such file"}
    monkeypatch.setattr(fm, "available_backends", lambda: found)
    status, out, _ = fastmeta("doctor")
    assert status == 0
    assert "reference  runs here" in out and "cpu        not available: no such file" in out
    for word in ("python", "torch", "processor", "threads", "build"):
        assert word in out


def test_doctor_reads_any_build_record(fastmeta, monkeypatch, tmp_path):
    from fastmeta.cli import doctor

    record = tmp_path / "_build_info.json"
    monkeypatch.setattr(doctor.fastmeta, "__file__", str(tmp_path / "__init__.py"))
    for content, expected in (
        (None, "no record"),
        ('{"native": false, "error": "no compiler\\nfound"}', "error      no compiler found"),
        ('{"native": true, "isas": ["avx2", "avx512"]}', "isas       avx2 avx512"),
        ("{", "cannot be read"),
        ("[1]", "cannot be read"),
    ):
        if content is not None:
            record.write_text(content)
        assert expected in fastmeta("doctor")[1]


def test_python_m_fastmeta_with_a_reader_that_goes_away():
    command = f"{sys.executable} -m fastmeta doctor | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("fastmeta")
    assert "Traceback" not in done.stderr and done.returncode in (0, 141)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    "line",
    [
        "train sinusoid --device cuda",
        "demo --device cuda:1",
        "train sinusoid --device tpu",
        "bench --device cuda",
    ],
)
def test_a_device_that_is_not_there_is_told_in_a_line(fastmeta, line):
    status, _, err = fastmeta(*line.split())
    assert status == 2 and err.count("\n") == 1 and "device" in err


def test_the_device_is_printed_and_no_part_of_the_run(fastmeta):
    status, out, _ = fastmeta(*"train sinusoid --steps 2 --hidden 4 --device cpu".split())
    assert status == 0 and "device    cpu" in out
    line = "train sinusoid --steps 3 --hidden 4 --resume --device auto".split()
    assert torch.cuda.is_available() or fastmeta(*line)[0] == 0


@pytest.mark.parametrize("algorithm", CLASSIFIERS)
def test_help_shows_the_defaults_that_apply(fastmeta, algorithm, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for source in ("omniglot", "vectors", "npz"):
        status, out, _ = fastmeta("train", source, "--algorithm", algorithm, "--help")
        assert status == 0 and "None" not in out and "False" not in out
        for name in ALL_SETTINGS:
            line = _line_of(out, "--" + name.replace("_", "-"))
            own = name in SETTINGS[algorithm]
            assert own != ("none, this --algorithm has no such option" in line), (name, line)
    if algorithm == "protonet":
        assert "default: sqeuclidean" in _line_of(out, "--metric")
    if algorithm == "metasgd":
        assert "(default: element)" in _line_of(out, "--learn-inner-lr")


def _line_of(text, option):
    """From where an option is explained to the next option."""
    begin = text.rindex(f"  {option}")
    return text[begin : text.find("\n  --", begin + 1)]


def test_no_help_says_none(fastmeta, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    commands = ("demo", "evaluate", "bench", "doctor")
    for command in (*commands, "train sinusoid", "train table", "train omniglot"):
        assert "None" not in fastmeta(*command.split(), "--help")[1]
    assert "(default: as --ways)" in fastmeta("train", "omniglot", "--help")[1]
    assert "(default: 40 40)" in fastmeta("train", "sinusoid", "--help")[1]


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("trian", "train"),
        ("train omniglt", "omniglot"),
        ("train omniglot --algorithm protnet", "protonet"),
        ("train omniglot --metric euclid", "euclidean"),
        ("train sinusoid --engine residnt", "resident"),
    ],
)
def test_misspelt_names_are_answered_with_the_right_one(fastmeta, line, meant):
    status, _, err = fastmeta(*line.split())
    assert status == 2 and f"did you mean {meant!r}?" in err and err.count("\n") == 1
