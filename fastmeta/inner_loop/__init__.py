"""How a task adapts, and the meta-gradient through it: one description, several engines."""

from fastmeta.inner_loop.checks import check_labels, check_model
from fastmeta.inner_loop.choose import ENGINES, Choice, choose
from fastmeta.inner_loop.loop import InnerLoop, Rates, check_grad_mode, refuse_graph

__all__ = [
    "ENGINES",
    "Choice",
    "InnerLoop",
    "Rates",
    "check_labels",
    "check_model",
    "choose",
    "check_grad_mode",
    "refuse_graph",
]
