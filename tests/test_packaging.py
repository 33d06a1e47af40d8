"""The package as others get it: built, installed and imported from a folder that is not ours."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import fastmeta

ROOT = Path(__file__).resolve().parents[1]
REPORT = """
import json, fastmeta, fastmeta.kernels
try:
    import fastmeta._native as native
except ImportError:
    native = None
modules = (fastmeta, fastmeta.kernels, native)
print(json.dumps([module and module.__file__ for module in modules]))
"""

# The finder of an editable install would answer for what a wheel lacks.
WITHOUT_CHECKOUT = """
import sys
sys.meta_path = [f for f in sys.meta_path if "Editable" not in getattr(f, "__name__", "")]
"""

BUILT = Path(fastmeta.__file__).with_name("_build_info.json")
if not BUILT.exists():
    pytest.skip("fastmeta is not installed: make install", allow_module_level=True)
INFO = json.loads(BUILT.read_text())  # what the build of the package under test recorded


def run(*command, cwd, **environment):
    """Run `command` and return what it prints; its errors are the test's."""
    result = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def pip_wheel(source, folder, *options, **environment):
    """Build the wheel of `source` into `folder`; return its path."""
    command = (sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, *options, source)
    # nvcc takes minutes, every instruction set compiles the same sources, and what is built here is
    # imported and no more.
    quick = {"FASTMETA_CUDA": "0", "FASTMETA_ISAS": "portable", "CXXFLAGS": "-O0"}
    run(*command, cwd=folder, **quick, **environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


def import_from(wheel, folder):
    """Unpack `wheel`; return where the package, its kernels and its native module came from."""
    site = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    program = WITHOUT_CHECKOUT + REPORT
    files = json.loads(run(sys.executable, "-c", program, cwd=folder, PYTHONPATH=str(site)))
    return site, [Path(file) if file else None for file in files]


def python_files(folder, prefix=""):
    """Return the paths of the modules below `folder`, relative to it, below `prefix`."""
    return {Path(prefix, path.relative_to(folder)) for path in folder.rglob("*.py")}


def build_info(package):
    """Return what the build recorded in the folder `package`."""
    return json.loads((package / "_build_info.json").read_text())


@pytest.fixture
def build_native(monkeypatch):
    """The build script of the checkout as a module."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("build_native")


@pytest.fixture
def source(tmp_path):
    """A copy of the checkout: the files that git knows or would add."""
    copy = tmp_path / "source"
    listed = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


def test_installed_package_imports_from_any_folder(tmp_path):
    package, kernels, _ = json.loads(run(sys.executable, "-c", REPORT, cwd=tmp_path))
    assert Path(package) == Path(fastmeta.__file__)
    assert Path(kernels).is_relative_to(ROOT / "kernels")


def test_metadata():
    assert metadata.version("fastmeta") == "0.1.0"
    (script,) = metadata.entry_points(group="console_scripts", name="fastmeta")
    assert callable(script.load())
    assert Path(fastmeta.__file__).with_name("py.typed").exists()


def test_build_info_tells_what_was_built(tmp_path):
    _, _, native = json.loads(run(sys.executable, "-c", REPORT, cwd=tmp_path))
    assert INFO["native"] == (native is not None)
    if INFO["native"]:
        assert INFO["isas"] and INFO["compiler"]
    else:
        assert INFO["error"]


@pytest.fixture
def machines(build_native):
    return importlib.import_module("machines")


@pytest.fixture
def compiler(tmp_path):
    """A compiler that knows everything but AVX-512."""
    program = tmp_path / "c++"
    program.write_text('#!/bin/sh\ncase "$*" in *avx512*) exit 1;; esac\n')
    program.chmod(0o755)
    return [str(program)]


def names(isas):
    return [isa.name for isa in isas]


def test_a_compiler_without_an_instruction_set_drops_that_variant(machines, compiler):
    assert names(machines.supported_isas(compiler)) == ["portable", "avx2"]


@pytest.mark.parametrize(
    "flags, here, runnable",
    [
        ("sse2", "portable", "portable"),
        ("sse2 avx2 fma", "avx2", "portable avx2"),
        ("avx2 fma avx512f avx512dq avx512bw avx512vl", "avx512", "portable avx2 avx512"),
    ],
)
def test_instruction_sets(machines, tmp_path, monkeypatch, flags, here, runnable):
    monkeypatch.setattr(machines, "supported_isas", lambda compiler: list(machines.ISAS))
    monkeypatch.setattr(machines, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.delenv("FASTMETA_ISAS", raising=False)
    assert names(machines.wanted_isas([], "here")) == [here]
    assert names(machines.wanted_isas([], "all")) == ["portable", "avx2", "avx512"]
    for wanted, found in [("runnable", runnable), ("avx512, portable", "portable avx512")]:
        monkeypatch.setenv("FASTMETA_ISAS", wanted)
        assert names(machines.wanted_isas([], "all")) == found.split()


def test_a_processor_that_does_not_tell_what_it_is_chooses_at_run_time(
    machines, compiler, tmp_path, monkeypatch
):
    monkeypatch.setattr(machines, "CPUINFO", tmp_path / "none")
    monkeypatch.delenv("FASTMETA_ISAS", raising=False)
    assert names(machines.wanted_isas(compiler, "here")) == ["portable", "avx2"]


def test_instruction_sets_that_cannot_be_had_are_named(machines, compiler, monkeypatch):
    monkeypatch.setenv("FASTMETA_ISAS", "avx512")
    with pytest.raises(machines.ToolchainError, match="avx512"):
        machines.wanted_isas(compiler, "here")
    monkeypatch.setenv("FASTMETA_ISAS", "avx1024")
    with pytest.raises(SystemExit, match="avx1024 not in portable"):
        machines.wanted_isas(compiler, "here")


def test_a_failed_build_leaves_no_stale_module(build_native, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    monkeypatch.setenv("FASTMETA_BUILD", "auto")
    stale = tmp_path / build_native.module_name()
    stale.write_bytes(b"of an earlier build")
    info = build_native.build(tmp_path, "here", tolerate=build_native.ToolchainError)
    assert not info["native"] and not stale.exists()


def test_native_code_can_be_demanded(build_native, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    monkeypatch.setenv("FASTMETA_BUILD", "native")
    with pytest.raises(build_native.ToolchainError, match="/nonexistent/c"):
        build_native.build(tmp_path, "here", tolerate=build_native.BuildError)


@pytest.mark.slow
def test_wheel_of_sdist_in_build_isolation(source, tmp_path):
    """The way of `pip install fastmeta`: a source archive, and only the declared build needs."""
    build_sdist = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    run(sys.executable, "-c", build_sdist, cwd=source)
    (sdist,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert not [name for name in archive.getnames() if name.endswith((".so", ".pyc"))]
    site, files = import_from(pip_wheel(sdist, tmp_path), tmp_path)
    assert all(file.is_relative_to(site / "fastmeta") for file in files if file)
    assert (files[-1] is not None) == INFO["native"]
    packed = python_files(site / "fastmeta")
    assert packed == python_files(source / "fastmeta") | python_files(source / "kernels", "kernels")
    assert (site / "fastmeta/py.typed").exists()


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["/nonexistent/c++", "false"])
def test_without_a_compiler_the_package_is_pure_python(source, tmp_path, compiler):
    wheel = pip_wheel(source, tmp_path, "--no-build-isolation", CXX=compiler, FASTMETA_BUILD="auto")
    site, (package, kernels, native) = import_from(wheel, tmp_path)
    assert package.is_relative_to(site) and kernels.is_relative_to(site)
    assert native is None
    info = build_info(site / "fastmeta")
    assert not info["native"] and compiler in info["error"]


@pytest.mark.slow
@pytest.mark.skipif(not INFO["native"], reason=f"no toolchain: {INFO.get('error')}")
def test_sources_that_do_not_compile_leave_the_reason(source, tmp_path):
    (source / "csrc/bindings.cpp").write_text("#error broken on purpose\n")
    wheel = pip_wheel(source, tmp_path, "--no-build-isolation", FASTMETA_BUILD="auto")
    site, (_, _, native) = import_from(wheel, tmp_path)
    assert native is None
    assert "broken on purpose" in build_info(site / "fastmeta")["error"]
