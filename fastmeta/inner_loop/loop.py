"""The description of one inner loop, which every engine reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from fastmeta.backends.operation import nobody_sees_values
from fastmeta.counts import as_whole, whole_number
from fastmeta.functional.forward import module_lock
from fastmeta.functional.losses import LOSSES, Loss, check_signature
from fastmeta.functional.precision import PRECISIONS
from fastmeta.words import did_you_mean, kind_of

__all__ = [
    "InnerLoop", "Rates", "UnknownTensors", "check_grad_mode", "rate_at", "refuse_batched",
    "refuse_graph",
]  # fmt: skip

_is_batched = torch._C._functorch.is_batchedtensor
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
_transform_level = torch._C._functorch.maybe_current_level

# One rate for all, or a tensor by adapted name: [1 or steps, *broadcastable to the parameter].
Rates = float | Mapping[str, Tensor]


_SHORT = {"ce": "cross_entropy", "l2": "mse", "nll": "cross_entropy"}


@dataclass(frozen=True, eq=False)
class InnerLoop:
    """`steps` of gradient descent on the support loss, for every task from its own parameters.

    Attributes:
        module: gives structure, names, buffers and mode; its parameters' values are not read.
        loss: a name of `LOSSES`, or (predictions [S, O], targets) -> scalar.
        steps: 0 or more.
        order: 2 for the exact meta-gradient, 1 to take inner gradients as constants (FOMAML).
        adapted: names of the parameters that take the steps.
        randomness: what random layers do over tasks, "same" or "different"; None: an error.
        unread: why the loss, a function, is run as it is, as a sentence; where that is known.
        precision: of products: "fp32", "tf32x3", "tf32" or "bf16"; see `products_in`.
        shapes: of the module's parameters, by name.
        memory: what the engines find out about this loop and want to know again.

    Raises:
        ValueError, TypeError: an attribute that is not as above.
    """

    module: nn.Module
    loss: Loss
    steps: int
    order: int
    adapted: tuple[str, ...]
    randomness: str | None = None
    precision: str = "fp32"
    unread: str | None = None
    shapes: Mapping[str, torch.Size] = field(init=False, repr=False)
    memory: dict[Any, Any] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.Module):
            raise TypeError(f"module must be an nn.Module, not {type(self.module).__name__}")
        if isinstance(self.loss, str) and self.loss not in LOSSES:
            raise ValueError(
                f"loss must be a callable or one of {list(LOSSES)}, not {self.loss!r}"
                f"{did_you_mean(_SHORT.get(self.loss.lower(), self.loss), LOSSES)}"
            )
        if isinstance(self.loss, type):
            name = self.loss.__name__
            raise TypeError(f"loss is the class {name}: give an instance of it, {name}()")
        if not isinstance(self.loss, str) and not callable(self.loss):
            raise TypeError(f"loss must be a name or a callable, not {type(self.loss).__name__}")
        if not isinstance(self.loss, str):
            check_signature(self.loss)
        object.__setattr__(self, "steps", whole_number("inner steps", self.steps, least=0))
        if self.steps >= 2**31:
            raise ValueError(f"inner steps must be below 2^31, not {self.steps}")
        order = as_whole(self.order)
        if order not in (1, 2):
            raise ValueError(
                f"order must be 1 or 2, not {self.order!r}; for higher orders: "
                'with fastmeta.use_backend("reference")'
            )
        object.__setattr__(self, "order", order)
        if self.randomness not in (None, "same", "different"):
            raise ValueError(
                f'randomness must be None, "same" or "different", not {self.randomness!r}'
            )
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {[*PRECISIONS]}, not {self.precision!r}")
        object.__setattr__(self, "shapes", _shapes(self.module))
        self._check_adapted()

    def _check_adapted(self) -> None:
        unknown = [name for name in self.adapted if name not in self.shapes]
        if unknown:
            raise ValueError(f"the module has no parameters {unknown}; it has {[*self.shapes]}")
        if self.steps and not self.adapted:
            raise ValueError(
                "no parameter adapts: the module has none, or none that requires grad and is "
                "chosen (frozen ones do not adapt, in evaluation either: use torch.no_grad()); "
                "inner_steps=0 runs it without adaptation"
            )


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    with module_lock:
        parameters = dict(module.named_parameters())
        lazy = [name for name, parameter in parameters.items() if is_lazy(parameter)]
        if lazy:
            raise ValueError(f"parameters {lazy} have no shape yet: run the module once before")
        return {name: parameter.shape for name, parameter in parameters.items()}


def check_rates(loop: InnerLoop, parameters: Mapping[str, Tensor], rates: Rates) -> None:
    """ValueError or TypeError unless `rates` are as `Rates` says."""
    if not isinstance(rates, Mapping):
        if isinstance(rates, bool) or not isinstance(rates, (int, float)):
            raise TypeError(
                f"the inner rate must be a number, not {type(rates).__name__}: .item() makes one "
                'of a tensor. Rates that are learned go by parameter: learn_inner_lr="tensor" or '
                '"element" in MAML, a mapping by name in inner_sgd'
            )
        if not (math.isfinite(rates) and rates >= 0):
            raise ValueError(f"the inner rate must be finite and not negative, not {rates}")
        return
    for name in loop.adapted:
        if name not in rates:
            raise ValueError(f"no inner rate for {name!r}, which adapts")
        _check_rate(name, rates[name], parameters[name], loop.shapes[name], loop.steps)


def _check_rate(
    name: str, rate: Tensor, parameter: Tensor, shape: torch.Size, steps: int
) -> None:
    if not isinstance(rate, Tensor):
        raise TypeError(f"the inner rate of {name!r} must be a tensor, not {kind_of(rate)}")
    if rate.dtype is not parameter.dtype or rate.device != parameter.device:
        raise TypeError(
            f"the inner rate of {name!r} is {rate.dtype} on {rate.device}, the parameter "
            f"{parameter.dtype} on {parameter.device}"
        )
    fits = rate.dim() >= 1 and rate.shape[0] in (1, steps) and rate.dim() - 1 <= len(shape)
    if not fits or any(
        r not in (1, s) for r, s in zip(rate.shape[:0:-1], shape[::-1], strict=False)
    ):
        raise ValueError(
            f"the inner rate of {name!r} must be [1 or {steps}, *s] with s broadcastable to "
            f"{list(shape)}, not {list(rate.shape)}"
        )


def rate_at(rates: Rates, name: str, step: int) -> float | Tensor:
    """The rate of one parameter at one step: a number, or broadcastable to the parameter."""
    if not isinstance(rates, Mapping):
        return rates
    rate = rates[name]
    return rate[step if rate.shape[0] > 1 else 0]


def refuse_graph(engine: str) -> None:
    """RuntimeError where a backward that cannot be differentiated runs under create_graph=True.

    Without it the outer derivative would lack the terms through the inner loop and nobody would
    be told.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"the backward of fastmeta's inner loop ({engine} engine) cannot be differentiated "
            "itself, and create_graph=True asks for that. The way out, differentiable to any "
            'order: with fastmeta.use_backend("reference"): around the forward.'
        )


def refuse_batched(engine: str, *gradients: Tensor | None) -> None:
    """RuntimeError where vmap runs a backward whose kernels read memory (is_grads_batched)."""
    for gradient in gradients:
        if gradient is not None and (_is_batched(gradient) or _is_legacy_batched(gradient)):
            raise RuntimeError(
                f"the backward of fastmeta's inner loop ({engine} engine) takes one gradient at a "
                "time, not a batch of them (is_grads_batched=True, or vmap over autograd.grad): "
                'call torch.autograd.grad once for each, or fastmeta.use_backend("reference")'
            )


class UnknownTensors(RuntimeError):
    """The inner loop depends on tensors that require grad and that its engine was not given."""


def check_grad_mode() -> None:
    """RuntimeError where no inner loop can take its gradients: torch.func, torch.inference_mode,
    cached parametrizations, and while a graph is made of tensors without values, as by
    torch.export.
    """
    if _transform_level() is not None or forward_ad._current_level >= 0:
        raise RuntimeError(
            "fastmeta's inner loop does not run inside torch.func transforms (grad, vmap, jvp): it "
            "takes gradients of its own. It is already batched over tasks; for derivatives use "
            "loss.backward() or torch.autograd.grad outside of them."
        )
    if nobody_sees_values():
        raise RuntimeError(
            "fastmeta's inner loop computes with values, and here a graph is traced without any "
            "(torch.export, make_fx, fake tensors). torch.compile runs it outside of its graphs; "
            "to export a network, export the module that was learned, or its adapted parameters."
        )
    if parametrize._cache_enabled:
        raise RuntimeError(
            "inside torch.nn.utils.parametrize.cached() weights are made once, and every inner "
            "step makes them of its own parameters: leave that block"
        )
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "torch.inference_mode() forbids the gradients that the inner loop takes: use "
            "torch.no_grad(), under which nothing is kept for a backward either"
        )
