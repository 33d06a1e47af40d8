"""The rows of a forward while it is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

from torch import Tensor

from fastmeta.functional.row_programs import PAIRS, Rows, Step, Unreadable, Value, needed
from fastmeta.inner_loop.arithmetic.forward_tables import Tables, neighbours
from fastmeta.inner_loop.arithmetic.matrices import with_fewer_matrices

__all__ = ["GONE", "MOST_NUMBERS", "ForwardRows", "most_numbers"]

# Numbers that a sample may have in all rows: the kernels keep those of some samples, four times.
MOST_NUMBERS = 1 << 17
_MOST_OF_SMALL, _SMALL = 1 << 19, 1024

_OF_ROWS = ("samples", "task")

GONE = Value("gone")  # of a tensor that nobody is going to read again


class ForwardRows(Rows):
    """Row 0 is a sample. A parameter, or a buffer, is the weight of products, or a row that all
    samples share.

    "weight" and "turned" are kinds of values too: a parameter by its index, as it is and
    transposed; and "diagonal", of a constant matrix that is to be filled there.

    Attributes:
        fewest: samples that a task must have: a lone one may be squeezed.
        tables: tensors that are rows only where something is computed with them.
    """

    def __init__(
        self, x: Tensor, parameters: Mapping[str, Tensor], others: Mapping[str, Tensor]
    ) -> None:
        self._names, self._shapes = [*parameters], [p.shape for p in parameters.values()]
        self._indices = {id(p): i for i, p in enumerate(parameters.values())}
        self._turned: dict[tuple[int, int, int, int], int] = {}
        self._of_parameters: dict[int, int] = {}  # the rows of their numbers
        self.fewest = 1
        self._of_tables: dict[tuple[tuple[str, int], ...], int] = {}  # rows, by what is in them
        self._matrices: dict[int, Tensor] = {}  # by their diagonals
        self._by_memory: dict[tuple[Any, ...], Tensor] = {}
        self._made = 0  # numbers, those that turn out not to be needed among them
        super().__init__(len(x), x.dtype, (x,))
        self.tables = Tables(others, lambda t: self.dim_of_samples(t) is not None)

    def result(self, y: Any) -> tuple[list[Step], list[str]]:
        """The steps that make y [S, ...], and the parameters that they read by their index."""
        value = self.value(y) if isinstance(y, Tensor) and self.known(y) else None
        is_row = value is not None and (value.kind, value.before) == ("samples", 1)
        if value is None or not is_row or not y.dim() or len(y) != self.samples:
            raise Unreadable("it does not make a row of each sample")
        steps = with_fewer_matrices(needed(self.steps, value.row, 1), self._shapes)
        steps = needed(steps, len(steps), 1)
        products = [step for step in steps if step[0] == "linear"]
        biases = [step[3] for step in products if step[3] >= 0]
        matrices = [step[2] for step in products]
        if {*biases} & {*matrices}:
            raise Unreadable("it adds to its products what it multiplies by")
        numbers = [step[2] for step in steps if step[0] == "parameter"]
        read = dict.fromkeys([*matrices, *biases, *numbers])
        places = {index: place for place, index in enumerate(read)}
        return [_with_places(step, places) for step in steps], [self._names[i] for i in read]

    def put(
        self, op: str, a: int = 0, b: int = 0, c: int = 0, *, x: float = 0.0, y: float = 0.0,
        width: int,
    ) -> int:  # fmt: skip
        self._made += width
        most = most_numbers(len(self.steps))
        if self._made > 2 * most:  # all that it makes is kept until it is read
            raise Unreadable(f"it makes more than {most} numbers of a sample")
        return super().put(op, a, b, c, x=x, y=y, width=width)

    def columns(self, x: Tensor) -> int:
        return x.numel() // self.samples if self.dim_of_samples(x) is not None else x.numel()

    def dim_of_samples(self, x: Tensor) -> int | None:
        """Where the samples are; None of what has none."""
        sides = [n % self.samples if n else 1 for n in x.shape]
        return sides.index(0) if 0 in sides else None

    def know(self, tensor: Tensor, value: Value) -> None:
        if value.kind in _OF_ROWS and not self._holds(tensor, value):
            raise Unreadable("it makes other numbers than those of each sample")
        self._by_memory.setdefault(_memory_of(tensor), tensor)
        super().know(tensor, value)

    def forget(self, tensor: Tensor) -> None:
        self._by_memory.pop(_memory_of(tensor), None)
        super().know(tensor, GONE)

    def may_be_variable(self, x: Tensor) -> bool:
        value = self.known(x)
        return value is not None and value.kind == "samples"

    def read(self, values: Any) -> None:
        """What an operation is given is no tensor that autograd has kept for itself."""
        for x in values:
            if isinstance(x, (list, tuple)):
                self.read(x)
            elif id(x) in self._same:
                del self._same[id(x)]

    def recognise(self, values: Any) -> None:
        """What autograd keeps of a result is another tensor in its memory, detached or not."""
        for x in values:
            if isinstance(x, (list, tuple)):
                self.recognise(x)
            elif isinstance(x, Tensor) and self.index(x) is None:
                is_kept = self.known(x) is None or id(x) in self._same
                result = self._by_memory.get(_memory_of(x)) if is_kept else None
                if result is not None:
                    super().know(x, self._values[id(result)])

    def _holds(self, x: Tensor, value: Value) -> bool:
        """Whether a tensor's shape is one that such a value may have."""
        at = self.dim_of_samples(x)
        if self.widths[value.row] != self.columns(x) or (at is None) != (value.kind == "task"):
            return False
        if at is None:
            return True
        own, left = divmod(value.before, prod(x.shape[:at]))
        return own > 0 and left == 0 and x.shape[at] % (self.samples * own) == 0

    def like(self, op: str, values: Sequence[Value]) -> Value:
        if not {value.kind for value in values} <= {"samples", "task", "constant"}:
            raise Unreadable("it computes with a weight")
        of_samples = [value for value in values if value.kind == "samples"]
        wide = [value for value in of_samples if self.widths[value.row] > 1] or of_samples
        if len({value.before for value in wide}) > 1:
            raise Unreadable("it mixes the samples")
        return wide[0]._replace(row=-1) if wide else Value("task")

    def of_samples(self, out: Tensor, row: int) -> Value:
        """What a tensor is whose numbers are those of a row for each sample alike."""
        at = self.dim_of_samples(out)
        return Value("task", row) if at is None else Value("samples", row, prod(out.shape[:at]))

    def index(self, x: Any) -> int | None:
        """Of a parameter, or None."""
        return self._indices.get(id(x))

    def value(self, x: Any) -> Value:
        """Of a matrix that a parameter is, its numbers."""
        value = super().value(x)
        if value.kind == "total":  # whose gradient may be taken, and nothing else
            raise Unreadable("it sums or normalises over samples")
        if value.kind not in ("weight", "turned"):
            return value
        row = self._numbers_of(value.row, x)
        if value.kind == "turned":
            row = self.turned(row, x.shape[1], x.shape[0], 1)
        return Value("task", row)

    def _numbers_of(self, index: int, like: Tensor) -> int:
        if index not in self._of_parameters:
            self._of_parameters[index] = self.put("parameter", b=index, width=like.numel())
        return self._of_parameters[index]

    def of_unknown(self, x: Tensor) -> Value:
        index = self.index(x)
        if index is not None:
            value = Value("task", self._numbers_of(index, x))
            self.know(x, value)
            return value
        table = self.table_of(x)
        return super().of_unknown(x) if table is None else Value("task", self._row_of(table))

    def diagonal_of(self, diagonal: Tensor, x: Tensor) -> Value:
        row = self.value(x).row
        if row < 1 or self.steps[row - 1][0] != "constant":
            raise Unreadable("it takes a diagonal of what it computes")
        self._matrices[id(diagonal)] = x
        return Value("diagonal")

    def with_its_diagonal(self, diagonal: Tensor) -> Value:
        """The matrix, the same for all samples, after its diagonal was filled."""
        x = self._matrices[id(diagonal)]
        at = self.dim_of_samples(x)
        row = self._row_of(x if at is None else x.narrow(at, 0, x.shape[at] // self.samples))
        self.know(x, self.of_samples(x, row))
        return Value("diagonal")

    # ---- tables ------------------------------------------------------------------------------

    def table_of(self, x: Any) -> Tensor | None:
        """x, of whose numbers something is to depend, if it is a table."""
        new = isinstance(x, Tensor) and self.known(x) is None and self.index(x) is None
        is_one = self.tables.has(x) or (new and self.tables.adopt(x))
        return self.tables.note(x) if is_one else None

    def table(self, name: str, func: Any, args: Any, kwargs: Any) -> tuple[Any] | None:
        changes = func._schema.is_mutable and self.tables.has(args[0])
        if changes:
            _check_apart(args[0], (*self.tables.owned, *self.kept))
        made = self.tables.made(name, func, args, kwargs)
        if changes and made is None:
            raise Unreadable("it changes a tensor of its own in place")
        return made

    def _row_of(self, table: Tensor) -> int:
        runs = neighbours(table)
        key = tuple((number.hex(), count) for number, count in runs)
        if key not in self._of_tables:
            rows = [
                self.number(x).row if n == 1 else self.put("constant", x=x, width=n)
                for x, n in runs
            ]  # fmt: skip
            self._of_tables[key] = self.join(rows, (table.numel(),), 0)
        return self._of_tables[key]

    def operand(self, out: Tensor, x: Any) -> Value:
        """As PyTorch broadcasts it; one number stays one."""
        value = self.value(x)
        if value.kind not in _OF_ROWS:
            return value
        width = self.widths[value.row]
        if width == 1:
            return value if value.kind == "task" else self.of_samples(out, value.row)
        return value if width == self.columns(out) else self.broadcast(out, x, value)

    # ---- rows as arrays: `sides` are their dimensions ----------------------------------------

    def sides(self, x: Tensor) -> tuple[int, ...]:
        """The dimensions that each sample has, as many as the tensor's."""
        at = self.dim_of_samples(x)
        return tuple(n // self.samples if dim == at else n for dim, n in enumerate(x.shape))

    def broadcast(self, out: Tensor, x: Tensor, value: Value) -> Value:
        """The numbers that a tensor has where it is expanded to `out`."""
        more, at = out.dim() - x.dim(), self.dim_of_samples(out)
        wanted, own = self.sides(out), (*[1] * more, *self.sides(x))
        before = value.before
        if value.kind == "samples":
            here = self.dim_of_samples(x)
            if at is None or here is None or here + more != at or x.shape[here] != out.shape[at]:
                raise Unreadable(PAIRS)
            before = before // prod(own[:at]) * prod(wanted[:at])
        if any(n not in (1, m) for n, m in zip(own, wanted, strict=True)):
            raise Unreadable(PAIRS)
        row, dims = value.row, [i for i in range(len(own)) if own[i] < wanted[i]]
        while dims:  # those that are neighbours at once
            last = first = dims.pop()
            while dims and dims[-1] == first - 1:
                first = dims.pop()
            row = self.repeated(row, prod(wanted[first : last + 1]), prod(wanted[last + 1 :]))
        return Value(value.kind, row, before)

    def repeated(self, row: int, times: int, inner: int) -> int:
        """[.., inner] as [.., times, inner]."""
        width = self.widths[row] * times
        return row if times == 1 else self.put("repeat", row, x=inner, width=width)

    def turned(self, row: int, x: int, y: int, inner: int) -> int:
        """[.., x, y, inner] as [.., y, x, inner]."""
        if x == 1 or y == 1:
            return row
        key = row, x, y, inner
        if key not in self._turned:
            width = self.widths[row]
            self._turned[key] = self.put("turn", row, c=inner, x=x, y=y, width=width)
        return self._turned[key]

    def permuted(self, row: int, sides: Sequence[int], order: Sequence[int]) -> int:
        """Dimension i of what comes is dimension `order[i]` of what there was."""
        place = [*range(len(sides))]
        for i, dim in enumerate(order):
            p = place.index(dim)
            before, after = place[i:p], place[p + 1 :]
            x, inner = prod(sides[d] for d in before), prod(sides[d] for d in after)
            row = self.turned(row, x, sides[dim], inner)
            place = [*place[:i], dim, *before, *after]
        return row

    def part(self, row: int, sides: Sequence[int], dim: int, begin: int, count: int) -> int:
        """Of a dimension, `count` from `begin` on."""
        if count < 1:
            raise Unreadable("it takes nothing of a sample")
        if count == sides[dim]:
            return row
        before, after = prod(sides[:dim]), prod(sides[dim + 1 :])
        each = before * after
        row = self.turned(row, before, sides[dim], after)
        row = self.put("slice", row, x=begin * each, width=count * each)
        return self.turned(row, count, before, after)

    def join(self, rows: Sequence[int], sides: Sequence[int], dim: int) -> int:
        """Side by side in a dimension, of what has these sides then."""
        before, after = prod(sides[:dim]), prod(sides[dim + 1 :])
        counts = [self.widths[row] // (before * after) for row in rows]
        parts = [self.turned(row, before, n, after) for row, n in zip(rows, counts, strict=True)]
        while len(parts) > 1:  # neighbours, again and again, so that few numbers are copied
            parts = [self._together(parts[i : i + 2]) for i in range(0, len(parts), 2)]
        return self.turned(parts[0], sum(counts), before, after)

    def _together(self, rows: Sequence[int]) -> int:
        return rows[0] if len(rows) == 1 else self.put(
            "join", *rows, width=sum(self.widths[row] for row in rows)
        )  # fmt: skip

    def sums(self, row: int, parts: int) -> int:
        """Of each of so many parts of a row."""
        return row if self.widths[row] == parts else self.put("sum", row, width=parts)

    def means(self, row: int, parts: int) -> int:
        if self.widths[row] == parts:
            return row
        share = self.number(parts / self.widths[row])
        return self.put("multiply", self.sums(row, parts), share.row, width=parts)

    def check_own(self, x: Tensor) -> None:
        """Unreadable if another tensor that may be read again would change with x."""
        memory = _storage_of(x)
        others = [t for t in self.kept if t is not x or self.value(x).row == 0]
        shared = [t for t in others if _storage_of(t) == memory]
        met = any(self.known(t) != GONE and not _are_apart(x, t) for t in shared)
        if met or self.index(x) is not None:
            raise Unreadable("it changes in place what it reads elsewhere")

    def weight(self, x: Any) -> tuple[int, bool] | None:
        """The parameter that a matrix is, and whether it is as the parameter is; or None."""
        index = self.index(x)
        if index is not None and x.dim() == 2:
            return index, True
        value = self.known(x)
        of = value is not None and value.kind in ("weight", "turned")
        return (value.row, value.kind == "weight") if value is not None and of else None


def _storage_of(x: Tensor) -> int:
    """Where its numbers lie; those of shapes, and zeros of forward differentiation, lie nowhere."""
    return id(x) if x.is_meta or x._is_zerotensor() else x.untyped_storage().data_ptr()


def _memory_of(x: Tensor) -> tuple[Any, ...]:
    return _storage_of(x), x.storage_offset(), x.shape, x.stride(), x.dtype


def _check_apart(x: Tensor, others: Iterable[Tensor]) -> None:
    if any(_storage_of(t) == _storage_of(x) for t in others):
        raise Unreadable("it changes in place what it reads elsewhere")


def _are_apart(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are other columns of one matrix."""
    if x.dim() != 2 or x.stride() != y.stride() or x.stride(1) != 1:
        return False
    width = x.stride(0)
    begins = [t.storage_offset() % width for t in (x, y)] if width else [0, 0]
    ends = [begin + t.shape[1] for begin, t in zip(begins, (x, y), strict=True)]
    return max(ends) <= width and (ends[0] <= begins[1] or ends[1] <= begins[0])


def _with_places(step: Step, places: Mapping[int, int]) -> Step:
    op, a, b, c, x, y, width = step
    if op == "linear":
        return op, a, places[b], places.get(c, -1), x, y, width
    return (op, a, places[b], c, x, y, width) if op == "parameter" else step


def most_numbers(operations: int) -> int:
    """Of many small operations more: PyTorch takes as long for each, however few numbers it makes.

    8 tasks of 10 sequences of 100 through nn.LSTM(4, 64), which make 230,000, K=1: 68 ms, 1,371
    under vmap. Of few large ones there is less to be gained: an encoder layer of width 64 over 64
    places, 8,000 numbers an operation, T=32: 391, and 317.
    """
    return min(max(MOST_NUMBERS, _SMALL * operations), _MOST_OF_SMALL)
