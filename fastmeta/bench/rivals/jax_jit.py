"""JAX: the whole meta-step under ``jit``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmeta.bench.rivals.jax_network import task_loss
from fastmeta.bench.rivals.rival import Outcome, Rival, Step, needs
from fastmeta.bench.workloads import Problem, Workload

CALLS, LONGEST_S = 5, 2.0

# (parameters, support_x, query_x, support_y, query_y) -> loss, [of parameters, *of inputs]
MetaStep = Callable[..., Any]


def build(problem: Problem) -> Step:
    """The faster of two forms, each of which wins somewhere; of images one task after another.

    With weights of their own for each task, vmapped convolutions are grouped ones, which XLA is
    slow at on CPUs: a step of Conv4 took 16 times as long so, and its compilation 1.5 times.
    """
    workload = problem.workload
    if workload.image:
        return _as_step(problem, _loop_of_grad(workload))
    steps = [_as_step(problem, form(workload)) for form in (_vmap_of_grad, _grad_of_vmap)]
    return min(steps, key=_quickest_call)


def _vmap_of_grad(workload: Workload) -> MetaStep:
    import jax

    gradient = jax.value_and_grad(_query_loss(workload), argnums=_argnums(workload))
    all_tasks = jax.vmap(gradient, in_axes=(None, 0, 0, 0, 0))

    def mean(*arguments: Any) -> tuple[Any, list[Any]]:
        loss, (parameters, *inputs) = all_tasks(*arguments)
        of_parameters = [g.mean(0) for g in parameters]
        return loss.mean(), [of_parameters, *(g / workload.tasks for g in inputs)]

    return jax.jit(mean)


def _grad_of_vmap(workload: Workload) -> MetaStep:
    import jax

    all_tasks = jax.vmap(_query_loss(workload), in_axes=(None, 0, 0, 0, 0))
    mean = jax.value_and_grad(lambda *a: all_tasks(*a).mean(), argnums=_argnums(workload))
    return jax.jit(mean)


def _loop_of_grad(workload: Workload) -> MetaStep:
    """One task's step compiled, the sums over tasks in it; not for learned inputs."""
    import jax

    gradient = jax.value_and_grad(_query_loss(workload))

    @jax.jit
    def add(total: Any, *arguments: Any) -> Any:
        return jax.tree.map(lambda t, g: t + g / workload.tasks, total, gradient(*arguments))

    def mean(parameters: list[Any], *tasks: Any) -> tuple[Any, list[Any]]:
        total = (0.0, [jax.numpy.zeros_like(p) for p in parameters])
        for task in range(workload.tasks):
            total = add(total, parameters, *(each[task] for each in tasks))
        loss, of_parameters = total
        return loss, [of_parameters]

    return mean


def _query_loss(workload: Workload) -> Callable[..., Any]:
    import jax

    def query_loss(fast: list[Any], sx: Any, qx: Any, sy: Any, qy: Any) -> Any:
        # Unrolled: as fast as lax.scan or faster, on images 4 times, though slow to compile.
        for _ in range(workload.steps):
            grads = jax.grad(task_loss)(fast, sx, sy, workload)
            fast = [p - workload.inner_lr * g for p, g in zip(fast, grads, strict=True)]
        return task_loss(fast, qx, qy, workload)

    return query_loss


def _argnums(workload: Workload) -> tuple[int, ...]:
    return (0, 1, 2) if workload.learns_inputs else (0,)


def _as_step(problem: Problem, function: MetaStep) -> Step:
    import jax
    import jax.numpy as jnp

    # XLA multiplies float32 in TF32 on a GPU unless told not to.
    jax.config.update("jax_default_matmul_precision", "highest")
    place = jax.devices("gpu" if problem.device.type == "cuda" else "cpu")[0]

    def array(tensor: Tensor) -> Any:
        return jax.device_put(jnp.asarray(tensor.cpu().numpy()), place)

    parameters = [array(p) for p in problem.parameters.values()]
    tasks = (problem.support_x, problem.query_x, problem.support_y, problem.query_y)
    data = [array(tensor) for tensor in tasks]
    names = [*problem.parameters, "support_x", "query_x"]

    def step() -> Outcome:
        loss, (of_parameters, *of_inputs) = jax.block_until_ready(function(parameters, *data))
        return Outcome(loss, dict(zip(names, [*of_parameters, *of_inputs], strict=False)))

    return step


def _quickest_call(step: Step) -> float:
    step()  # compiles
    times = [_timed(step)]
    while len(times) < CALLS and sum(times) < LONGEST_S:
        times.append(_timed(step))
    return min(times)


def _timed(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _why_not_on(device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    import jax

    try:
        jax.devices("gpu")
    except RuntimeError as error:
        return f"JAX sees no GPU: {str(error).splitlines()[0]}"
    return None


RIVAL = Rival(
    "jax",
    "JAX jit",
    build,
    needs("jax"),
    compiles=lambda workload: bool(workload.image),
    compiles_on_gpus=True,  # more than 30 s at "rl" on an H100
    hides_memory="JAX keeps the buffers of earlier calls, and a step shows only what it adds",
    why_not_on=_why_not_on,
)
