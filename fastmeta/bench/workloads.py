"""What is measured: networks, task shapes and inner loops, declared as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "cross_entropy": F.cross_entropy,
}


@dataclass(frozen=True)
class Workload:
    """One meta-step of exact second-order MAML on a chain of linear layers.

    A meta-step is forward and meta-gradient, averaged over the tasks, into every parameter and,
    with ``learns_inputs`` (a head on learned features, as in ANIL), into support and query inputs.
    """

    name: str
    family: str
    sizes: tuple[int, ...]
    activation: str
    loss: str
    tasks: int
    support: int
    query: int
    steps: int
    inner_lr: float = 0.01
    learns_inputs: bool = False

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of every linear layer."""
        return list(zip(self.sizes[:-1], self.sizes[1:], strict=True))

    @property
    def parameter_count(self) -> int:
        return sum((inputs + 1) * outputs for inputs, outputs in self.layers)

    def module(self) -> nn.Sequential:
        """The network as an ordinary module, freshly initialised."""
        modules: list[nn.Module] = []
        for inputs, outputs in self.layers:
            modules += [nn.Linear(inputs, outputs), ACTIVATIONS[self.activation]()]
        return nn.Sequential(*modules[:-1])


@dataclass(frozen=True)
class Problem:
    """A workload with its numbers: parameters by name and a batch of tasks.

    ``support_x`` [T, S, I], ``query_x`` [T, Q, I]; targets [T, S, O] and [T, Q, O] for ``"mse"``,
    labels [T, S] and [T, Q] for ``"cross_entropy"``.
    """

    workload: Workload
    parameters: dict[str, Tensor]
    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor

    def double(self) -> Problem:
        """The same numbers in float64."""
        return replace(
            self,
            parameters={name: value.double() for name, value in self.parameters.items()},
            support_x=self.support_x.double(),
            support_y=_double_unless_labels(self.support_y),
            query_x=self.query_x.double(),
            query_y=_double_unless_labels(self.query_y),
        )

    def part(self, start: int, stop: int) -> Problem:
        """The problem with the tasks ``start`` to ``stop`` only."""
        kept = slice(start, stop)
        return replace(
            self,
            workload=replace(self.workload, tasks=len(range(self.workload.tasks)[kept])),
            support_x=self.support_x[kept],
            support_y=self.support_y[kept],
            query_x=self.query_x[kept],
            query_y=self.query_y[kept],
        )

    def module(self) -> nn.Sequential:
        """The network as an ordinary module with this problem's parameters (copied)."""
        module = self.workload.module().to(self.support_x.dtype)
        module.load_state_dict(self.parameters)
        return module

    @property
    def data_bytes(self) -> int:
        """Bytes that a meta-step must at least read (tasks) and write (input gradients)."""
        inputs = _bytes(self.support_x) + _bytes(self.query_x)
        targets = _bytes(self.support_y) + _bytes(self.query_y)
        return targets + inputs * (2 if self.workload.learns_inputs else 1)


def make_problem(workload: Workload, seed: int = 0) -> Problem:
    """Draw parameters (torch's default initialisation) and tasks in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parameters = {name: p.detach() for name, p in workload.module().named_parameters()}
        draw = _sinusoids if workload.family == "sinusoid" else _random_tasks
        return Problem(workload, parameters, *draw(workload))


def _sinusoids(workload: Workload) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    amplitude = torch.empty(workload.tasks, 1, 1).uniform_(0.1, 5.0)
    phase = torch.empty(workload.tasks, 1, 1).uniform_(0.0, torch.pi)
    x = torch.empty(workload.tasks, workload.support + workload.query, 1).uniform_(-5.0, 5.0)
    return _split(workload, x, amplitude * torch.sin(x - phase))


def _random_tasks(workload: Workload) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    samples = (workload.tasks, workload.support + workload.query)
    outputs = workload.sizes[-1]
    x = torch.randn(*samples, workload.sizes[0])
    if workload.loss == "cross_entropy":
        return _split(workload, x, torch.arange(samples[1]).remainder(outputs).expand(samples))
    return _split(workload, x, torch.randn(*samples, outputs))


def _split(workload: Workload, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    support = workload.support
    return (
        x[:, :support].contiguous(),
        y[:, :support].contiguous(),
        x[:, support:].contiguous(),
        y[:, support:].contiguous(),
    )


def _double_unless_labels(targets: Tensor) -> Tensor:
    return targets.double() if targets.is_floating_point() else targets


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def sinusoid(tasks: int, steps: int) -> Workload:
    """The sinusoid regression of MAML (Finn et al. 2017, section 5.1)."""
    name = f"sinusoid-T{tasks}-K{steps}"
    return Workload(name, "sinusoid", (1, 40, 40, 1), "relu", "mse", tasks, 10, 10, steps)


def head(features: int) -> Workload:
    """A 5-way linear head on learned features: what ANIL adapts."""
    return Workload(
        name=f"head-{features}",
        family="head",
        sizes=(features, 5),
        activation="relu",
        loss="cross_entropy",
        tasks=32,
        support=25,
        query=75,
        steps=5,
        learns_inputs=True,
    )


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        sinusoid(tasks=1, steps=1),
        sinusoid(tasks=25, steps=1),
        sinusoid(tasks=25, steps=5),
        sinusoid(tasks=256, steps=5),
        sinusoid(tasks=1024, steps=1),
        sinusoid(tasks=1024, steps=5),
        sinusoid(tasks=4096, steps=10),
        Workload("rl", "regression", (20, 64, 64, 6), "tanh", "mse", 40, 200, 200, 1),
        Workload("per-user", "regression", (256, 64, 64, 1), "relu", "mse", 256, 20, 20, 1),
        head(features=64),
        head(features=1600),
    )
}

# What a quick run measures.
SMALL = ("sinusoid-T1-K1", "sinusoid-T25-K1", "sinusoid-T25-K5", "sinusoid-T256-K5")
