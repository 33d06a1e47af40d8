"""Everything that computes the meta-step: fastmeta, and its rivals in their own best form."""

from fastmeta.bench.rivals import (
    bmm,
    bmm_compiled,
    fastmeta_maml,
    higher_loop,
    jax_jit,
    learn2learn_loop,
    loop,
    torchopt_loop,
    vmap_compiled,
    vmap_forward,
    vmap_fused,
    vmap_grad,
)
from fastmeta.bench.rivals.fastmeta_maml import engine
from fastmeta.bench.rivals.rival import Outcome, Rival, Step

__all__ = ["FASTMETA", "RIVALS", "Outcome", "Rival", "Step", "engine"]

FASTMETA = fastmeta_maml.RIVAL

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
        jax_jit,
        higher_loop,
        torchopt_loop,
        learn2learn_loop,
    )
}
