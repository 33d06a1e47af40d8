"""Products of many tasks: x w^T + b, and the weight gradient g^T x with the sum of g.

Any strides, so that the input gradient is the product with the transposed weight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels import configs
from fastmeta.kernels.aot import AotCase, cases_of
from fastmeta.kernels.launch import cdiv, launchable
from fastmeta.kernels.outputs_last import outputs_last
from fastmeta.kernels.products import multiply_add
from fastmeta.kernels.sum_parts import sum_parts

__all__ = ["product", "weight_gradient"]


def product(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str) -> Tensor:
    """[T, S, I] and [T, O, I] and [T, O] -> [T, S, O]"""
    (T, S, K), N = x.shape, weight.shape[1]
    y = x.new_empty(T, S, N)
    if weight.stride(2) == 1 and configs.turns_weights(S, N, K, precision):
        turned, _ = outputs_last(weight[..., None, None])  # [T, 1, 1, K, N]
        weight = turned[:, 0, 0].mT.expand(T, N, K)
    tile = configs.for_product(S, N, K, T, precision, along_columns=weight.stride(1) == 1)
    grid = (T * cdiv(S, tile.m) * cdiv(N, tile.n),)
    _product[grid](
        x, weight, bias if bias is not None else x, y, y, S, N, K, T, cdiv(K, tile.k),
        *x.stride(), *weight.stride(), *(bias.stride() if bias is not None else (0, 0)),
        cdiv(S, tile.m), cdiv(N, tile.n), 1,
        HAS_BIAS=bias is not None, HAS_SUMS=False, PRECISION=precision,
        BM=tile.m, BN=tile.n, BK=tile.k, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return y


def weight_gradient(
    grad: Tensor, x: Tensor, with_sums: bool, precision: str
) -> tuple[Tensor, Tensor | None]:
    """[T, S, O] and [T, S, I] -> [T, O, I], and where asked the sums of the first [T, O]."""
    (T, S, O), N = grad.shape, x.shape[2]
    tile = configs.for_sum_over_rows(O, N, S, precision)
    splits = configs.splits(tile, O, N, S, T)
    steps = cdiv(cdiv(S, tile.k), splits)
    splits = cdiv(S, steps * tile.k)
    parts = grad.new_empty(splits, T, O, N)
    sums = grad.new_empty(splits, T, O if with_sums else 0)
    blocks_m, blocks_n = cdiv(O, tile.m), cdiv(N, tile.n)
    a, b = grad.mT, x.mT  # [T, O, S] and [T, I, S]
    _product[(T * splits * blocks_m * blocks_n,)](
        a, b, a, parts, sums, O, N, S, T, steps, *a.stride(), *b.stride(), 0, 0,
        blocks_m, blocks_n, splits,
        HAS_BIAS=False, HAS_SUMS=with_sums, PRECISION=precision,
        BM=tile.m, BN=tile.n, BK=tile.k, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return in_order(parts, sums, with_sums)


def in_order(parts: Tensor, sums: Tensor, with_sums: bool) -> tuple[Tensor, Tensor | None]:
    """Two split sums put together; the second is there only where it was asked for."""
    if len(parts) == 1:
        return parts[0], sums[0] if with_sums else None
    total, more = torch.empty_like(parts[0]), torch.empty_like(sums[0])
    sum_parts(parts, total, sums, more)
    return total, more if with_sums else None


@launchable
@triton.jit
def _product(
    a, b, bias, y, sums, M, N, K, T, steps,
    a_t, a_m, a_k, b_t, b_n, b_k, bias_t, bias_n, blocks_m, blocks_n, splits,
    HAS_BIAS: tl.constexpr, HAS_SUMS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y[split, t, m, n] = sum_k a[t, m, k] b[t, n, k], over `steps` blocks of k for each split"""
    block = tl.program_id(0)
    n_block = block % blocks_n
    m_block = block // blocks_n % blocks_m
    split = (block // blocks_n // blocks_m % splits).to(tl.int64)
    t = (block // blocks_n // blocks_m // splits).to(tl.int64)
    m = m_block.to(tl.int64) * BM + tl.arange(0, BM)
    n = n_block.to(tl.int64) * BN + tl.arange(0, BN)
    a_rows = a + t * a_t + m[:, None] * a_m
    b_columns = b + t * b_t + n[None, :] * b_n
    total = tl.zeros([BM, BN], y.dtype.element_ty)
    a_sum = tl.zeros([BM], y.dtype.element_ty)
    for step in range(steps):
        k = (split * steps + step) * BK + tl.arange(0, BK)
        a_tile = tl.load(a_rows + k[None, :] * a_k, (m < M)[:, None] & (k < K)[None, :], other=0.0)
        b_tile = tl.load(
            b_columns + k[:, None] * b_k, (k < K)[:, None] & (n < N)[None, :], other=0.0
        )
        total = multiply_add(a_tile, b_tile, total, PRECISION)
        if HAS_SUMS:
            a_sum += tl.sum(a_tile, 1)
    if HAS_BIAS:
        total += tl.load(bias + t * bias_t + n * bias_n, n < N, other=0.0)[None, :]
    row = (split * T + t) * M + m
    tl.store(y + row[:, None] * N + n[None, :], total, (m < M)[:, None] & (n < N)[None, :])
    if HAS_SUMS:
        tl.store(sums + row, a_sum, (m < M) & (n_block == 0))


def aot() -> list[AotCase]:
    """A wide head in every precision, and its weight gradient."""

    def inputs(dtype=torch.float32):
        return (torch.empty(32, 75, 1600, device="meta", dtype=dtype) for _ in range(2))

    cases = []
    for precision in ("ieee", "tf32x3", "tf32", "bf16"):
        cases += cases_of(
            f"linear {precision}",
            lambda: product(*inputs(), torch.empty(32, 75, device="meta"), precision),  # noqa: B023
            tensor_cores=precision != "ieee",
            targets=(80, 90, 100) if precision in ("ieee", "tf32") else (90,),
        )[-1:]  # what turns weights has a case of its own
        cases += cases_of(
            f"linear weight gradient {precision}",
            lambda: weight_gradient(*inputs(), True, precision),  # noqa: B023
            tensor_cores=precision != "ieee",
            warpgroups=precision in ("tf32x3", "bf16"),
            targets=(90,),
        )[:1]
    double = cases_of(
        "linear float64", lambda: product(*inputs(torch.float64), None, "ieee"), targets=(90,)
    )[-1:]
    one = torch.empty(1, 1, 1, device="meta")
    smallest = cases_of("linear of one number", lambda: product(one, one, one[0], "ieee"))
    x, weight = torch.empty(32, 25, 1600, device="meta"), torch.empty(32, 5, 1600, device="meta")
    head = cases_of("linear of a head", lambda: product(x, weight, None, "ieee"), targets=(90,))
    odd = torch.empty(32, 25, 200, device="meta")  # rows that are not aligned to 16 numbers
    short = cases_of(
        "linear weight gradient of 200 tf32",
        lambda: weight_gradient(odd, odd, True, "tf32"),
        tensor_cores=True,
        targets=(80, 90),
    )
    return cases + head + short + double + smallest
