"""Compiles the native module when fastmeta is installed. Metadata: pyproject.toml."""

import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import build_native  # noqa: E402
from toolchain import BuildError  # noqa: E402


class BuildNative(build_ext):
    """Hands the work to ninja; a machine that cannot compile gets a package in pure Python."""

    def run(self):
        """Build into build_lib, or into the checkout for an editable install.

        FASTMETA_BUILD=later leaves what is there to tools/build_native.py, which may be at it.
        """
        if os.environ.get("FASTMETA_BUILD") == "later":
            return
        machines = "here" if self.inplace else "all"  # a wheel may go elsewhere
        build_native.build(self._package(), machines, tolerate=BuildError)

    def get_outputs(self):
        """Return the files that `run` left."""
        modules = [build_native.module_name(), build_native.module_name("_cuda")]
        names = [*modules, "_build_info.json"]
        return [str(path) for name in names if (path := self._package() / name).exists()]

    def get_output_mapping(self):
        """Return where an editable install finds, in the checkout, each file of a wheel."""
        if not self.inplace:
            return {}
        return {str(Path(self.build_lib, "fastmeta", Path(p).name)): p for p in self.get_outputs()}

    def _package(self) -> Path:
        return (ROOT if self.inplace else Path(self.build_lib)) / "fastmeta"


setup(
    license="Apache-2.0",
    packages=find_packages(include=["fastmeta", "fastmeta.*"]) + ["fastmeta.kernels"],
    package_dir={"fastmeta.kernels": "kernels"},
    # Named so that the wheel is tagged with this platform; BuildNative knows the sources.
    ext_modules=[Extension("fastmeta._native", sources=["csrc/bindings.cpp"], optional=True)],
    cmdclass={"build_ext": BuildNative},
)
