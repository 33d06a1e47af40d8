"""A CUDA graph for machines without a GPU: a tape of PyTorch's operations that can be replayed.

As in a graph, what Python computed is on the tape as it was, values are not; and reading a value
on the host is an error. Native kernels are not on it.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

HOST_READS = (
    "aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::_unique2",
    "aten::_linalg_check_errors",
)  # fmt: skip


class Tape(TorchDispatchMode):
    """Records what runs inside the block."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.name().split(".")[0]
        masks = [t for t in tree_flatten(args[1:])[0] if is_mask(t)]
        if name in HOST_READS or (name in ("aten::index", "aten::index_put_") and masks):
            raise RuntimeError(f"{name} waits for the device")
        result = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, result))
        return result

    def replay(self):
        with torch.no_grad():
            for function, args, kwargs, result in self.calls:
                new = function(*args, **kwargs)
                for old, value in zip(leaves(result), leaves(new), strict=True):
                    if old.data_ptr() != value.data_ptr():
                        old.copy_(value)


def leaves(result):
    return [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, torch.Tensor)]


def is_mask(value):
    return isinstance(value, torch.Tensor) and value.dtype is torch.bool


CAPTURE_CHECKS = (
    "fastmeta.tasks.batch", "fastmeta.tasks.padding", "fastmeta.functional.labels",
    "fastmeta.functional.losses", "fastmeta.algorithms.classes",
)  # fmt: skip


def pretend_to_capture(monkeypatch):
    """Let fastmeta think that a CUDA graph is captured."""
    for module in CAPTURE_CHECKS:
        monkeypatch.setattr(f"{module}.is_capturing", lambda tensor: True)
