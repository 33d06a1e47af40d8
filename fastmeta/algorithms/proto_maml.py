"""Proto-MAML: MAML whose head starts as the prototypes of the task."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from fastmeta.algorithms.classes import asked_ways, count_classes
from fastmeta.algorithms.learner import Learner, check_tasks
from fastmeta.algorithms.plan import autocast, looks_of
from fastmeta.algorithms.shared_encoder import check_input
from fastmeta.backends import requested_backend
from fastmeta.counts import whole_number
from fastmeta.functional.eager import runs_eagerly
from fastmeta.functional.forward import call_module, module_lock
from fastmeta.functional.prototypes import prototypes
from fastmeta.inner_loop.checks import check_model, check_sizes
from fastmeta.inner_loop.choose import Choice, Engine, check_engine, choose
from fastmeta.inner_loop.engines.task_forward import TaskForward
from fastmeta.inner_loop.loop import InnerLoop, UnknownTensors, check_grad_mode, check_rates
from fastmeta.inner_loop.reading.snapshot import Snapshot
from fastmeta.tasks import Adapted, MetaOutput, TaskBatch
from fastmeta.tasks.checks import check_rows

__all__ = ["ProtoMAML"]

Result = TypeVar("Result")

_HEAD = ("head.weight", "head.bias")
_MOST_CHOSEN = 64  # ragged batches have ever new looks


class ProtoMAML(Learner):
    """Proto-MAML (Triantafillou et al. 2020): MAML on an encoder and a linear head.

    Each task's head starts where its outputs are those of a prototypical network, w_n = 2 c_n and
    b_n = -|c_n|^2 for the mean c_n of the class's embedded support (Snell et al. 2017, equation 8).
    Then encoder and head take the inner steps. The meta-gradient also goes through the start of the
    head, so all that is learned is the encoder, and tasks may differ in their classes from batch
    to batch.

    Args:
        encoder: any module that makes features [n, D] of samples [n, ...]. Parameters that do not
            require grad neither adapt nor learn. Norms use the statistics of the task at hand, in
            train() and eval() alike, and never change the running ones.
        inner_lr: rate of the inner steps.
        inner_steps: 0 or more; a call can say otherwise. With 0 it is a prototypical network.
        order: 2 for the exact meta-gradient, 1 to take the inner gradients as constants.
        engine: "auto", "resident", "stepwise", "layered", "vmap" or "reference".

    Raises:
        ValueError, TypeError: an argument that is not as above.

    Equivalent to, for each task::

        c = torch.stack([encoder(support_x)[support_y == n].mean(0) for n in range(n_way)])
        model = nn.Sequential(OrderedDict(encoder=encoder, head=nn.Linear(D, n_way)))
        theta = {**dict(model.named_parameters()),
                 "head.weight": 2 * c, "head.bias": -c.square().sum(1)}
        # From here as in MAML: the inner gradient takes encoder and head for independent, the
        # meta-gradient goes through c too.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        inner_lr: float = 0.01,
        inner_steps: int = 1,
        order: int = 2,
        engine: str = "auto",
    ) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"encoder must be an nn.Module, not {type(encoder).__name__}")
        check_engine(engine)
        loop = InnerLoop(_with_head(encoder, 1, 1), "cross_entropy", inner_steps, order, _HEAD)
        check_rates(loop, {}, inner_lr)
        self.encoder = encoder
        self.inner_lr = inner_lr
        self.inner_steps = inner_steps
        self.order = order
        self.engine = engine
        self._known: _Known | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": None}

    @runs_eagerly
    def forward(
        self, tasks: TaskBatch, inner_steps: int | None = None, *, n_way: int | None = None
    ) -> MetaOutput:
        """Adapt to each task's support set and judge on its query set.

        Args:
            tasks: T tasks with int64 labels, on the encoder's device, in its dtype.
            inner_steps: instead of the number given at construction.
            n_way: the number of classes of each task; None: as many as the support has labels.

        Returns:
            `loss` [T], the cross-entropy of the queries, and `predictions` [T, Q, N], logits;
            differentiable into the encoder's parameters and the tasks' tensors that require grad.

        Raises:
            TypeError: labels that are not int64, inputs of another dtype than the encoder's.
            ValueError: labels outside [0, n_way), a class without support in some task, or tasks
                that do not fit the encoder.
        """
        check_tasks(tasks)
        n_way = count_classes(tasks.support_y, tasks.query_y, asked_ways(tasks, n_way))
        loss, predictions = self._run(
            lambda engine, loop, parameters: engine.meta_loss(
                loop, parameters, self.inner_lr, tasks
            ), tasks, n_way, inner_steps,
        )  # fmt: skip
        check_rows("query_x", tasks.query_x.shape[1:], predictions.shape[1:])
        return MetaOutput(loss, predictions, tasks.query_y, tasks.query_weight)

    @runs_eagerly
    def adapt(
        self,
        support_x: Tensor,
        support_y: Tensor,
        support_weight: Tensor | None = None,
        *,
        inner_steps: int | None = None,
        n_way: int | None = None,
    ) -> Adapted:
        """Encoder and head adapted to T tasks, differentiable end to end.

        Its `parameters` are those of the encoder as "encoder.<name>", and "head.weight" [T, N, D]
        and "head.bias" [T, N].

        Args:
            support_x: [T, S, ...].
            support_y: [T, S] int64.
            support_weight: [T, S]; 0 marks padding.
            inner_steps: instead of the number given at construction.
            n_way: the number of classes of each task; None: as many as there are labels.

        Raises:
            TypeError, ValueError: as `forward`.
        """
        tasks = TaskBatch.of_support(support_x, support_y, support_weight)
        n_way = count_classes(tasks.support_y, None, n_way)
        return self._run(
            lambda engine, loop, parameters: Adapted(
                loop.module,
                {**parameters, **engine.adapt(loop, parameters, self.inner_lr, tasks)},
                len(tasks),
            ), tasks, n_way, inner_steps,
        )  # fmt: skip

    def choice(self, tasks: TaskBatch) -> Choice:
        """The engine that runs the inner loop on such tasks; see `fastmeta.explain`.

        Raises:
            TypeError, ValueError: as `forward`.
        """
        n_way = count_classes(tasks.support_y, tasks.query_y, asked_ways(tasks, None))
        return self._start(tasks, n_way, None)[0]

    def extra_repr(self) -> str:
        return f"inner_lr={self.inner_lr:g}, inner_steps={self.inner_steps}, order={self.order}"

    def _run(
        self, part: Callable[[Engine, InnerLoop, dict[str, Tensor]], Result],
        tasks: TaskBatch, n_way: int, inner_steps: int | None,
    ) -> Result:  # fmt: skip
        try:
            chosen, loop, parameters = self._start(tasks, n_way, inner_steps)
            return part(chosen.engine, loop, parameters)
        except UnknownTensors:  # what was found out no longer holds
            self._known = None
            chosen, loop, parameters = self._start(tasks, n_way, inner_steps)
            return part(chosen.engine, loop, parameters)

    def _start(
        self, tasks: TaskBatch, n_way: int, inner_steps: int | None
    ) -> tuple[Choice, InnerLoop, dict[str, Tensor]]:
        """The engine, the inner loop of encoder and head, and where it starts."""
        check_grad_mode()
        check_input(self.encoder, tasks.support_x)
        with module_lock:
            known, own = self._look_at_encoder()
        # Of copies: a forward that writes to its parameters is refused only afterwards.
        copies = {name: p.clone() for name, p in own.items()}
        features = self._support_features(known.forward, copies, tasks)
        centres = prototypes(features, tasks.support_y, n_way, tasks.support_weight)
        parameters = _at_start(own, centres)
        steps = self.inner_steps if inner_steps is None else inner_steps
        steps = whole_number("inner steps", steps, least=0)
        key = (
            steps, self.order, self.engine, requested_backend(), autocast(),
            *looks_of(parameters, self.inner_lr, tasks),
        )  # fmt: skip
        if key not in known.chosen:
            if len(known.chosen) >= _MOST_CHOSEN:
                known.chosen.clear()
            known.chosen[key] = self._choose(parameters, tasks, steps)
        return *known.chosen[key], parameters

    def _look_at_encoder(self) -> tuple[_Known, dict[str, Tensor]]:
        """What was found out of the encoder as it is built now, and its parameters."""
        known = self._known
        if known is not None and known.snapshot.module is self.encoder:
            own = known.snapshot.parameters()
            if own is not None and known.forward.native is self._may_be_native():
                return known, own
        forward = TaskForward(self.encoder, native=self._may_be_native())
        known = self._known = _Known(Snapshot(self.encoder), forward, {})
        return known, dict(self.encoder.named_parameters())

    def _may_be_native(self) -> bool:
        return self.engine in ("auto", "resident")

    def _choose(
        self, parameters: Mapping[str, Tensor], tasks: TaskBatch, steps: int
    ) -> tuple[Choice, InnerLoop]:
        adapted = tuple(
            name for name, p in self.encoder.named_parameters(prefix="encoder") if p.requires_grad
        )
        head = _with_head(self.encoder, *parameters[_HEAD[0]].shape[1:])
        loop = InnerLoop(head, "cross_entropy", steps, self.order, (*adapted, *_HEAD))
        check_model(loop, parameters, self.inner_lr, tasks)
        if tasks.query_x.shape[1] == 1:  # it may be squeezed, and then no engine runs
            check_sizes(loop, parameters, tasks, {tasks.support_x.shape[1]})
        return choose(loop, tasks, parameters, self.inner_lr, self.engine), loop

    def _support_features(
        self, forward: TaskForward, own: dict[str, Tensor], tasks: TaskBatch
    ) -> Tensor:
        """[T, S, D]: as the first inner step sees them."""
        if "reference" in (self.engine, requested_backend()):
            features = torch.stack([call_module(self.encoder, own, x) for x in tasks.support_x])
        else:
            features = forward(own, tasks.support_x)
        if features.dim() != 3:
            raise ValueError(
                f"encoder must make features [S, D] of a task's support_x "
                f"{list(tasks.support_x.shape[1:])}: it made {list(features.shape[1:])}"
            )
        return features


class _Known(NamedTuple):
    """An encoder as it was looked at.

    Attributes:
        snapshot: whether it still is that.
        forward: makes features of support samples.
        chosen: engines and inner loops of encoder and head, by what tensors and settings were like.
    """

    snapshot: Snapshot
    forward: TaskForward
    chosen: dict[Hashable, tuple[Choice, InnerLoop]]


def _at_start(own: Mapping[str, Tensor], centres: Tensor) -> dict[str, Tensor]:
    """The encoder's parameters, and of each task's head those with outputs |f|^2 - |f - c_n|^2."""
    # Views, since the head depends on the encoder: the inner gradient takes the two apart.
    with torch.enable_grad():
        encoder = {f"encoder.{name}": p.view_as(p) for name, p in own.items()}
    head = (2 * centres, -centres.square().sum(-1))
    return {**encoder, **dict(zip(_HEAD, head, strict=True))}


def _with_head(encoder: nn.Module, n_way: int, width: int) -> nn.Sequential:
    # Of the head names and shapes are used; its numbers are for trials of the forward.
    like = next(encoder.parameters(), torch.empty(()))
    head = skip_init(nn.Linear, width, n_way, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
    return nn.Sequential(OrderedDict(encoder=encoder, head=head))
