"""Whether the native kernels make of a forward that was read what the module makes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta.backends import cpu
from fastmeta.backends.kernels import Kernels
from fastmeta.functional.forward import call_module
from fastmeta.inner_loop.arithmetic.headed import Headed
from fastmeta.inner_loop.arithmetic.written import Written
from fastmeta.inner_loop.reading.chain import Chain
from fastmeta.inner_loop.reading.differs import is_alike
from fastmeta.inner_loop.reading.stages import Stages

__all__ = ["miscomputed", "miscounted", "misheaded", "mispredicted"]


def mispredicted(
    network: Chain | Stages, module: nn.Module, sample: Sequence[int]
) -> str | None:
    """A sentence if the kernels make something else of a few samples, in float64.

    None where there are no kernels, or where they cannot have the module's tensors.
    """
    tensors = [*module.parameters(), *module.buffers()]
    if cpu.native is None or any(t.device.type != "cpu" or t.is_complex() for t in tensors):
        return None
    try:
        trial = _Trial(network, module, torch.float64)
        if trial.predicts(1.0, _waves((5, *sample), 3)):
            return None
    except Exception as error:  # the forward is the user's
        return _fails(error)
    return "its forward, read as layers, gives something else"


def miscomputed(network: Written, module: nn.Module, sample: Sequence[int]) -> str | None:
    """A sentence if the kernels make something else of some samples, or another gradient.

    With other parameters and buffers, too: what a gate of 0 hides may come out later.
    """
    try:
        return _what_differs(_Trial(network, module), sample, 5, _SAMPLES)
    except Exception as error:  # the forward is the user's, and need not take any parameters
        return _fails(error)


def misheaded(network: Headed, module: nn.Module, sample: Sequence[int]) -> str | None:
    """`miscomputed` in float64, where kinks of activations do not show, and of few samples."""
    try:
        return _what_differs(_Trial(network, module, torch.float64), sample, 2, (1, 3))
    except Exception as error:  # of the user's code
        return _fails(error)


def _fails(error: Exception) -> str:
    said = "".join(f": {line}" for line in str(error).splitlines()[:1])
    return f"its forward does not run for some samples: {type(error).__name__}{said}"


def miscounted(
    network: Written | Headed, module: nn.Module, sample: Sequence[int], samples: int
) -> str | None:
    """`miscomputed` for a number of samples: C tells it to a forward that counts with it there."""
    if samples in _SAMPLES:
        return None
    try:
        x = _waves((samples, *sample), 3)
        if _Trial(network, module).predicts(1.0, x):
            return None
    except Exception as error:  # of the user's code
        return _fails(error)
    return f"of {samples} samples its forward makes something else"


def _what_differs(
    trial: _Trial, sample: Sequence[int], first: int, counts: Sequence[int]
) -> str | None:
    trials = [(0.0, first), *((1.0, n) for n in counts if n >= trial.fewest)]
    if not all(trial.predicts(off, _waves((n, *sample), 3)) for off, n in trials):
        return "its forward, read as arithmetic on each sample's numbers, gives something else"
    if not trial.differentiates(_OFF, _waves((first, *sample), 3)):
        return "its forward, read as arithmetic on each sample's numbers, has another gradient"
    return None


# Some of a sample's numbers might depend on how many samples there are.
_SAMPLES = 1, 2, 3, 10, 25, 64, 100
# How far parameters are moved for gradients, which far from where they start may be any size.
_OFF = 0.1


def _waves(shape: Sequence[int], height: float) -> Tensor:
    return height * torch.linspace(-2, 2, math.prod(shape), dtype=torch.float64).sin().view(shape)


class _Trial:
    """In the module's dtype, or in another one."""

    def __init__(
        self, network: Chain | Stages | Written | Headed, module: nn.Module, dtype: Any = None
    ) -> None:
        named = (*module.named_parameters(), *module.named_buffers())
        real = [(name, tensor) for name, tensor in named if tensor.is_floating_point()]
        self._own = {name: tensor.detach().to(dtype or tensor.dtype) for name, tensor in real}
        self._variables = {name for name, tensor in real if tensor.requires_grad}
        self.fewest = network.fewest
        self._network = network
        self._module = module

    def predicts(self, off: float, x: Tensor) -> bool:
        own = self._moved(off)
        for name in self._variables:  # the forward may take gradients of its own
            own[name].requires_grad_()
        x = x.to(next(iter(own.values())))
        with torch.enable_grad():
            expected = call_module(self._module, own, x.clone()).detach()
        own_shape = getattr(self._network, "shape", (self._network.outputs,))
        if expected.dtype is not x.dtype or expected.shape != (len(x), *own_shape):
            return False
        found = expected.new_empty(expected.shape)
        self._run(self._of_network(own), x, [], found.data_ptr(), ())
        return is_alike(expected, found)

    def differentiates(self, off: float, x: Tensor) -> bool:
        """Whether a step, for each tensor of a size of about 1, goes where it should."""
        own = {name: tensor.requires_grad_() for name, tensor in self._moved(off).items()}
        x = x.to(next(iter(own.values())))
        before = self._of_network(own)
        with torch.enable_grad():
            loss = call_module(self._module, own, x.clone()).square().mean()
        gradients = _gradients(loss, before)
        rates = _rates(gradients)
        after = [torch.empty_like(tensor) for tensor in before]
        self._run(before, x, rates, 0, [tensor.data_ptr() for tensor in after])
        return all(
            torch.allclose(float(rate) * gradient, (old - new).detach(), 1e-3, 1e-3, True)
            for rate, gradient, old, new in zip(rates, gradients, before, after, strict=True)
        )

    def _moved(self, off: float) -> dict[str, Tensor]:
        """The tensors elsewhere; a matrix by less, or a long recurrence were chaos."""
        heights = {n: off / max(t.shape[1:].numel(), 1) ** 0.5 for n, t in self._own.items()}
        return {
            name: (tensor + _waves(tensor.shape, heights[name]).to(tensor)).contiguous()
            for name, tensor in self._own.items()
        }

    def _of_network(self, own: Mapping[str, Tensor]) -> list[Tensor]:
        return [own[name] for name in self._network.names]

    def _run(
        self, tensors: Sequence[Tensor], x: Tensor, rates: Sequence[Tensor],
        predictions: int, stepped: Sequence[int],
    ) -> None:  # fmt: skip
        """One step with a rate for each tensor, or, without rates, none and the predictions."""
        network, count, steps = self._network, len(x), 1 if rates else 0
        kernels = cpu.kernels(str(x.dtype).removeprefix("torch."))
        sizes = [tensor.numel() for tensor in tensors]
        rates_of = [(0, 1) if steps else None] * len(sizes)
        call = kernels.call(
            self._chain(kernels, sizes), 1, steps, 1, [0] * len(sizes), rates_of,
            not steps, (count, 0 if steps else count), False, (False, False),
        )  # fmt: skip
        targets, inputs = x.new_zeros(count, network.outputs), [x] if steps else [x, x]
        others = [targets] if steps else [targets, targets, x.new_zeros(1)]
        given = [t.data_ptr() for t in (*tensors, *rates, *inputs, *others)]
        kernels.forward(call, x, given, False, predictions, 0, stepped)

    def _chain(self, kernels: Kernels, sizes: list[int]) -> Any:
        network = self._network
        if isinstance(network, Headed):
            return kernels.chain(list(network.below.stages), list(network.steps), sizes, "mse")
        if isinstance(network, Written):
            return kernels.chain(network.inputs, list(network.steps), sizes, "mse")
        layers = network.nodes if isinstance(network, Chain) else network.stages
        return kernels.chain(list(layers), "mse", len(network.names))


def _gradients(loss: Tensor, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    if not tensors or not loss.requires_grad:
        return [torch.zeros_like(tensor) for tensor in tensors]
    return torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)


def _rates(gradients: Sequence[Tensor]) -> list[Tensor]:
    """[1] each: larger for smaller gradients, as long as they are no rounding beside the others."""
    sizes = [float(g.abs().nan_to_num(0, 0, 0).max()) for g in gradients]
    least = 1e-2 * max(sizes, default=0.0)
    return [
        gradient.new_full((1,), 1 / max(size, least) if least else 1.0)
        for gradient, size in zip(gradients, sizes, strict=True)
    ]
