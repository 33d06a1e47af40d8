"""How a task adapts, and the meta-gradient through it: one description, several engines."""

from fastmeta.inner_loop.checks import check_model
from fastmeta.inner_loop.choose import choose
from fastmeta.inner_loop.loop import InnerLoop, check_grad_mode

__all__ = ["InnerLoop", "check_grad_mode", "check_model", "choose"]
