"""Forms of a kernel to compile ahead of time, from the names of its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastmeta.kernels.aot import AotCase

__all__ = ["form"]


def form(
    name: str, kernel: Any, constants: Mapping[str, Any], floats: str = "fp32",
    kinds: Mapping[str, str] | None = None, num_warps: int = 4,
) -> AotCase:  # fmt: skip
    """A case whose pointers are to `floats` and whose other arguments are whole numbers.

    Args:
        name: of the case.
        kernel: under `triton.jit`; arguments that are pointers end in ``_ptr``.
        constants: the `tl.constexpr` arguments, and strides that are 1.
        floats: of pointers that `kinds` does not name; labels are int64.
        kinds: pointers of another type.
        num_warps: of the launch.
    """
    given = {"labels_ptr": "*i64", **(kinds or {})}
    signature = {
        argument: given.get(argument, f"*{floats}" if argument.endswith("_ptr") else "i32")
        for argument in kernel.arg_names
        if argument not in constants
    }
    wide = [a for a in ("D", "x_q", "query_q", "means_n", "y_n") if signature.get(a) == "i32"]
    return AotCase(
        name, kernel, signature, constants, multiples_of_16=wide, num_warps=num_warps
    )
