"""What tests of the native kernels share."""

import pytest

from fastmeta.backends import cpu

VARIANTS = [name for name, runs in cpu.native.variants().items() if runs] if cpu.native else []


@pytest.fixture(params=VARIANTS)
def variant(request):
    """Each instruction set that runs here."""
    before = cpu.native.variant()
    cpu.native.use_variant(request.param)
    yield request.param
    cpu.native.use_variant(before)
