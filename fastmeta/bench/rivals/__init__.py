"""Everything that computes the meta-step: fastmeta, and its rivals in their own best form."""

from fastmeta.bench.rivals import (
    bmm,
    bmm_compiled,
    bmm_graph,
    fastmeta_direct,
    fastmeta_graph,
    fastmeta_maml,
    higher_loop,
    jax_jit,
    learn2learn_loop,
    loop,
    torchopt_loop,
    vmap_compiled,
    vmap_forward,
    vmap_forward_graph,
    vmap_fused,
    vmap_grad,
    vmap_reduce_overhead,
)
from fastmeta.bench.rivals.fastmeta_maml import engine
from fastmeta.bench.rivals.rival import Outcome, Rival, Step

__all__ = [
    "FASTMETA", "FASTMETA_DIRECT", "FASTMETA_GRAPH", "RIVALS", "Outcome", "Rival", "Step", "engine",
]  # fmt: skip

FASTMETA = fastmeta_maml.RIVAL
# On a CPU the training loop leaves out autograd; ratios are those of a call and its backward.
FASTMETA_DIRECT = fastmeta_direct.RIVAL
# On a GPU that is one call of the library; the training loop replays a CUDA graph of it.
FASTMETA_GRAPH = fastmeta_graph.RIVAL

RIVALS: dict[str, Rival] = {
    module.RIVAL.name: module.RIVAL
    for module in (
        loop,
        vmap_grad,
        vmap_forward,
        vmap_compiled,
        vmap_fused,
        bmm,
        bmm_compiled,
        vmap_forward_graph,
        bmm_graph,
        vmap_reduce_overhead,
        jax_jit,
        higher_loop,
        torchopt_loop,
        learn2learn_loop,
    )
}
