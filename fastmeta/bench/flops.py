"""Useful arithmetic: what an exact second-order meta-step needs, whoever computes it.

Counted in passes. One pass of a linear layer [S, I] x [O, I] is one matrix product, 2*S*I*O flops:
x W^T, g W and g^T x are one pass each. So are a convolution, its input gradient and its weight
gradient: 2*S*H*W*9*I*O flops for H*W pixels of output, the products with padding among them; with
I = 1 where each channel is convolved by itself; Winograd's form, which needs fewer, counts as much.
Biases, norms, activations, pools, gates, losses and updates are not counted.

With theta_k the fast weights, L the support loss, and one R-pass (Pearlmutter 1994; forward over
reverse) at each theta_k for the Hessian-vector product of the meta-gradient's recursion::

                              inner layer   first layer    first layer, inputs learned
    inner gradient            3             2              2
      forward x W^T           1             1              1
      g^T x                   1             1              1
      g W                     1             -              -
    R-pass                    8             3              5
      forward x W^T           1             1              1
      backward g W            1             -              -
      R-forward Rx W^T + x V^T    2         1 (Rx = 0)     1
      R-backward Rg W + g V   2             -              2
      Rg^T x + g^T Rx         2             1              1
    query gradient            3             2              3

    flops a task = sum over layers P * (K*S*(inner gradient + R-pass) + Q*(query gradient)),
    P = 2*I*O or 2*H*W*9*I*O

Where the gradient of the one output by the sample is predicted, too, every layer but the last is an
inner layer once more, from its outputs to its inputs.

The activations of the first pass are not kept (memory flat in K), so the R-pass counts them again.
"""

from __future__ import annotations

from fastmeta.bench.workloads import Workload


def useful_flops(workload: Workload) -> int:
    """Flops of one meta-step of all tasks, see the module's docstring."""
    return workload.tasks * sum(
        flops * _passes(workload, first=index == 0)
        for index, flops in enumerate(_flops_of_a_pass(workload))
    )


def _flops_of_a_pass(workload: Workload) -> list[int]:
    """Of each layer, for one sample."""
    convolutions = [2 * c.pixels * c.taps * c.inputs * c.outputs for c in workload.convolutions]
    linear = [2 * inputs * outputs for inputs, outputs in workload.layers]
    return convolutions + linear + (linear[:-1] if workload.slopes else [])


def _passes(workload: Workload, first: bool) -> int:
    """Over one sample each, of all samples of a task."""
    inner_gradient, r_pass, query_gradient = _passes_of_a_sample(first, workload.learns_inputs)
    of_support = workload.steps * workload.support * (inner_gradient + r_pass)
    return of_support + workload.query * query_gradient


def _passes_of_a_sample(first: bool, learns_inputs: bool) -> tuple[int, int, int]:
    if not first:
        return 3, 8, 3
    return (2, 5, 3) if learns_inputs else (2, 3, 2)
