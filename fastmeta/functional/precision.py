"""In which precision products are taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["PRECISIONS", "product_precision", "products_in"]

# As users call it: what the kernels call it.
PRECISIONS = {"fp32": "ieee", "tf32x3": "tf32x3", "tf32": "tf32", "bf16": "bf16"}

_of_products: ContextVar[str] = ContextVar("product_precision", default="fp32")


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Take the products of `linear` and `conv2d` inside the block in one of `PRECISIONS`.

    Their derivatives are taken in the precision of the forward, wherever they run. "fp32" is the
    precision of the tensors, float64 included. The others are for float32 on NVIDIA GPUs: inputs
    are rounded, sums are float32, and what is kept is float32.

    "tf32x3" adds up three products of parts of 11 bits: about as exact as float32 as long as
    numbers are between 1e-30 and 3.4e38. Smaller ones lose digits, and those above 3.402e38 become
    infinite (docs/notes/triton-kernels.md).
    """
    token = _of_products.set(precision)
    try:
        yield
    finally:
        _of_products.reset(token)


def product_precision() -> str:
    """That of the innermost `products_in` of this thread; "fp32" outside of any."""
    return _of_products.get()
