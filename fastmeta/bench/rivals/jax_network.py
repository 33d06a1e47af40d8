"""The networks of the workloads in JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastmeta.bench.workloads import Workload


def task_loss(parameters: Sequence[Any], x: Any, y: Any, workload: Workload) -> Any:
    """The loss of one task: x [S, I] or [S, C, H, W], parameters in the module's order."""
    import jax
    import jax.numpy as jnp

    first_linear = len(parameters) - 2 * len(workload.layers)
    for block in range(0, first_linear, 4):
        x = _block(parameters[block : block + 4], x)
    x = x.reshape(len(x), -1)
    activation = {"relu": jax.nn.relu, "tanh": jnp.tanh, "elu": jax.nn.elu}[workload.activation]
    weights, biases = parameters[first_linear::2], parameters[first_linear + 1 :: 2]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        if workload.hidden == "unit rows":
            weight = weight / jnp.linalg.norm(weight, axis=1, keepdims=True)
        x = x @ weight.T + bias
        if workload.hidden == "layer norm":
            centred = x - x.mean(-1, keepdims=True)
            x = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        if workload.hidden == "gated":
            value, gate = jnp.split(x, 2, axis=-1)
            x = activation(value) * jax.nn.sigmoid(gate)
        else:
            x = activation(x)
    x = x @ weights[-1].T + biases[-1]
    if workload.loss == "huber":
        error = abs(x - y)
        return jnp.where(error <= 1, 0.5 * error**2, error - 0.5).mean()
    if workload.loss == "mse":
        return ((x - y) ** 2).mean()
    return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], axis=1).mean()


def _block(parameters: Sequence[Any], x: Any) -> Any:
    """Channels first and pooling by `max` are faster here than channels last or reduce_window."""
    import jax

    weight, bias, scale, shift = (p if p.ndim == 4 else p[:, None, None] for p in parameters)
    x = jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME") + bias
    centred = x - x.mean((0, 2, 3), keepdims=True)
    variance = (centred**2).mean((0, 2, 3), keepdims=True)
    x = jax.nn.relu(centred * jax.lax.rsqrt(variance + 1e-5) * scale + shift)
    samples, channels, height, width = x.shape
    x = x[:, :, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(samples, channels, height // 2, 2, width // 2, 2).max((3, 5))
