"""JAX: the whole meta-step under ``jit``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastmeta.bench.rivals.rival import Outcome, Rival, Step, needs
from fastmeta.bench.workloads import Problem, Workload


def build(problem: Problem) -> Step:
    """vmap of the gradient or gradient of the vmap: each wins somewhere, so the faster is taken."""
    steps = [_as_step(problem, form(problem.workload)) for form in (_vmap_of_grad, _grad_of_vmap)]
    return min(steps, key=_quickest_call)


def _vmap_of_grad(workload: Workload) -> Callable[..., Any]:
    import jax

    gradient = jax.value_and_grad(_query_loss(workload), argnums=_argnums(workload))
    all_tasks = jax.vmap(gradient, in_axes=(None, 0, 0, 0, 0))

    def mean(*arguments: Any) -> tuple[Any, list[Any]]:
        loss, (parameters, *inputs) = all_tasks(*arguments)
        of_parameters = [g.mean(0) for g in parameters]
        return loss.mean(), [of_parameters, *(g / workload.tasks for g in inputs)]

    return mean


def _grad_of_vmap(workload: Workload) -> Callable[..., Any]:
    import jax

    all_tasks = jax.vmap(_query_loss(workload), in_axes=(None, 0, 0, 0, 0))
    return jax.value_and_grad(lambda *a: all_tasks(*a).mean(), argnums=_argnums(workload))


def _query_loss(workload: Workload) -> Callable[..., Any]:
    import jax

    def query_loss(fast: list[Any], sx: Any, qx: Any, sy: Any, qy: Any) -> Any:
        for _ in range(workload.steps):  # unrolled: as fast as lax.scan or faster
            grads = jax.grad(_task_loss)(fast, sx, sy, workload)
            fast = [p - workload.inner_lr * g for p, g in zip(fast, grads, strict=True)]
        return _task_loss(fast, qx, qy, workload)

    return query_loss


def _task_loss(parameters: list[Any], x: Any, y: Any, workload: Workload) -> Any:
    import jax
    import jax.numpy as jnp

    activation = {"relu": jax.nn.relu, "tanh": jnp.tanh}[workload.activation]
    weights, biases = parameters[::2], parameters[1::2]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = activation(x @ weight.T + bias)
    x = x @ weights[-1].T + biases[-1]
    if workload.loss == "mse":
        return ((x - y) ** 2).mean()
    return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], axis=1).mean()


def _argnums(workload: Workload) -> tuple[int, ...]:
    return (0, 1, 2) if workload.learns_inputs else (0,)


def _as_step(problem: Problem, function: Callable[..., Any]) -> Step:
    import jax
    import jax.numpy as jnp

    parameters = [jnp.asarray(p.numpy()) for p in problem.parameters.values()]
    tasks = (problem.support_x, problem.query_x, problem.support_y, problem.query_y)
    data = [jnp.asarray(tensor.numpy()) for tensor in tasks]
    names = [*problem.parameters, "support_x", "query_x"]
    compiled = jax.jit(function)

    def step() -> Outcome:
        loss, (of_parameters, *of_inputs) = jax.block_until_ready(compiled(parameters, *data))
        return Outcome(loss, dict(zip(names, [*of_parameters, *of_inputs], strict=False)))

    return step


def _quickest_call(step: Step, calls: int = 5) -> float:
    step()  # compiles
    return min(_timed(step) for _ in range(calls))


def _timed(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


RIVAL = Rival(
    "jax",
    "JAX jit",
    build,
    needs("jax"),
    hides_memory="JAX keeps the buffers of earlier calls, and a step shows only what it adds",
)
