"""A module called as a pure function, for one task or for all of them at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase

from fastmeta.functional.corrections import AsForOneTask, Corrected, OfTask
from fastmeta.functional.linear import product
from fastmeta.functional.transforms import NotForManyTasks, explaining_vmap
from fastmeta.models import Sine

__all__ = [
    "ELEMENTWISE", "GLOBAL_BACKWARD_HOOKS", "call_module", "has_backward_hooks", "has_hooks",
    "hook_dicts", "in_every_place", "module_lock", "task_by_task", "task_forward",
]  # fmt: skip

ELEMENTWISE = (
    nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Softplus, nn.SiLU, nn.ELU, nn.Identity,
    Sine,
)  # fmt: skip

# A stateless call puts other tensors into the module while it runs, so whoever runs or reads a
# module from another thread waits.
module_lock = threading.RLock()


def task_forward(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    x: Tensor,
    randomness: str | None = None,
) -> Tensor:
    """Run a module for T tasks, each with its own parameters.

    What vmap cannot run (recurrent layers, control flow on values) runs for one task after another.

    Args:
        module: gives structure, buffers and mode; its own parameters are not used.
        parameters: every parameter by name, [T, *shape] or, shared by all tasks, [*shape].
        x: [T, S, ...].
        randomness: None (a random layer is an error), "same" or "different" over tasks.

    Returns:
        [T, S, O...], differentiable to any order that the module is.

    Raises:
        RuntimeError: the module draws random numbers and nobody said how, or cannot run under vmap,
            which `randomness` needs.

    Equivalent to::

        torch.stack([torch.func.functional_call(module, {n: p[t] for n, p in parameters.items()},
                                                (x[t],)) for t in range(T)])
    """
    if has_backward_hooks(module):  # which torch calls for none of what runs under vmap
        return task_by_task(module, parameters, x)
    layers = _linear_chain(module)
    if layers is not None and x.dim() >= 3 and _all_named(layers, parameters):
        return _chain_forward(layers, parameters, x)
    try:
        return _vmap_forward(module, parameters, x, randomness)
    except NotForManyTasks:
        if randomness is not None:
            raise
    before = torch.get_rng_state()
    predictions = task_by_task(module, parameters, x)
    if not torch.equal(before, torch.get_rng_state()):  # as vmap would have said
        raise RuntimeError(
            f"{type(module).__name__} draws random numbers in its forward: call .eval() on it"
        )
    return predictions


def task_by_task(module: nn.Module, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """`task_forward` in a loop, as plain PyTorch would have it."""
    with module_lock:
        ranks = {name: own.dim() for name, own in module.named_parameters()}
    predictions = []
    for t, task_x in enumerate(x):
        own = {n: p if p.dim() == ranks[n] else p[t] for n, p in parameters.items()}
        predictions.append(call_module(module, own, task_x, OfTask()))
    return torch.stack(predictions)


def call_module(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    x: Tensor,
    mode: Corrected | None = None,
    left: dict[str, Tensor] | None = None,
) -> Tensor:
    """``module(x)`` with other parameters; norms use the statistics of `x` and keep none.

    What the forward leaves in each place that has one is put into `left`.
    """
    mode = mode or Corrected()
    with module_lock, _batch_statistics(module), _twice_differentiable_attention(), mode:
        tensors = in_every_place(module, parameters)
        predictions = torch.func.functional_call(module, tensors, (x,), tie_weights=False)
    if left is not None:
        left.update(tensors)
    return predictions


def in_every_place(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters and buffers by each place that holds one; the tied go by the name of the first.

    Left to itself, functional_call takes a module that has two names for two places, and leaves the
    other tensors in it.
    """
    names = {id(t): name for name, t in (*module.named_parameters(), *module.named_buffers())}
    return {
        f"{prefix}.{key}" if prefix else key: tensors[names[id(own)]]
        for prefix, owner in module.named_modules()
        for key, own in (*owner._parameters.items(), *owner._buffers.items())
        if own is not None and names[id(own)] in tensors
    }


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module itself (its children aside) does more than its forward."""
    return "forward" in module.__dict__ or any(hook_dicts(module)) or any(_GLOBAL_HOOKS)


def hook_dicts(module: nn.Module) -> tuple[Mapping[int, Any], ...]:
    """What was registered to run around the module's own forward and backward."""
    return (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    )


def has_backward_hooks(module: nn.Module) -> bool:
    """Whether something is to run in the backward of the module or of one of its parts."""
    return any(GLOBAL_BACKWARD_HOOKS) or any(
        [part._backward_pre_hooks or part._backward_hooks for part in module.modules()]
    )


GLOBAL_BACKWARD_HOOKS = (
    torch.nn.modules.module._global_backward_pre_hooks,
    torch.nn.modules.module._global_backward_hooks,
)
_GLOBAL_HOOKS = (
    torch.nn.modules.module._global_forward_pre_hooks,
    torch.nn.modules.module._global_forward_hooks,
    *GLOBAL_BACKWARD_HOOKS,
)


def _vmap_forward(
    module: nn.Module, parameters: Mapping[str, Tensor], x: Tensor, randomness: str | None
) -> Tensor:
    with module_lock:
        ranks = {name: own.dim() for name, own in module.named_parameters()}
    per_task = {name: None if p.dim() == ranks[name] else 0 for name, p in parameters.items()}

    def one_task(task_parameters: Mapping[str, Tensor], task_x: Tensor) -> Tensor:
        mode = AsForOneTask()
        predictions = call_module(module, task_parameters, task_x, mode)
        if mode.loses_hooks:
            raise RuntimeError("vmap calls no hooks of tensors")
        if mode.failed is not None:
            name = type(module).__name__
            raise NotForManyTasks(f"{name} goes on after an error: {mode.failed}") from mode.failed
        return predictions

    all_tasks = torch.func.vmap(
        one_task, in_dims=(per_task, 0), randomness=randomness or "error"
    )
    with explaining_vmap(type(module).__name__):
        return all_tasks(dict(parameters), x)


def _linear_chain(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]] | None:
    """The layers, by name, of a chain of linear layers and activations; None for all else."""
    if has_hooks(module):
        return None
    if type(module) in (nn.Linear, *ELEMENTWISE) or _keeps_samples(module):
        return [(prefix, module)]
    if type(module) is not nn.Sequential:
        return None
    layers = []
    for name, child in module._modules.items():
        inner = _linear_chain(child, f"{prefix}{name}.") if child is not None else None
        if inner is None:
            return None
        layers += inner
    return layers


def _all_named(layers: list[tuple[str, nn.Module]], parameters: Mapping[str, Tensor]) -> bool:
    """False where layers share a parameter, which then has the name of the first alone."""
    return all(f"{p}weight" in parameters for p, layer in layers if type(layer) is nn.Linear)


def _keeps_samples(module: nn.Module) -> bool:
    return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)


def _chain_forward(
    layers: list[tuple[str, nn.Module]], parameters: Mapping[str, Tensor], x: Tensor
) -> Tensor:
    for prefix, layer in layers:
        if type(layer) is nn.Linear:
            x = product(x, parameters[f"{prefix}weight"], parameters.get(f"{prefix}bias"))
        elif type(layer) is nn.Flatten:
            x = x.flatten(2)
        else:
            x = layer(x)
    return x


@contextmanager
def _batch_statistics(module: nn.Module) -> Iterator[None]:
    """Norms use the statistics of the task and leave the running ones alone."""
    tracking = [m for m in module.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    buffers = [norm._buffers for norm in tracking]
    for norm in tracking:
        norm.track_running_stats = False
        norm._buffers = dict.fromkeys(norm._buffers)
    try:
        yield
    finally:
        for norm, own in zip(tracking, buffers, strict=True):
            norm.track_running_stats = True
            norm._buffers = own


@contextmanager
def _twice_differentiable_attention() -> Iterator[None]:
    """Attention by plain products: the fused kernels have no double backward."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
