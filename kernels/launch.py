"""Starting a kernel in a form that is known, without most of what Triton does at each launch.

Triton works out anew which compiled form a launch needs, which takes longer than most kernels here
run. A form depends on dtypes, on which addresses and whole numbers are divisible by 16, on which
numbers are 1 or need 64 bits, on constants, options and the device: that is the key here. Triton's
own settings (its environment variables) are looked at where a form is first launched.
"""

from __future__ import annotations

from typing import Any

import triton
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime import driver

__all__ = ["cdiv", "launchable"]

_PLAIN = 2**30  # from here on a whole number is told apart by its value


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up: `triton.cdiv`, which is for kernels too, is slow outside of them."""
    return -(-a // b)


def launchable(kernel: Any) -> Any:
    """Let ``kernel[grid](...)`` find again what was launched alike. Under `triton.jit`."""
    if isinstance(kernel, triton.runtime.JITFunction):  # none where Triton interprets
        kernel.run = _Launcher(kernel)
    return kernel


class _Launcher:
    """`JITFunction.run` of one kernel."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._run = kernel.run
        # What to launch, and the constants that come last among its arguments.
        self._forms: dict[Any, tuple[Any, tuple[Any, ...]]] = {}

    def __call__(self, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        if warmup or callable(grid) or self._kernel.pre_run_hooks:
            return self._run(*args, grid=grid, warmup=warmup, **options)
        device = driver.active.get_current_device()
        key: list[Any] = [device, len(args), *options, *options.values()]
        for argument in args:
            if type(argument) is int:
                if argument == 1 or not 0 <= argument < _PLAIN:
                    key.append(argument)
                else:
                    key.append(2 if argument & 15 else 16)
            elif isinstance(argument, Tensor):
                key += (argument.dtype, argument.data_ptr() & 15 == 0)
            else:
                key.append(type(argument))
        form = self._forms.get(tuple(key))
        if form is None:
            return self._first(tuple(key), args, grid, options)
        compiled, constants = form
        stream = driver.active.get_current_stream(device)
        compiled[(*grid, 1, 1)](*args, *constants, stream=stream)
        return compiled

    def _first(self, key: Any, args: tuple[Any, ...], grid: Any, options: dict[str, Any]) -> Any:
        compiled = self._run(*args, grid=grid, warmup=False, **options)
        names = [parameter.name for parameter in self._kernel.params[len(args) :]]
        known = {type(a) for a in args if not isinstance(a, Tensor)} <= {int, float}
        whole = all(name in options for name in names)
        constant = not any(isinstance(value, Tensor) for value in options.values())
        if known and whole and constant and isinstance(compiled, CompiledKernel):
            self._forms[key] = compiled, tuple(options[name] for name in names)
        return compiled
