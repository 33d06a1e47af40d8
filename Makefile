# make demo and make test do all the set-up themselves: they use the active virtual environment, or
# make .venv, install the pinned versions into it, compile csrc/ and run.

VENV ?= $(or $(VIRTUAL_ENV),.venv)
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Python compiles what is imported; pip would compile all of PyTorch, which takes half a minute.
PIP_INSTALL := $(PIP) install --no-compile -c constraints.txt
# What compiles csrc/ is installed first, and the rest beside the compiler.
MAKEFLAGS += --jobs=2

BUILD_TOOLS := $(VENV)/.fastmeta-build-tools
INSTALLED := $(VENV)/.fastmeta-installed
BENCH_INSTALLED := $(VENV)/.fastmeta-bench-installed
NATIVE := fastmeta/_build_info.json
# Folders are listed too: they tell of files that went.
NATIVE_SOURCES := $(shell find csrc) $(wildcard tools/*.py)

.PHONY: help install demo test lint sanitize bench clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

install: $(INSTALLED) $(NATIVE)  ## virtual environment, dependencies, native code

demo: install  ## learn to learn sine waves, and measure the speed
	$(BIN)/fastmeta demo

# Two processes at a time, a file of tests at a time. Threads that wait must not spin: those of one
# process would keep the other's from their cores, and the tests take four times as long.
TEST_WORKERS ?= 2

test: install  ## all tests; PYTEST_ARGS='-k maml -x' for some
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(TEST_WORKERS) \
		--dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(INSTALLED)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy fastmeta

sanitize: $(BUILD_TOOLS)  ## the native tests under ASan + UBSan and under TSan
	$(BIN)/python tools/sanitize.py

bench: install $(BENCH_INSTALLED)  ## the benchmarks with their rivals
	$(BIN)/fastmeta bench $(BENCH_ARGS)

clean:  ## remove what was built, but not the virtual environment
	rm -rf build dist *.egg-info fastmeta/_native*.so fastmeta/_cuda*.so $(NATIVE)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BUILD_TOOLS): constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -q setuptools wheel pybind11 ninja
	@touch $@

$(INSTALLED): pyproject.toml setup.py $(BUILD_TOOLS)
	FASTMETA_BUILD=later $(PIP_INSTALL) --no-build-isolation -e '.[test]'
	@touch $@

$(BENCH_INSTALLED): $(INSTALLED)
	FASTMETA_BUILD=later $(PIP_INSTALL) --no-build-isolation -e '.[bench]'
	@touch $@

$(NATIVE): $(BUILD_TOOLS) $(NATIVE_SOURCES)
	$(BIN)/python tools/build_native.py
