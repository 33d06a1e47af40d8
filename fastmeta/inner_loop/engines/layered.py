"""The layered engine: a module rewritten onto the task-batched operations of fastmeta.functional.

Its meta-gradient is exact and takes the memory of one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fastmeta.backends import requested_backend, triton
from fastmeta.functional.forward import call_module
from fastmeta.functional.precision import products_in
from fastmeta.inner_loop import recursion
from fastmeta.inner_loop.loop import InnerLoop, Rates, UnknownTensors
from fastmeta.inner_loop.reading.counters import counters_put_back
from fastmeta.inner_loop.reading.differs import differs, is_alike
from fastmeta.inner_loop.reading.rewrite import Program, rewrite
from fastmeta.inner_loop.steps import Forward, split_parameters
from fastmeta.tasks import TaskBatch

__all__ = ["adapt", "can_run", "meta_loss"]

_DTYPES = (torch.float32, torch.float64)


def can_run(
    loop: InnerLoop, tasks: TaskBatch | None, parameters: Mapping[str, Tensor], rates: Rates
) -> str | None:
    """None, or the layer or call of the module that has no rule for many tasks."""
    if loop.randomness is not None:
        return "it draws no random numbers"
    if any(torch.is_autocast_enabled(p.device.type) for p in parameters.values()):
        return "autocast is on, and it computes in the dtype of the inputs"
    if requested_backend() == "triton" or loop.precision != "fp32":
        reason = triton.refusal(*parameters.values(), precision=loop.precision)
        if reason is not None:
            return reason
    dtypes = {p.dtype for p in parameters.values()}
    if not dtypes.issubset(_DTYPES) or len(dtypes) > 1:
        return f"the parameters are {', '.join(map(str, dtypes))}, and it takes float32 or float64"
    program = _program(loop)
    if isinstance(program, str):
        return program
    return recursion.unknown_tensors(loop, tasks, parameters) or _trial(
        loop, program, tasks, parameters
    )


def _forward(loop: InnerLoop, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    with products_in(loop.precision):
        return _run(loop, parameters, x)


def _run(loop: InnerLoop, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    program = _program(loop)
    if isinstance(program, str):
        raise RuntimeError(
            f"the module has changed since the engine was chosen, and the layered engine cannot "
            f'run it now: {program}. The way out: engine="vmap"'
        )
    if program.asks_types and (unlike := _unlike(loop, parameters, x)):
        raise UnknownTensors(unlike)
    at_once = _at_once(loop, x)
    if at_once >= len(x):
        return program.run(parameters, x)
    xs = x.split(at_once)
    parts = split_parameters(loop, parameters, at_once, len(xs))
    return torch.cat([program.run(*part) for part in zip(parts, xs, strict=True)])


def _at_once(loop: InnerLoop, x: Tensor) -> int:
    """As many tasks as keep the largest tensor of the forward small on a CPU.

    Memory beyond what malloc keeps for reuse is mapped anew for each tensor, which costs as much as
    an elementwise operation on it; and what fits into no cache is slow besides.
    """
    program = _program(loop)
    if x.device.type != "cpu" or isinstance(program, str):
        return len(x)
    of_a_task = program.largest * x.shape[1] * x.element_size()
    return max(1, _AT_ONCE_BYTES // max(1, of_a_task))


_AT_ONCE_BYTES = 2**24

_LAYERED = Forward("layered", _forward, _at_once)
adapt = partial(recursion.adapt, _LAYERED)
meta_loss = partial(recursion.meta_loss, _LAYERED)

_programs: WeakKeyDictionary[InnerLoop, Program | str] = WeakKeyDictionary()


def _program(loop: InnerLoop) -> Program | str:
    program = _programs.get(loop)
    if program is None or (isinstance(program, Program) and not program.is_current()):
        program = _programs[loop] = rewrite(loop.module)
    return program


def _trial(
    loop: InnerLoop, program: Program, tasks: TaskBatch | None, parameters: Mapping[str, Tensor]
) -> str | None:
    """What shows only when the forward runs for two tasks, or None."""
    if tasks is None:
        return None
    first = tasks.support_x[:1].detach()
    of_one = _of_one(loop, parameters)
    per_task = {
        name: p.expand(2, *p.shape) if name in loop.adapted else p for name, p in of_one.items()
    }
    try:
        with torch.no_grad(), products_in(loop.precision):
            found = program.run(per_task, first.expand(2, *first.shape[1:]))
        unlike = differs(loop.module, of_one, first[0])
        if unlike is None and not _gives(loop, of_one, first[0], found[0]):
            unlike = "for several tasks its forward computes something else"
        if unlike is None and program.asks_types:
            unlike = _unlike(loop, parameters, tasks.query_x)
        return unlike
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return f"its forward does not run for several tasks: {str(error).splitlines()[0]}"


def _gives(
    loop: InnerLoop, parameters: Mapping[str, Tensor], x: Tensor, predictions: Tensor
) -> bool:
    """Whether the module makes these predictions of a task's samples, as far as one can tell."""
    if loop.precision != "fp32":
        return True
    with torch.no_grad(), counters_put_back(loop.module):
        expected = call_module(loop.module, parameters, x.clone())
    share = 1e-3 if x.device.type == "cpu" else 5e-2  # cuDNN convolves in TF32 unless told not to
    return is_alike(expected, predictions, share)


def _unlike(loop: InnerLoop, parameters: Mapping[str, Tensor], x: Tensor) -> str | None:
    """`differs` for as many samples as these are, which such a forward may ask for."""
    key = ("unlike", x.shape[1:])
    if key not in loop.memory:
        loop.memory[key] = differs(loop.module, _of_one(loop, parameters), x[0].detach())
    return loop.memory[key]


def _of_one(loop: InnerLoop, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of the first task."""
    own = {name: parameters[name].detach() for name in loop.shapes}
    return {name: p if p.shape == loop.shapes[name] else p[0] for name, p in own.items()}
