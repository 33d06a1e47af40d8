"""Triton kernels of fastmeta, importable as `fastmeta.kernels`.

One file an op: its kernel, the functions that launch it on tensors, and under AOT the forms that
are compiled ahead of time by the tests. A kernel that is launched is `launchable`, see `launch`.
These files know tensors and nothing of autograd, and check nothing; the public, differentiable ops
are in `fastmeta.functional`. Block sizes are in `configs`.

Names of dimensions are single capitals, the same everywhere: T tasks, S samples, Q queries,
N classes, D features, C and O channels of input and output, H and W height and width, I inputs.
Images lie in memory with their channels last, [T, S, H, W, C]. Offsets are 64-bit.

Only what uses a kernel imports its file, so that Triton is neither needed nor loaded before. In the
top folder, and not inside fastmeta/, so that kernels of every language (csrc/, kernels/) stand
beside each other; the build maps it into the package.
"""
