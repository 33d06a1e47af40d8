"""What PyTorch gets wrong in a forward that is called as a pure function, and under vmap."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastmeta.functional.aliases import Aliases
from fastmeta.functional.task_kernels import OF_ALL_TASKS
from fastmeta.functional.transforms import is_wrapped, values_of

__all__ = ["AsForOneTask", "Corrected", "OfTask"]


_HOOKS = (Tensor.register_hook, Tensor.register_post_accumulate_grad_hook, Tensor.retain_grad)
_REQUIRES_GRAD = Tensor.requires_grad.__get__  # type: ignore[attr-defined]
_DEVICE = Tensor.device.__get__
_CHECKPOINTS = "torch.utils.checkpoint"


def _is_of_torch(caller: FrameType) -> bool:
    """PyTorch's own code, that of its counters and trackers, goes by what vmap says."""
    return str(caller.f_globals.get("__name__")).partition(".")[0] == "torch"


def _is_of_checkpoints(caller: FrameType) -> bool:
    """Any kind of them asks first where its arguments are."""
    return caller.f_globals.get("__name__") == _CHECKPOINTS


def _requires_grad(x: Tensor) -> bool:
    with torch._C.DisableTorchFunction():
        while is_wrapped(x):
            x = torch._C._functorch.get_unwrapped(x)
        return x.requires_grad


def _saving_hooks() -> Any:
    """What is called with the tensors that the graph keeps."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


class Corrected(TorchFunctionMode):
    """Norms that a forward calls as functions leave running statistics alone, and weight norms are
    right at second order.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return self.call(function, *args, **(kwargs or {}))

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return _CORRECTED.get(function, function)(*args, **kwargs)


class OfTask(Corrected):
    """With a task's parameters, through which somebody may go back: a checkpoint, which would
    compute again with the module's own, is an error.
    """

    def __init__(self) -> None:
        super().__init__()
        self._outside, self._may_go_back = _saving_hooks(), torch.is_grad_enabled()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if self._may_go_back and (
            (function == _DEVICE and _is_of_checkpoints(sys._getframe(1))) or self._in_checkpoint()
        ):
            raise RuntimeError(
                "the forward calls torch.utils.checkpoint, which in the backward would run it "
                "again with the module's own parameters in place of the task's: call it without"
            )
        return super().__torch_function__(function, types, args, kwargs)

    def _in_checkpoint(self) -> bool:
        hooks = _saving_hooks()
        if hooks is None or hooks == self._outside or not torch.is_grad_enabled():
            return False
        return bool(hooks[0].__module__ == _CHECKPOINTS)


def _batch_norm(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if training:
        running_mean = running_var = None
    return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)


def _instance_norm(
    x: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
    weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if use_input_stats:
        running_mean = running_var = None
    return F.instance_norm(
        x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """In operations: PyTorch's own takes the norm for a constant in its second derivative."""
    return v * (g / _norm_except(v, dim))


def _norm_except(v: Tensor, dim: int) -> Tensor:
    """torch.norm_except_dim, which vmap has no rule for: -1 is none, and not the last dimension."""
    others = [d for d in range(v.dim()) if dim == -1 or d != dim % v.dim()]
    return torch.linalg.vector_norm(v, dim=others, keepdim=dim != -1) if others else v.abs()


_CORRECTED: dict[Any, Any] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    torch._weight_norm: _weight_norm,
}


class AsForOneTask(OfTask):
    """What vmap gets wrong: embeddings, select_scatter, whether a tensor requires grad, and hooks
    of tensors. And what it makes slow: convolutions, norms, and products with a sequence that was
    turned.

    Under vmap PyTorch looks all tasks up in one table of their rows, and its backward knows the
    padding of the first task alone.
    """

    loses_hooks = False
    failed: Exception | None = None  # which vmap alone may raise, also where it is caught

    def __init__(self) -> None:
        super().__init__()
        self._aliases = Aliases()

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._call(function, *args, **kwargs)
        except Exception as error:
            self.failed = error
            raise

    def _call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        if function in _HOOKS:
            self.loses_hooks = True
        if function == _REQUIRES_GRAD and not _is_of_torch(sys._getframe(4)):
            return _requires_grad(args[0])  # vmap has forgotten
        self._aliases.before(function, args, kwargs)
        result = _FOR_ONE_TASK.get(function, function)(*args, **kwargs)
        self._aliases.after(function, args, kwargs, result)
        return result


def _embedding(
    x: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None,
    norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Tensor:  # fmt: skip
    if max_norm is not None:
        raise RuntimeError("vmap has no rule for weights that are changed in place (max_norm)")
    if scale_grad_by_freq:
        raise RuntimeError("vmap counts the words of all tasks together (scale_grad_by_freq=True)")
    _check_words(x, weight.shape[0])
    if padding_idx is not None:
        rows = torch.arange(weight.shape[0], device=weight.device)
        is_padding = rows == padding_idx % weight.shape[0]
        weight = torch.where(is_padding.unsqueeze(1), weight.detach(), weight)
    return F.embedding(x, weight, None, None, norm_type, False, sparse)


def _check_words(x: Tensor, rows: int) -> None:
    """IndexError for a word of one task that would be looked up in the rows of another."""
    if x.device.type != "cpu" or not x.numel():  # on a GPU it would have to be waited for
        return
    with torch._C._DisableFuncTorch():
        least, most = map(int, values_of(x).aminmax())
    if least < 0 or most >= rows:
        raise IndexError(
            f"words must be in [0, {rows}), the rows of the nn.Embedding that looks them up, and "
            f"are in [{least}, {most}]"
        )


def _select_scatter(input: Tensor, src: Tensor, dim: int, index: int) -> Tensor:
    """PyTorch (2.13) sends the gradient of another task's place to `input`."""
    at = index % input.shape[dim] if -input.shape[dim] <= index < input.shape[dim] else index
    return torch.slice_scatter(input, src.unsqueeze(dim), dim, at, at + 1)


def _linear(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return F.linear(_in_rows(input), *args, **kwargs)


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    rows = {id(x): _in_rows(x) for x in (query, key, value)}  # of one tensor, one is made
    query, key, value = rows[id(query)], rows[id(key)], rows[id(value)]
    return F.multi_head_attention_forward(query, key, value, *args, **kwargs)


def _in_rows(x: Tensor) -> Tensor:
    """What F.linear takes as one matrix for each task: of x.transpose(0, 1), as attention has it,
    vmap makes a product, and a gradient of the weight, for each place in a sequence.
    """
    return x.contiguous() if x.dim() > 2 else x


_FOR_ONE_TASK: dict[Any, Any] = {
    **_CORRECTED,
    F.embedding: _embedding,
    torch.select_scatter: _select_scatter,
    Tensor.select_scatter: _select_scatter,
    F.linear: _linear,
    F.multi_head_attention_forward: _attention,
    **OF_ALL_TASKS,
}
