"""A whole meta-step as one CUDA graph: sampling, inner loop, meta-gradient, optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastmeta.algorithms.learner import Learner
from fastmeta.tasks import MetaOutput, TaskBatch

__all__ = ["GraphedStep", "StepOutcome", "rates_on_device"]

# Steps before a capture: kernels are compiled and libraries choose their algorithms in the first.
WARM_UP = 3
# Graphs kept, each with the memory of a step.
GRAPHS = 8


class StepOutcome(NamedTuple):
    """The mean loss of the tasks and the norm of the meta-gradient before clipping, [] each.

    They stay on the device: reading one waits for it. A later step may overwrite them.
    """

    loss: Tensor
    norm: Tensor


class GraphedStep:
    """One meta-step, replayed from a CUDA graph wherever that is possible.

    Each call is exactly one meta-step. The first calls of a shape of tasks run as they are, then a
    call captures and replays, and later ones replay: one launch, and nothing that waits for the
    GPU. A new shape, an optimizer or parameters exchanged for others (`load_state_dict` of the
    optimizer, ``.to()``), other numbers in the optimizer's groups or other flags of the module are
    noticed and captured anew. What is changed otherwise, a layer put in another's place or
    a number kept by a loss function, is not: call `reset` then.

    A step whose loss or meta-gradient is not finite leaves parameters and optimizer as they were;
    the outcome tells.

    Without a GPU, or where something cannot be captured, every step runs as it is, and `reason`
    says why.

    Args:
        meta: a meta-learner: called with tasks, it returns a `MetaOutput`.
        optimizer: over ``meta.parameters()``; for a graph with ``fused=True, capturable=True``. A
            rate that changes from step to step should be a tensor, see `rates_on_device`.
        sample: gives the tasks of a step, on the parameters' device.
        clip: largest norm of the meta-gradient, or None.
        generators: those that `sample` draws from. Giving them says that `sample` does nothing but
            work on the GPU, so that it is captured too; tasks then have one shape. Without them
            each step samples first and copies the tasks to where the graph reads them.
        enabled: False runs every step as it is.

    Example::

        optimizer = torch.optim.Adam(meta.parameters(), lr=1e-3, fused=True, capturable=True)
        source = Sinusoid(device="cuda")
        step = GraphedStep(meta, optimizer, lambda: source.sample(25), generators=source.generators)
        for _ in range(1000):
            outcome = step()
        print(outcome.loss.item())

    Equivalent to::

        optimizer.zero_grad()
        loss = meta(sample()).loss.mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(meta.parameters(), clip)
        optimizer.step()
    """

    def __init__(
        self,
        meta: Callable[[TaskBatch], MetaOutput],
        optimizer: torch.optim.Optimizer,
        sample: Callable[[], TaskBatch],
        *,
        clip: float | None = None,
        generators: Sequence[torch.Generator] = (),
        enabled: bool = True,
    ) -> None:
        self._meta = meta
        self._optimizer = optimizer
        self._sample = sample
        self._limit = math.inf if clip is None else clip
        self._generators = tuple(generators)
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._plans: dict[Hashable, _Plan] = {}
        self._never = None if enabled else "CUDA graphs were switched off"
        self._never = self._never or _why_never(optimizer, self._parameters)
        self._last: _Plan | None = None

    @property
    def reason(self) -> str | None:
        """Why steps like the last one are not replayed from a graph; None if they are, or will."""
        return self._never or (self._last.reason if self._last else None)

    def reset(self) -> None:
        """Forget every graph: what is called next is captured anew."""
        self._plans.clear()
        self._last = None

    def __call__(self) -> StepOutcome:
        """Do one meta-step."""
        if self._never is not None:
            return self._step(self._sample())
        with _on(self._parameters[0].device):
            tasks = None if self._generators else self._sample()
            plan = self._last = self._plan(tasks)
            if plan.graph is None and plan.reason is None and plan.steps >= WARM_UP:
                self._capture(plan, tasks)
            if plan.graph is not None:
                return plan.graph.run(tasks)
            plan.steps += 1
            with _beside(self._parameters[0].device):
                return self._step(self._sample() if tasks is None else tasks)

    def _step(self, tasks: TaskBatch) -> StepOutcome:
        self._optimizer.zero_grad()
        loss = self._forward_backward(tasks)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._limit)
        self._update(~torch.isfinite(loss + norm))
        return StepOutcome(loss, norm)

    def _forward_backward(self, tasks: TaskBatch) -> Tensor:
        """The mean loss, its gradients in `.grad`."""
        # On a GPU autograd has to do it anyway, and its mean is one kernel less than another.
        if isinstance(self._meta, Learner) and tasks.support_x.device.type == "cpu":
            return self._meta.forward_backward(tasks).loss.mean()
        loss = self._meta(tasks).loss.mean()
        loss.backward()
        return loss.detach()

    def _update(self, broken: Tensor) -> None:
        """Let the optimizer step unless the step is `broken`, which no host needs to read."""
        if not _skips(self._optimizer):
            if not broken:
                self._optimizer.step()
            return
        # As torch.amp.GradScaler tells a fused optimizer.
        fused = self._optimizer
        fused.found_inf, fused.grad_scale = broken.float(), None  # type: ignore[attr-defined]
        try:
            fused.step()
        finally:
            del fused.found_inf, fused.grad_scale  # type: ignore[attr-defined]

    def _plan(self, tasks: TaskBatch | None) -> _Plan:
        key = self._key(tasks)
        if key not in self._plans:
            while len(self._plans) >= GRAPHS:
                del self._plans[next(iter(self._plans))]
            # Kept so that no other object gets the identity that the key holds.
            held = (self._optimizer.state, self._optimizer.param_groups)
            self._plans[key] = _Plan(held)
        return self._plans[key]

    def _key(self, tasks: TaskBatch | None) -> Hashable:
        """All that a graph has taken for constant, as far as it can be seen."""
        optimizer = self._optimizer
        modules = self._meta.modules() if isinstance(self._meta, nn.Module) else ()
        return (
            None if tasks is None else _form(tasks),
            id(optimizer.state), id(optimizer.param_groups),
            *(_settings(group) for group in optimizer.param_groups),
            *((p.data_ptr(), p.requires_grad) for p in self._parameters),
            tuple(module.training for module in modules),
        )  # fmt: skip

    def _capture(self, plan: _Plan, tasks: TaskBatch | None) -> None:
        inputs = None if tasks is None else _copy_of(tasks)
        try:
            replay, outcome = _captured(
                lambda: self._step(self._sample() if inputs is None else inputs), self._generators
            )
        except RuntimeError as error:
            plan.reason = f"it cannot be captured: {' '.join(str(error).split())}"
            return
        gradients = [p.grad for p in self._parameters]
        plan.graph = _Graph(replay, outcome, inputs, self._parameters, gradients)


def rates_on_device(optimizer: torch.optim.Optimizer) -> None:
    """Make the learning rates tensors beside the parameters, which a graph reads at each replay.

    Set one by ``group["lr"].fill_(value)``.
    """
    for group in optimizer.param_groups:
        device = group["params"][0].device
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32).to(device, copy=True)


# ---- what was captured --------------------------------------------------------------------------


@dataclass
class _Graph:
    replay: Callable[[], None]
    outcome: StepOutcome
    inputs: TaskBatch | None  # None: sampling is in the graph
    parameters: Sequence[Tensor]
    gradients: Sequence[Tensor | None]

    def run(self, tasks: TaskBatch | None) -> StepOutcome:
        if self.inputs is not None and tasks is not None:
            torch._foreach_copy_(_tensors(self.inputs), _tensors(tasks))
        self.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.outcome


@dataclass
class _Plan:
    """How steps of one key run: `steps` of them so far without a graph, and why for good."""

    held: object
    steps: int = 0
    reason: str | None = None
    graph: _Graph | None = field(default=None, repr=False)


def _captured(
    step: Callable[[], StepOutcome], generators: Sequence[torch.Generator]
) -> tuple[Callable[[], None], StepOutcome]:
    """Record a step without doing it; the replay does it, and writes to the same outcome."""
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        outcome = step()
    return graph.replay, outcome


def _why_never(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> str | None:
    kinds = sorted({parameter.device.type for parameter in parameters})
    if kinds != ["cuda"]:
        return f"CUDA graphs need a GPU, and the parameters are on the {' and '.join(kinds)}"
    if len({parameter.device for parameter in parameters}) > 1:
        return "the parameters are on several GPUs"
    name = type(optimizer).__name__
    if not _skips(optimizer):
        return (
            f"{name} is not fused, so that a step that is not finite could not be left out "
            "without waiting for the GPU: give it fused=True"
        )
    if not all(group.get("capturable", True) for group in optimizer.param_groups):
        return f"{name} counts its steps on the CPU: give it capturable=True"
    return None


def _skips(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its kernels leave everything as it is where they are told so on the device."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def _settings(group: dict[str, object]) -> Hashable:
    """A group's numbers by value; tensors by identity, since a graph reads their values."""
    return tuple(
        (name, id(value) if isinstance(value, Tensor) else value)
        for name, value in group.items()
        if name != "params" and isinstance(value, (Tensor, Hashable))
    )


def _form(tasks: TaskBatch) -> Hashable:
    """What a graph takes for constant of tasks that are copied to where it reads them."""
    tensors = [(t.shape, t.dtype, t.device, t.requires_grad) for t in _tensors(tasks)]
    kinds = (tasks.support_weight is None, tasks.query_weight is None)
    return (*tensors, *kinds, tasks.known_ways)


def _copy_of(tasks: TaskBatch) -> TaskBatch:
    copies = tasks._map(lambda tensor: tensor.detach().clone(memory_format=torch.contiguous_format))
    return copies if tasks.known_ways is None else copies.with_known_ways(tasks.known_ways)


def _tensors(tasks: TaskBatch) -> list[Tensor]:
    every = (
        tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y,
        tasks.support_weight, tasks.query_weight,
    )  # fmt: skip
    return [tensor for tensor in every if tensor is not None]


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """Streams and graphs belong to the current GPU."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield


@contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """On a stream of its own, as warm-ups of a capture must be."""
    if device.type != "cuda":
        yield
        return
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(main)
    with torch.cuda.stream(side):
        yield
    main.wait_stream(side)
