"""Stateless operations on many tasks at once; a tensor's first dimension is the task."""

from fastmeta.functional.hessian_vector_product import hessian_vector_product
from fastmeta.functional.inner_sgd import inner_sgd
from fastmeta.functional.losses import bce, cross_entropy, mse_loss

__all__ = ["bce", "cross_entropy", "hessian_vector_product", "inner_sgd", "mse_loss"]
