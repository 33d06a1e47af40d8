"""Triton kernels of fastmeta, importable as `fastmeta.kernels`.

There is no Triton kernel yet: this package holds their place. The kernels that exist are the C++
ones in csrc/, reached through `fastmeta.backends`.

To come: one file an op, each with its kernel, its launch and the choice of its configuration.
These files know tensors and nothing of autograd; the public, differentiable ops are in
`fastmeta.functional`. In the top folder, and not inside fastmeta/, so that kernels of every
language (csrc/, kernels/) stand beside each other; the build maps it into the package.
"""
