"""What tests of several engines share."""

import pytest

from fastmeta.backends import cpu
from fastmeta.inner_loop import kept

VARIANTS = [name for name, runs in cpu.native.variants().items() if runs] if cpu.native else []


@pytest.fixture(params=VARIANTS)
def variant(request):
    """Each instruction set that runs here."""
    before = cpu.native.variant()
    cpu.native.use_variant(request.param)
    yield request.param
    cpu.native.use_variant(before)


@pytest.fixture(params=[0, 1 << 28], ids=["again", "kept"])
def graphs(request, monkeypatch):
    """Steps that the backward computes again, and steps whose graphs are kept."""
    monkeypatch.setattr(kept, "_MOST_BYTES", request.param)
