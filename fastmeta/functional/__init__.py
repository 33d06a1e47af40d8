"""Stateless operations on many tasks at once; a tensor's first dimension is the task.

They compose with torch.func: `grad`, `vmap`, `jvp` and what is made of them, but `jvp` of `jvp`.
They go into one graph of ``torch.compile(fullgraph=True)`` or `torch.export`, where the backend and
the precision stay that were in force when it was made; what only values can tell, such as a label
outside its classes, is an error when the graph runs. `inner_sgd` and `hessian_vector_product` take
gradients of their own: torch.compile runs them between its graphs.
"""

from fastmeta.functional.activations import (
    gelu,
    leaky_relu,
    relu,
    sigmoid,
    sin,
    softplus,
    tanh,
)
from fastmeta.functional.conv2d import conv2d, conv2d_input_gradient, conv2d_weight_gradient
from fastmeta.functional.conv_transpose2d import conv_transpose2d
from fastmeta.functional.distances import pairwise_distance
from fastmeta.functional.hessian_vector_product import hessian_vector_product
from fastmeta.functional.inner_sgd import inner_sgd
from fastmeta.functional.linear import linear
from fastmeta.functional.losses import bce, cross_entropy, mse_loss
from fastmeta.functional.nearest import nearest_prototype
from fastmeta.functional.norm_pool import batch_norm_pool
from fastmeta.functional.norms import batch_norm, group_norm, instance_norm, layer_norm
from fastmeta.functional.pooling import adaptive_avg_pool2d, avg_pool2d, flatten, max_pool2d
from fastmeta.functional.prototype_loss import prototype_loss
from fastmeta.functional.prototypes import prototypes

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "batch_norm",
    "batch_norm_pool",
    "bce",
    "conv2d",
    "conv2d_input_gradient",
    "conv2d_weight_gradient",
    "conv_transpose2d",
    "cross_entropy",
    "flatten",
    "gelu",
    "group_norm",
    "hessian_vector_product",
    "inner_sgd",
    "instance_norm",
    "layer_norm",
    "leaky_relu",
    "linear",
    "max_pool2d",
    "mse_loss",
    "nearest_prototype",
    "pairwise_distance",
    "prototype_loss",
    "prototypes",
    "relu",
    "sigmoid",
    "sin",
    "softplus",
    "tanh",
]


def __dir__() -> list[str]:
    return [*__all__]
