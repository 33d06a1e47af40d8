"""Reads a function by running it: PyTorch's dispatcher is asked for each of its operations."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastmeta.functional.row_programs.questions import Questions
from fastmeta.functional.row_programs.rows import Rows, Value
from fastmeta.functional.row_programs.rules import Rule
from fastmeta.functional.row_programs.spelled import Spelled
from fastmeta.functional.row_programs.step import Fails, NoRule, Unreadable

__all__ = ["Operation", "operations", "read", "watched"]


class Operation(NamedTuple):
    name: str
    numbers: tuple[float, ...]

    def is_like(self, other: Operation, samples: int, others: int) -> bool:
        """Whether the numbers are the same, or as many times the number of samples."""
        if self.name != other.name or len(self.numbers) != len(other.numbers):
            return False
        return all(
            a == b or (a % samples == 0 and a * others == b * samples)
            for a, b in zip(self.numbers, other.numbers, strict=True)
        )


def _operation(func: Any, args: Any, kwargs: Any) -> Operation:
    return Operation(str(func), (*_numbers(args), *_numbers(tuple((kwargs or {}).values()))))


def _numbers(values: Any) -> Iterator[float]:
    for value in values:
        if isinstance(value, (int, float)):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _numbers(value)


def read(
    function: Callable[..., Any], given: Sequence[Tensor], rows: Rows, rules: Mapping[str, Rule]
) -> tuple[Any, list[Operation]]:
    """What a function makes of tensors that the rows know, which then know that too.

    Raises:
        Unreadable: it does what there are no rules for.
    """
    questions = Questions(rows.samples, rows.may_be_variable)
    reader = _Reader(rows, rules, questions)
    with torch.enable_grad(), reader, questions:
        result = _run(function, given)
    refused = questions.refused or reader.refused
    if refused is not None:
        raise refused
    for truth in questions.assumed:
        rows.assume(truth)
    return result, reader.operations


def operations(function: Callable[..., Any], given: Sequence[Tensor]) -> list[Operation]:
    """Which operations run, and on which numbers."""
    names = _Names()
    with torch.enable_grad(), names, Spelled():
        _run(function, given)
    return names.operations


def watched(
    function: Callable[..., Any], given: Sequence[Tensor]
) -> tuple[Any, list[tuple[str, tuple[Any, ...]]]]:
    """The result, and the operations that run: each by its name alone, with what it is given."""
    watch = _Watch()
    with torch.enable_grad(), watch, Spelled():
        result = _run(function, given)
    return result, watch.seen


def _run(function: Callable[..., Any], given: Sequence[Tensor]) -> Any:
    try:
        with _one_at_a_time, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers that are nobody's
            return function(*given)
    except Unreadable:
        raise
    except Exception as error:  # of the user's code, which other numbers may suit
        said = "".join(f": {line}" for line in str(error).splitlines()[:1])
        raise Fails(f"it does not run: {type(error).__name__}{said}") from error


_one_at_a_time = threading.RLock()  # filters of warnings are those of all threads


class _Mode(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to keep the compiler out, PyTorch would import it: a second


class _Names(_Mode):
    """Notes which operations run."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_of_autograd(func):
            self.operations.append(_operation(func, args, kwargs))
        return func(*args, **(kwargs or {}))


class _Watch(_Mode):
    """Keeps what the operations that run are given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_of_autograd(func):
            self.seen.append((func.overloadpacket.__name__, args))
        return func(*args, **(kwargs or {}))


class _Reader(_Mode):
    """Makes steps of each operation that runs."""

    def __init__(self, rows: Rows, rules: Mapping[str, Rule], questions: Questions) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.refused: Unreadable | None = None  # also where the function has caught it
        self._rows = rows
        self._rules = rules
        self._questions = questions
        self._backward = torch._C._current_graph_task_id()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return self._read(func, args, kwargs or {})
        except Unreadable as reason:
            self.refused = reason
            raise

    def _read(self, func: Any, args: Any, kwargs: Any) -> Any:
        if not _is_of_autograd(func):
            self.operations.append(_operation(func, args, kwargs))
        rows = self._rows
        if torch._C._current_graph_task_id() != self._backward:
            rows.recognise(args)
        else:
            rows.read(args)
        name = func.overloadpacket.__name__
        if (table := rows.table(name, func, args, kwargs)) is not None:
            return table[0]
        if _is_of_shapes(name, args, kwargs):
            out = func(*args, **kwargs)
            if isinstance(out, Tensor):
                rows.know(out, Value("unknown"))
            return out
        rule = self._rules.get(name)
        if rule is None:
            raise NoRule(f"it calls {name}, of which there is no native form")
        # Also in the forward of an autograd.Function, whose backward nobody knows.
        is_off = not torch.is_grad_enabled()
        if is_off and name != "clamp_min_":  # which moves the lengths that make cosines
            raise Unreadable("it switches gradients off")
        if func._schema.is_mutable and rows.known(args[0]) is None:
            raise Unreadable("it changes a tensor of its own in place")
        before = rows.value(args[0]) if is_off else None
        _check_whole_numbers(name, args)
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.is_floating_point() and out.dtype is not rows.dtype:
            if name not in _MOVING:
                raise Unreadable(f"it computes in {out.dtype}")
        if isinstance(out, Tensor) and not out.is_floating_point() and name not in _NOT_FLOATING:
            raise Unreadable(f"it computes {name} of whole numbers or truths")
        if name == "view" and out.dtype is not args[0].dtype:
            raise Unreadable("it takes bits for those of another dtype")
        value = rule(rows, out, *args, **kwargs)
        if _is_of_autograd(func) and self._questions.asked != "detach":
            rows.know_again(out, args[0])
            if self._questions.asked.endswith("_like"):  # PyTorch hands on the detached one alone
                rows.forget(args[0])
        if before is not None:
            value = rows.moved(before, value)
        if isinstance(value, Value):
            rows.know(out, value)
        else:
            for part, its_value in zip(out, value, strict=False):
                rows.know(part, its_value)
        return out


_LOGIC = ("bitwise_and", "bitwise_or", "bitwise_not", "logical_and", "logical_or", "logical_not")
# What may come to whole numbers and truths, all of which are real numbers to a program.
_NOT_FLOATING = (
    *_LOGIC, "gt", "ge", "lt", "le", "eq", "ne", "view", "_unsafe_view", "unsqueeze", "squeeze",
    "alias", "expand", "clone", "_to_copy", "detach", "slice", "select", "split",
    "split_with_sizes", "unbind", "sum", "masked_fill_", "arange", "zeros", "new_zeros",
    "scatter", "scatter_", "remainder", "all", "_is_all_true", "lift_fresh", "clamp", "clamp_min",
    "clamp_max",
)  # fmt: skip


# What leaves numbers as they are, of whatever precision.
_MOVING = (
    "view", "_unsafe_view", "unsqueeze", "squeeze", "alias", "expand", "detach", "slice", "select",
    "lift_fresh",
)  # fmt: skip


def _is_of_shapes(name: str, args: Any, kwargs: Any) -> bool:
    """Whether no number is computed, as where forward differentiation compares shapes."""
    on_meta = any(isinstance(x, Tensor) and x.is_meta for x in args)
    return on_meta or name in _COMPARED or kwargs.get("device") == torch.device("meta")


_COMPARED = ("is_same_size", "_has_same_storage_numel")


def _check_whole_numbers(name: str, args: Any) -> None:
    """Logic is of truths: of numbers it goes bit by bit, or by what is 0."""
    if name in _LOGIC and any(isinstance(a, Tensor) and a.dtype is not torch.bool for a in args):
        raise Unreadable(f"it computes {name} of numbers")
    if name in _LOGIC and not all(isinstance(a, Tensor) for a in args):
        raise Unreadable(f"it computes {name} with a number")


def _is_of_autograd(func: Any) -> bool:
    """PyTorch detaches what it keeps, sometimes."""
    return func.overloadpacket.__name__ == "detach"
