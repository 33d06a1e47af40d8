"""MAML: parameters from which a few gradient steps fit a new task."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastmeta.algorithms.learner import Learner, backward_of_mean, check_tasks
from fastmeta.algorithms.options import Names, check_options, chosen_names
from fastmeta.algorithms.plan import (
    Plan,
    above,
    adapt,
    autocast,
    is_exact,
    kinds_of,
    looks_of,
    meta_gradient,
    meta_loss,
    rate_kinds,
    saves_much,
)
from fastmeta.backends import requested_backend
from fastmeta.counts import whole_number
from fastmeta.functional.eager import runs_eagerly
from fastmeta.functional.forward import has_hooks, module_lock
from fastmeta.functional.loss_programs import values_read
from fastmeta.functional.losses import Loss, named
from fastmeta.inner_loop.checks import (
    check_dropout,
    check_labels,
    check_model,
    check_read,
    check_sizes,
    loss_as_explained,
)
from fastmeta.inner_loop.choose import Choice, choose
from fastmeta.inner_loop.engines import resident
from fastmeta.inner_loop.loop import (
    InnerLoop,
    Rates,
    UnknownTensors,
    check_grad_mode,
    check_rates,
)
from fastmeta.inner_loop.prefix import Prefix, mostly_words, split, split_inputs, split_words
from fastmeta.inner_loop.reading.snapshot import Snapshot
from fastmeta.inner_loop.target_labels import NoSuchClass
from fastmeta.tasks import Adapted, MetaOutput, TaskBatch

__all__ = ["MAML", "Names"]

Result = TypeVar("Result")


_most_plans = 256  # of one learner; ragged batches have ever new looks
# In the memory of an inner loop: numbers of samples of which the module's outputs were checked, and
# of which its loss was read.
_SIZES, _READ_SIZES = "numbers of samples", "numbers of samples that the loss was read for"


class MAML(Learner):
    """Model-agnostic meta-learning (Finn, Abbeel, Levine 2017, algorithm 1).

    Its parameters are the model's own, and the inner rates where they are learned, so optimizers,
    schedulers, `state_dict` and DDP treat it like any module. torch.compile runs it between its
    graphs; ``fullgraph=True`` around it, torch.export and torch.func transforms are a RuntimeError.

    Args:
        model: any module. Parameters that do not require grad neither adapt nor learn. Norms use
            the statistics of the task at hand, in train() and eval() alike, and never change the
            running ones. Attributes of its modules may change between calls, and so may global
            variables, attributes and closures that its forward names; what it finds by a text, such
            as `getattr` or `os.environ`, is as it was at the first one.
        inner_lr: rate of the inner steps, or where the learned rates start.
        inner_steps: 0 or more; a call can say otherwise.
        loss: "cross_entropy", of predictions [S, N] and labels [S] or, with a label at each place
            of a sample, [S, N, P...] and [S, P...]; "mse", "bce" (or PyTorch's own with nothing
            set, such as `F.cross_entropy`); or a callable (predictions [S, O], targets) -> scalar,
            with a third argument `weight` [S] if padded tasks are to work. On a CPU the native
            kernels run a function, method or module, too, if it is a mean or a sum over samples of
            what arithmetic, PyTorch's losses and torch.distributions make of each sample's own
            predictions, targets and weight, and of sums and means over all targets and weights
            (`(weight * losses).sum() / weight.sum()`); what it names may change between calls.
            Where PyTorch would refuse values there (a scale below 0, a sample outside of a
            support), the task's loss and gradients are NaN then; labels among floating targets,
            `y[:, 0].long()`, are checked before.
        order: 2 for the exact meta-gradient, 1 for first-order MAML (section 5.2 of the paper).
        learn_inner_lr: None, "tensor" (one rate a parameter tensor), or "element" (Meta-SGD).
        per_step_lr: learn one set of rates for each inner step (LSLR of Antoniou et al. 2019).
        adapt_parameters: names of the parameters that adapt, or a predicate on names; None: all.
        engine: "auto", "resident", "stepwise", "layered", "vmap" or "reference".
        precision: of the products: "fp32" is that of the inputs, float64 included. On NVIDIA GPUs
            float32 inputs can be rounded to "tf32" or "bf16", or taken in two parts, "tf32x3"
            (near float32, see `products_in`); sums and all that is kept are float32. Layers below
            those that adapt are not touched by it.
        randomness: for a model with dropout in training mode under engine="vmap": "different" or
            "same" masks over tasks.

    Raises:
        ValueError, TypeError: an argument that is not as above.

    Equivalent to, for each task::

        theta = dict(model.named_parameters())
        for _ in range(inner_steps):
            loss = loss_fn(functional_call(model, theta, (support_x,)), support_y)
            g = torch.autograd.grad(loss, theta.values(), create_graph=True)
            theta = {n: p - inner_lr * g_p for (n, p), g_p in zip(theta.items(), g)}
        loss = loss_fn(functional_call(model, theta, (query_x,)), query_y)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float = 0.01,
        inner_steps: int = 1,
        loss: Loss = "cross_entropy",
        order: int = 2,
        learn_inner_lr: str | None = None,
        per_step_lr: bool = False,
        adapt_parameters: Names | None = None,
        engine: str = "auto",
        precision: str = "fp32",
        randomness: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, not {type(model).__name__}")
        check_options(learn_inner_lr, per_step_lr, engine, precision, randomness)
        if isinstance(inner_lr, Mapping):
            raise TypeError(
                "inner_lr must be a number: learn_inner_lr makes rates by parameter, inner_rates, "
                "and fastmeta.functional.inner_sgd takes them by name"
            )
        self.model = model
        self.inner_lr = inner_lr
        self.inner_steps = inner_steps
        self.loss = loss
        self.order = order
        self.learn_inner_lr = learn_inner_lr
        self.per_step_lr = per_step_lr
        self.adapt_parameters = chosen_names(model, adapt_parameters)
        self.engine = engine
        self.precision = precision
        self.randomness = randomness
        self._snapshot: Snapshot | None = None
        self._plans: dict[Any, Plan] = {}
        parameters = dict(model.named_parameters())
        loop = self._loop(parameters, inner_steps)
        check_rates(loop, parameters, _as_float(inner_lr))
        # By parameter name, with "/" for ".", which the name of a parameter cannot hold.
        self._rate_keys = {name: name.replace(".", "/") for name in loop.adapted if learn_inner_lr}
        self.inner_rates = nn.ParameterDict(
            {key: self._initial_rate(parameters[name]) for name, key in self._rate_keys.items()}
        )

    @runs_eagerly
    def forward(self, tasks: TaskBatch, inner_steps: int | None = None) -> MetaOutput:
        """Adapt to each task's support set and judge on its query set.

        Evaluate under `torch.no_grad()`: where a backward may come, native kernels compute the
        gradient of the losses' sum along with them.

        Args:
            tasks: T tasks on the model's device, in its dtype.
            inner_steps: instead of the number given at construction.

        Returns:
            `loss` [T] and `predictions` [T, Q, O], differentiable into the model's parameters, the
            learned rates, and the tasks' tensors that require grad.

        Raises:
            ValueError, TypeError: tasks that do not fit the model or the loss.
        """
        check_tasks(tasks)
        loss, predictions = self._run(meta_loss, tasks, inner_steps)
        return MetaOutput(loss, predictions, tasks.query_y, tasks.query_weight)

    @runs_eagerly
    def forward_backward(self, tasks: TaskBatch, *args: Any, **options: Any) -> MetaOutput:
        """Adapt, judge, and add the gradients of the mean query loss to every `.grad`.

        As `Learner.forward_backward` says. On a CPU native kernels do it without autograd, wherever
        nothing but the gradients could tell: no hooks on tensors or modules, no tensors of the
        tasks that require grad. Hooks on nodes of a graph, those that gather a parameter's gradient
        included, cannot be seen, and do not run.

        Args:
            tasks: T tasks on the model's device, in its dtype.
            inner_steps: instead of the number given at construction.

        Returns:
            `loss` [T] and `predictions` [T, Q, O], detached.

        Raises:
            ValueError, TypeError: tasks that do not fit the model or the loss; no `.grad` is
                changed then.
            RuntimeError: there is nothing to differentiate, under `torch.no_grad()` for example.
        """
        alone = type(self).forward is MAML.forward and not has_hooks(self)
        if not alone or not torch.is_grad_enabled():
            return super().forward_backward(tasks, *args, **options)
        return self._forward_backward(tasks, *args, **options)

    @runs_eagerly
    def adapt(
        self,
        support_x: Tensor,
        support_y: Tensor,
        support_weight: Tensor | None = None,
        *,
        inner_steps: int | None = None,
    ) -> Adapted:
        """The model adapted to T tasks, differentiable end to end.

        Args:
            support_x: [T, S, ...].
            support_y: [T, S] labels or [T, S, O...] targets.
            support_weight: [T, S]; 0 marks padding.
            inner_steps: instead of the number given at construction.

        Raises:
            ValueError, TypeError: tasks that do not fit the model or the loss.
        """
        tasks = TaskBatch.of_support(support_x, support_y, support_weight)
        fast = self._run(adapt, tasks, inner_steps)
        return Adapted(self.model, fast, len(tasks), self.randomness)

    def choice(
        self, device: torch.device | str | None = None, tasks: TaskBatch | None = None
    ) -> Choice:
        """Which engine runs this, and why not the others.

        With tasks, what runs them. Without, what ran the tasks of the latest kind, if some ran with
        these settings; or what would run most, here or on another device: what only tasks can tell,
        such as the shape of the targets or control flow on values, is not seen then.

        Raises:
            ValueError: a demand that cannot be met, dropout that a call would refuse, tasks that do
                not fit, or both tasks and a device.
        """
        if tasks is not None:
            if device is not None:
                raise ValueError("device is where the tasks are: give one of the two")
            check_tasks(tasks)
            return self._prepare(tasks, None)[0].choice
        with module_lock:
            return (self._choice_of_calls() if device is None else None) or self._guess(device)

    def _choice_of_calls(self) -> Choice | None:
        """Of the latest kind of tasks that ran as the settings and the module are now."""
        self._parameters_now()
        settings = self._settings(self.inner_steps)
        known = [plan.choice for key, plan in self._plans.items() if key[0] == settings]
        return known[-1] if known else None

    def _guess(self, device: torch.device | str | None) -> Choice:
        parameters = {
            name: p if device is None else torch.empty_like(p, device=device)
            for name, p in self.model.named_parameters()
        }
        loop = self._loop(dict(self.model.named_parameters()), self.inner_steps)
        check_dropout(loop)
        if not self._runs_plainly():
            loss, unread = loss_as_explained(loop.loss, *_likely_outputs(parameters))
            loop = replace(loop, loss=loss, unread=unread)
        rates = self._rates(self.inner_steps)
        cut = self._cut(loop, parameters, rates, None)
        if cut is not None:
            loop = replace(loop, module=cut[1])
            parameters = {name: parameters[name] for name in loop.shapes}
        return choose(loop, None, parameters, rates, self.engine)

    def extra_repr(self) -> str:
        loss = self.loss if isinstance(self.loss, str) else "custom"
        return (
            f"inner_lr={self.inner_lr:g}, inner_steps={self.inner_steps}, loss={loss}, "
            f"order={self.order}, learn_inner_lr={self.learn_inner_lr}"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_snapshot": None, "_plans": {}}

    def _forward_backward(self, tasks: TaskBatch, inner_steps: int | None = None) -> MetaOutput:
        check_tasks(tasks)
        loss, predictions, done = self._run(meta_gradient, tasks, inner_steps)
        out = MetaOutput(loss, predictions, tasks.query_y, tasks.query_weight)
        if done:
            return out
        backward_of_mean(loss)
        return out.detach()

    def _run(
        self, part: Callable[..., Result], tasks: TaskBatch, inner_steps: int | None
    ) -> Result:
        """`part` of the plan for these tasks, the parameters, the rates and the tasks."""
        plan, parameters, rates = self._prepare(tasks, inner_steps)
        try:
            return part(plan, parameters, rates, tasks)
        except UnknownTensors:
            return part(*self._prepare_anew(plan, tasks, inner_steps), tasks)

    def _prepare(
        self, tasks: TaskBatch, inner_steps: int | None, as_written: bool = False
    ) -> tuple[Plan, dict[str, Tensor], Rates]:
        """as_written: run the loss as it came, even if it can be read."""
        check_grad_mode()
        steps = self.inner_steps if inner_steps is None else inner_steps
        if type(steps) is not int:  # a tensor might change
            steps = whole_number("inner_steps", steps, least=0)
        with module_lock:
            parameters = self._parameters_now()
            rates = self._rates(steps)
            key = self._settings(steps), as_written, *looks_of(parameters, rates, tasks)
            plan = self._plans.get(key)
            if plan is None:
                plan = self._plan_for(key, parameters, rates, tasks, steps, as_written)
        try:
            check_labels(plan.loop, plan.n_way, tasks)
        except ValueError as error:
            if not plan.renames_loss or isinstance(error, NoSuchClass):
                raise
            return self._prepare(tasks, inner_steps, as_written=True)  # it may ignore such labels
        return plan, parameters, rates

    def _prepare_anew(
        self, plan: Plan, tasks: TaskBatch, inner_steps: int | None
    ) -> tuple[Plan, dict[str, Tensor], Rates]:
        """Without `plan`, which was made before something that it does not know of."""
        with module_lock:
            self._plans = {key: other for key, other in self._plans.items() if other is not plan}
        return self._prepare(tasks, inner_steps)

    def _parameters_now(self) -> dict[str, Tensor]:
        snapshot = self._snapshot
        known = snapshot is not None and snapshot.module is self.model
        parameters = snapshot.parameters() if snapshot is not None and known else None
        if parameters is None:
            self._plans = {}
            self._snapshot = Snapshot(self.model)
            parameters = dict(self.model.named_parameters())
        return parameters

    def _settings(self, steps: int) -> Hashable:
        """What a plan depends on beside the module and the tensors."""
        loss = named(self.loss)
        return (
            steps, self.order, loss, None if isinstance(loss, str) else values_read(loss),
            self.adapt_parameters, self.engine, self.randomness, self.precision,
            requested_backend(), autocast(),
        )  # fmt: skip

    def _plan_for(
        self, key: Hashable, parameters: dict[str, Tensor], rates: Rates, tasks: TaskBatch,
        steps: int, as_written: bool,
    ) -> Plan:  # fmt: skip
        """The plan of batches that differ from these in T, S and Q only, found by `key` next."""
        general = self._settings(steps), as_written, *kinds_of(parameters, tasks)
        plan = self._plans.get(general)
        if plan is None or plan.rate_kinds != rate_kinds(rates):
            plan = self._plan(parameters, rates, tasks, steps, as_written)
        if len(self._plans) >= _most_plans:
            self._plans.clear()
        self._plans[general] = plan
        try:
            known = plan.loop.memory.setdefault(_SIZES, set())
            loop = self._loop(parameters, steps, tasks.support_y)
            check_sizes(replace(loop, loss=plan.loop.loss), parameters, tasks, known)
            read_at = plan.loop.memory.setdefault(_READ_SIZES, _sizes(tasks))
            if plan.renames_loss and not _sizes(tasks) <= read_at:
                check_read(loop, parameters, tasks, plan.loop.loss)
                read_at |= _sizes(tasks)
        except ValueError:
            if not plan.renames_loss:
                raise
            plan = self._plan_for(key, parameters, rates, tasks, steps, as_written=True)
        self._plans[key] = plan
        return plan

    def _plan(
        self, parameters: dict[str, Tensor], rates: Rates, tasks: TaskBatch, steps: int,
        as_written: bool,
    ) -> Plan:  # fmt: skip
        loop = self._loop(parameters, steps, tasks.support_y)
        found = check_model(loop, parameters, rates, tasks)
        renames_loss = found.loss is not loop.loss and not as_written and not self._runs_plainly()
        loss = found.loss if renames_loss else loop.loss
        loop = replace(loop, loss=loss, unread=found.unread or found.unfit)
        prefix = None
        cut = self._cut(loop, parameters, rates, tasks)
        if cut is not None:
            prefix, loop = cut[0], replace(loop, module=cut[1])
        inner, tasks = above(prefix, loop, parameters, tasks)
        choice = choose(loop, tasks, inner, rates, self.engine)
        loop.memory[_SIZES] = {tasks.support_x.shape[1]}
        return Plan(loop, choice, prefix, found.n_way, rate_kinds(rates), renames_loss)

    def _loop(
        self, parameters: Mapping[str, Tensor], steps: int, targets: Tensor | None = None
    ) -> InnerLoop:
        chosen = parameters if self.adapt_parameters is None else self.adapt_parameters
        if gone := [name for name in chosen if name not in parameters]:
            raise ValueError(f"adapt_parameters names {gone}; the model now has {[*parameters]}")
        adapted = tuple(name for name in chosen if parameters[name].requires_grad)
        return InnerLoop(
            self.model, named(self.loss, targets), steps, self.order, adapted,
            self.randomness, self.precision,
        )  # fmt: skip

    def _cut(
        self, loop: InnerLoop, parameters: Mapping[str, Tensor], rates: Rates,
        tasks: TaskBatch | None,
    ) -> tuple[Prefix, nn.Module] | None:  # fmt: skip
        """The model as what lies below the inner loop and what is in it, where that is exact."""
        if self._runs_plainly() or loop.randomness:
            return None
        native = self.engine in ("auto", "resident")
        cut = split(self.model, loop.adapted, native)
        if tasks is None:
            return cut
        whole = native and resident.can_run(loop, tasks, parameters, rates) is None
        if cut is not None:
            if not is_exact(cut, self.model, parameters, tasks):
                return None
            pays = not whole or saves_much(cut[0], loop.steps, parameters, tasks)
            return cut if pays else None
        if whole or not native or requested_backend() == "triton":
            return None
        # What is made of the samples alone may be all that the fastest engine does not know.
        cut = split_words(self.model, loop.adapted, tasks)
        cut = cut or split_inputs(self.model, loop.adapted)
        if cut is None or not is_exact(cut, self.model, parameters, tasks):
            return None
        rest = replace(loop, module=cut[1])
        inner, tasks = above(cut[0], rest, parameters, tasks)
        if resident.can_run(rest, tasks, inner, rates) is not None:
            return None
        return None if mostly_words(cut[0], rest, tasks.support_x.shape[2:]) else cut

    def _runs_plainly(self) -> bool:
        return "reference" in (self.engine, requested_backend())

    def _rates(self, steps: int) -> Rates:
        if self.learn_inner_lr is None:
            rate = self.inner_lr
            return rate if type(rate) is float else _as_float(rate)
        own: Any = self.inner_rates._parameters
        rates = {name: own[key] for name, key in self._rate_keys.items()}
        if not self.per_step_lr or steps == self.inner_steps:
            return rates
        if steps > self.inner_steps:
            raise ValueError(
                f"inner_steps={steps}, but per_step_lr learned rates for {self.inner_steps} steps"
            )
        return {name: rate[: max(steps, 1)] for name, rate in rates.items()}

    def _initial_rate(self, parameter: Tensor) -> Tensor:
        steps = max(self.inner_steps, 1) if self.per_step_lr else 1
        shape = parameter.shape if self.learn_inner_lr == "element" else (1,) * parameter.dim()
        return parameter.new_full((steps, *shape), self.inner_lr)


def _sizes(tasks: TaskBatch) -> set[int]:
    return {tasks.support_y.shape[1], tasks.query_y.shape[1]}


def _likely_outputs(parameters: Mapping[str, Tensor]) -> tuple[int, torch.dtype]:
    """The last parameter is most often the last layer's, whose rows are the outputs."""
    last = [*parameters.values()][-1:]
    dtype = last[0].dtype if last else torch.get_default_dtype()
    return last[0].shape[0] if last and last[0].dim() else 1, dtype


def _as_float(rate: Any) -> Any:
    """Any kind of real number as a float; what is none is refused later."""
    return float(rate) if isinstance(rate, Real) and not isinstance(rate, bool) else rate
