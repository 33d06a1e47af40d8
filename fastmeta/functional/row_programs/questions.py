"""What may be asked of tensors while a function is read: shapes, but not how many samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastmeta.functional.row_programs.spelled import Spelled, asked_by_distributions
from fastmeta.functional.row_programs.step import Unreadable

__all__ = ["Questions"]

_ATTRIBUTES = ("shape", "dtype", "device", "ndim", "T", "mT", "layout", "is_cuda", "is_nested")
_REFUSED = (
    "__len__", "tolist", "numpy", "__array__", "stride", "data_ptr", "register_hook", "retain_grad",
    "storage", "untyped_storage", "is_contiguous", "storage_offset", "element_size",
    "__dlpack__", "register_post_accumulate_grad_hook", "backward",
    "detach_",  # of which the dispatcher is not told
)  # fmt: skip
_SIZES = ("shape", "size", "numel", "nelement")
# What the number of samples may be given to: shapes, and arithmetic, whose rules know it again.
_SHAPED = (
    "view", "reshape", "expand", "repeat", "tile", "broadcast_to", "unflatten", "zeros", "ones",
    "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "arange",
)  # fmt: skip
_ARITHMETIC = ("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "rsub")
_COUNTED = {
    *_SHAPED, *_ARITHMETIC, *(f"{name}_" for name in _ARITHMETIC), "__truediv__", "__rtruediv__",
    *(f"__{kind}{name}__" for kind in ("", "r", "i") for name in ("add", "sub", "mul", "div")),
}  # fmt: skip


class Questions(Spelled):
    """Marks the number of samples, so that nothing but a mean comes of it, and refuses to tell what
    else a program does not depend on.

    Attributes:
        refused: why, also where it was caught.
        asked: the name of the latest function.
    """

    def __init__(self, samples: int, may_be_variable: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self._may_be_variable = may_be_variable
        self.refused: Unreadable | None = None
        self.asked = ""
        self._samples = samples

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "").partition(".")[0]  # of an operation's overload
        if name == "__get__":
            name = getattr(function.__self__, "__name__", "")
            if name not in _ATTRIBUTES and not self._is_asked_by_transform(name, args):
                self._refuse(name)
        elif name in _REFUSED:
            self._refuse(name)
        elif name == "requires_grad_" and not self._may_require_grad(*args, **kwargs or {}):
            self._refuse(name)
        if name not in _COUNTED and _has_count((args, *(kwargs or {}).values())):
            self.refuse_count()
        self.asked = name
        try:
            found = super().__torch_function__(function, types, args, kwargs)
        except Unreadable as reason:
            self.refused = reason
            raise
        return self._marked(found) if name in _SIZES else found

    def _may_require_grad(self, tensor: Tensor, requires_grad: bool = True) -> bool:
        return requires_grad and (_is_wrapped(tensor) or self._may_be_variable(tensor))

    def _is_asked_by_transform(self, name: str, args: Any) -> bool:
        return name == "requires_grad" and _is_wrapped(args[0])

    def refuse_count(self) -> NoReturn:
        raise self.note_count()

    def note_count(self) -> Unreadable:
        self.refused = Unreadable("it depends on the number of samples")
        return self.refused

    def _refuse(self, name: str) -> NoReturn:
        self.refused = Unreadable(f"it asks for {name}, which a program does not depend on")
        raise self.refused

    def _marked(self, size: Any) -> Any:
        if isinstance(size, torch.Size):
            return tuple(map(self._marked, size))
        is_count = type(size) is int and size and size % self._samples == 0
        return _Count(size).asked_of(self) if is_count else size


def _is_wrapped(x: Tensor) -> bool:
    """By torch.func."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def _has_count(values: Any) -> bool:
    if isinstance(values, slice):
        values = values.start, values.stop, values.step
    if isinstance(values, (tuple, list)):
        return any(map(_has_count, values))
    return isinstance(values, _Count)


class _Count(int):
    """The number of samples, or of all their numbers."""

    _asked: Questions

    def asked_of(self, questions: Questions) -> _Count:
        self._asked = questions
        return self

    def _refuse(self, *others: object) -> NoReturn:
        self._asked.refuse_count()

    def __str__(self) -> str:
        return self._text(int.__repr__(self))

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return self._text(int.__format__(self, spec))

    def _text(self, text: str) -> str:
        """It may be that of an error, which says more."""
        self._asked.note_count()
        return text

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Tensor):
            return NotImplemented
        if type(other) is not int:
            self._refuse()
        return _Count(int.__mul__(self, other)).asked_of(self._asked)

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Count):
            if asked_by_distributions():  # what would broadcast, which operations tell as well
                return False
            self._refuse()
        return int.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:  # a set or a dict asks for it
        self._refuse()

    __add__ = __radd__ = __sub__ = __rsub__ = __truediv__ = __rtruediv__ = _refuse
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __float__ = __neg__ = _refuse
    __index__ = __int__ = __trunc__ = __floor__ = __ceil__ = __invert__ = bit_length = _refuse
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = _refuse
    __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = _refuse
    __abs__ = __round__ = __divmod__ = __rdivmod__ = _refuse
    conjugate = as_integer_ratio = bit_count = _refuse
    real = imag = numerator = denominator = property(_refuse)
