"""Batch norm, activation and max-pool in a row, which kernels do in one operation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.fx import Node

from fastmeta import functional as fmF
from fastmeta.backends import norms, requested_backend

__all__ = ["Block", "block_at", "run_at_once"]


class Block(NamedTuple):
    """A norm and what follows it.

    Attributes:
        nodes: of the layers, in their order.
        norm: the first layer.
        slope: of the activation below 0.
        pool: pixels of a window's side; 1: no pool.
    """

    nodes: tuple[Node, ...]
    norm: nn.BatchNorm2d
    slope: float
    pool: int

    def run(self, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The block on x [T, S, C, H, W], with the norm's parameters by their own names."""
        weight, bias = own.get("weight"), own.get("bias")
        return fmF.batch_norm_pool(x, weight, bias, self.norm.eps, self.slope, self.pool)


def block_at(root: nn.Module, node: Node) -> Block | None:
    """The block that begins at a node, where each of its layers feeds the next one alone."""
    norm = _layer(root, node)
    after = _only_user(node)
    slope = _slope(_layer(root, after))
    if type(norm) is not nn.BatchNorm2d or after is None or slope is None:
        return None
    last = _only_user(after)
    if last is not None and _halves(_layer(root, last)):
        return Block((node, after, last), norm, slope, 2)
    return Block((node, after), norm, slope, 1)


def run_at_once(x: Tensor) -> bool:
    """Whether blocks are to run as one operation: where there are kernels for them."""
    requested = requested_backend()
    return requested == "triton" or (requested is None and x.is_cuda) or norms.takes(x)


def _layer(root: nn.Module, node: Node | None) -> Any:
    if node is None or node.op != "call_module":
        return None
    return root.get_submodule(str(node.target))


def _only_user(node: Node) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _slope(layer: Any) -> float | None:
    if type(layer) is nn.ReLU:
        return 0.0
    if type(layer) is nn.LeakyReLU and 0 <= layer.negative_slope <= 1:
        return float(layer.negative_slope)
    return None


def _halves(layer: Any) -> bool:
    """Whether it takes the largest of 2 x 2 pixels, without overlap."""
    return (
        type(layer) is nn.MaxPool2d
        and layer.kernel_size in (2, (2, 2))
        and layer.stride in (2, (2, 2))
        and layer.padding in (0, (0, 0))
    )
