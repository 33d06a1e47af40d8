"""The networks of the workloads in JAX."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastmeta.bench.workloads import BLOCKS, SEPARABLE, Workload


def task_loss(parameters: Sequence[Any], x: Any, y: Any, workload: Workload) -> Any:
    """The loss of one task: x [S, I] or [S, C, H, W], parameters in the module's order."""
    import jax
    import jax.numpy as jnp

    own = iter(parameters)
    if workload.blocks == "unet":
        return _cross_entropy(_unet(own, x), y)
    for block in range(BLOCKS if workload.image else 0):
        x = _block(workload.blocks, own, x, block == 0)
    x = x.mean((2, 3)) if workload.blocks == "residual" else x.reshape(len(x), -1)
    activation = {"relu": jax.nn.relu, "tanh": jnp.tanh, "elu": jax.nn.elu}[workload.activation]
    if workload.blocks == "cosine":
        return _cross_entropy(10 * _unit(x) @ _unit(next(own)).T, y)
    parameters = [*own]
    if workload.slopes:
        def total(x: Any) -> tuple[Any, Any]:
            value = _linear_layers(workload, parameters, x, activation)
            return value.sum(), value

        slope, value = jax.grad(total, has_aux=True)(x)
        x = jnp.concatenate([value, slope], 1)
    else:
        x = _linear_layers(workload, parameters, x, activation)
    if workload.loss == "huber":
        error = abs(x - y)
        return jnp.where(error <= 1, 0.5 * error**2, error - 0.5).mean()
    if workload.loss == "mse":
        return ((x - y) ** 2).mean()
    if workload.loss == "masked_mse":
        return ((y >= 0) * (x - y) ** 2).sum() / jnp.maximum((y >= 0).sum(), 1)
    return _cross_entropy(x, y)


def _linear_layers(
    workload: Workload, parameters: Sequence[Any], x: Any, activation: Callable[[Any], Any]
) -> Any:
    import jax
    import jax.numpy as jnp

    weights, biases = parameters[::2], parameters[1::2]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        if workload.hidden == "unit rows":
            weight = _unit(weight)
        x = x @ weight.T + bias
        if workload.hidden == "layer norm":
            centred = x - x.mean(-1, keepdims=True)
            x = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        if workload.hidden == "gated":
            value, gate = jnp.split(x, 2, axis=-1)
            x = activation(value) * jax.nn.sigmoid(gate)
        else:
            x = activation(x)
    return x @ weights[-1].T + biases[-1]


def _cross_entropy(x: Any, y: Any) -> Any:
    import jax
    import jax.numpy as jnp

    return -jnp.take_along_axis(jax.nn.log_softmax(x, axis=1), y[:, None], axis=1).mean()


def _unit(rows: Any) -> Any:
    import jax.numpy as jnp

    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


def _normed(x: Any, own: Iterator[Any]) -> Any:
    import jax

    scale, shift = (next(own)[:, None, None] for _ in range(2))
    centred = x - x.mean((0, 2, 3), keepdims=True)
    variance = (centred**2).mean((0, 2, 3), keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-5) * scale + shift


def _pooled(x: Any) -> Any:
    samples, channels, height, width = x.shape
    x = x[:, :, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(samples, channels, height // 2, 2, width // 2, 2).max((3, 5))


def _unet(own: Iterator[Any], x: Any) -> Any:
    import jax
    import jax.numpy as jnp

    def convolved(x: Any) -> Any:
        y = jax.lax.conv_general_dilated(x, next(own), (1, 1), "SAME")
        return y + next(own)[:, None, None]

    def twice(x: Any) -> Any:
        return jax.nn.relu(convolved(jax.nn.relu(convolved(x))))

    fine = twice(x)
    coarse = twice(_pooled(fine))
    weight, bias = next(own), next(own)[:, None, None]  # [I, O, 2, 2], each pixel by itself
    up = jnp.einsum("nihw,ioyx->nohywx", coarse, weight)
    up = up.reshape(len(x), weight.shape[1], *fine.shape[2:]) + bias
    return convolved(jax.nn.relu(convolved(jnp.concatenate([fine, up], 1))))


def _residual_block(own: Iterator[Any], x: Any) -> Any:
    import jax

    def convolved(x: Any) -> Any:
        y = jax.lax.conv_general_dilated(x, next(own), (1, 1), "SAME")
        return _normed(y, own)

    given = x
    for _ in range(2):
        x = jax.nn.leaky_relu(convolved(x), 0.1)
    return _pooled(jax.nn.leaky_relu(convolved(x) + convolved(given), 0.1))


def _block(kind: str, own: Iterator[Any], x: Any, first: bool) -> Any:
    """Channels first and pooling by `max` are faster here than channels last or reduce_window."""
    import jax
    import jax.numpy as jnp

    if kind == "residual":
        return _residual_block(own, x)

    def convolved(x: Any, groups: int = 1) -> Any:
        weight, bias = next(own), next(own)
        if kind == "standardised":
            centred = weight - weight.mean((1, 2, 3), keepdims=True)
            deviation = (centred**2).mean((1, 2, 3), keepdims=True) ** 0.5
            weight = centred / (deviation + 1e-5)
        y = jax.lax.conv_general_dilated(
            x, weight, (1, 1), "SAME", feature_group_count=groups
        )
        return y + bias[:, None, None]

    if kind in SEPARABLE and not first:
        x = convolved(convolved(x, x.shape[1] // SEPARABLE[kind]))
    else:
        x = convolved(x)
    x = _normed(x, own)
    if kind == "film":
        context, weight, bias = next(own), next(own), next(own)
        scale, shift = jnp.split((weight @ context + bias)[:, None, None], 2)
        x = x * scale + shift
    x = _pooled(jax.nn.relu(x))
    if kind == "excitation":
        squeezed = jax.nn.relu(x.mean((2, 3)) @ next(own).T + next(own))
        x = x * jax.nn.sigmoid(squeezed @ next(own).T + next(own))[:, :, None, None]
    return x
