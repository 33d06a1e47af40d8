"""Words of a vocabulary, looked up at first, as rows of a table times products: for real inputs.

The native kernels multiply by matrices that adapt, and look nothing up.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node

from fastmeta.functional.forward import has_hooks
from fastmeta.inner_loop.reading.cuts import can_be_copied, copied, graph_of
from fastmeta.inner_loop.reading.trace import Unknown

__all__ = ["OneHot", "is_recurrent", "of_one_hot"]


class OneHot(nn.Module):
    """Words [n, ...] as [n, ..., vocabulary]: 1 at the word, 0 elsewhere."""

    def __init__(self, vocabulary: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.vocabulary, self.dtype = vocabulary, dtype

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() and not 0 <= int(x.min()) <= int(x.max()) < self.vocabulary:
            raise IndexError(
                f"the words of the samples must be in [0, {self.vocabulary}), the rows of the "
                f"model's nn.Embedding, and are in [{int(x.min())}, {int(x.max())}]"
            )
        places = torch.zeros(*x.shape, self.vocabulary, dtype=self.dtype, device=x.device)
        return places.scatter_(-1, x.long().unsqueeze(-1), 1.0)  # F.one_hot makes whole numbers


def of_one_hot(module: nn.Module) -> tuple[OneHot, nn.Module] | None:
    """What makes words of its samples, and the forward of such words; None if it looks up none.

    The second has the module's parameters by the module's names, and the tensors that it has now.
    """
    kinds = {type(part) for part in module.modules()}
    if nn.Embedding not in kinds or not can_be_copied(module):
        return None
    try:
        graph = graph_of(module)
    except Unknown:
        return None
    table = _table(graph, module)
    if table is None:
        return None
    node, layer = table
    _multiply(graph, node, layer)
    words = OneHot(layer.num_embeddings, layer.weight.dtype)
    return words, copied(module, graph, type(module).__name__)


def is_recurrent(module: nn.Module) -> bool:
    """Whether it has layers that vmap runs for one task after another."""
    return any(isinstance(part, nn.RNNBase) for part in module.modules())


def _table(graph: fx.Graph, module: nn.Module) -> tuple[Node, nn.Embedding] | None:
    """The one call that reads the samples, where that looks words up and is called once."""
    (x,) = [node for node in graph.nodes if node.op == "placeholder"][:1]
    users = [*x.users]
    if len(users) != 1 or users[0].op != "call_module" or users[0].args != (x,):
        return None
    target = str(users[0].target)
    layer = module.get_submodule(target)
    calls = [node for node in graph.nodes if str(node.target).startswith(target)]
    plain = type(layer) is nn.Embedding and not has_hooks(layer) and len(calls) == 1
    if not plain or layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse:
        return None
    return users[0], layer


def _multiply(graph: fx.Graph, node: Node, layer: nn.Embedding) -> None:
    with graph.inserting_before(node):
        weight = graph.get_attr(f"{node.target}.weight")
        if layer.padding_idx is not None:
            weight = graph.call_function(_without_gradient, (weight, layer.padding_idx))
        product = graph.call_function(torch.matmul, (*node.args, weight))
    node.replace_all_uses_with(product)
    graph.erase_node(node)


def _without_gradient(weight: Tensor, row: int) -> Tensor:
    """The table, of which one row learns nothing."""
    rows = torch.arange(weight.shape[0], device=weight.device).unsqueeze(1)
    return torch.where(rows == row % weight.shape[0], weight.detach(), weight)
