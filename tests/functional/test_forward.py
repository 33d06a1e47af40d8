import threading

import pytest
import torch
from oracle import DOUBLE
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastmeta.functional.forward import (
    _linear_chain,
    _vmap_forward,
    call_module,
    has_hooks,
    task_forward,
)
from fastmeta.models import Sine, mlp

T, S = 3, 4


def per_task(module, shared=()):
    return {
        name: p.detach().clone()
        if name in shared
        else p.detach() + 0.1 * torch.randn(T, *p.shape, dtype=p.dtype)
        for name, p in module.named_parameters()
    }


def one_by_one(module, parameters, x):
    ranks = {name: p.dim() for name, p in module.named_parameters()}
    tasks = [
        {n: p if p.dim() == ranks[n] else p[t] for n, p in parameters.items()} for t in range(T)
    ]
    return torch.stack([call_module(module, task, x[t]) for t, task in enumerate(tasks)])


CHAINS = {
    "nested": nn.Sequential(
        nn.Flatten(), nn.Sequential(nn.Linear(6, 5), Sine(3.0)), nn.Linear(5, 2, bias=False)
    ),
    "linear": nn.Linear(6, 2),
    "activations": nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Softplus(), nn.LeakyReLU(0.3)),
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("shared", ["none", "all", "weights"])
def test_a_chain_runs_without_vmap_and_gives_the_same(name, shared):
    module = CHAINS[name].to(DOUBLE)
    names = [n for n, _ in module.named_parameters() if shared == "all" or n.endswith("weight")]
    parameters = per_task(module, () if shared == "none" else names)
    x = torch.randn(T, S, 6, dtype=DOUBLE)
    assert _linear_chain(module) is not None
    out = task_forward(module, parameters, x)
    torch.testing.assert_close(out, one_by_one(module, parameters, x))
    torch.testing.assert_close(out, _vmap_forward(module, parameters, x, None))


def test_a_chain_takes_further_dimensions():
    module = mlp([3, 4, 2]).double()
    x = torch.randn(T, S, 7, 3, dtype=DOUBLE)
    parameters = per_task(module)
    out = task_forward(module, parameters, x)
    assert out.shape == (T, S, 7, 2)
    torch.testing.assert_close(out, one_by_one(module, parameters, x))


def test_a_hook_is_not_bypassed():
    module = mlp([3, 4, 2]).double()
    module[1].register_forward_hook(lambda layer, args, out: out + 1)
    assert has_hooks(module[1]) and not has_hooks(module)
    x, parameters = torch.randn(T, S, 3, dtype=DOUBLE), per_task(module)
    torch.testing.assert_close(
        task_forward(module, parameters, x), one_by_one(module, parameters, x)
    )


@pytest.mark.parametrize("training", [True, False])
def test_norms_use_the_task_and_keep_their_buffers(training):
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).train(training).double()
    before = {name: b.clone() for name, b in module.state_dict().items()}
    x = 5 + torch.randn(T, 50, 3, dtype=DOUBLE)
    out = task_forward(module, per_task(module), x)
    assert all(torch.equal(b, before[name]) for name, b in module.state_dict().items())
    normed = task_forward(nn.Sequential(module[0]), {"0.weight": torch.ones(3, dtype=DOUBLE),
                          "0.bias": torch.zeros(3, dtype=DOUBLE)}, x)  # fmt: skip
    torch.testing.assert_close(normed.mean(1), torch.zeros(T, 3, dtype=DOUBLE))
    assert out.shape == (T, 50, 2)
    assert module[0].track_running_stats and module[0].running_mean is not None


class Turned(nn.Module):
    """A layer that reads the places of a sequence as rows of another dimension."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        turned = x.transpose(0, 1)
        if isinstance(self.layer, nn.MultiheadAttention):
            turned, _ = self.layer(turned, turned, turned, need_weights=False)
        else:
            turned = self.layer(turned)
        return turned.transpose(0, 1)


class Products(TorchDispatchMode):
    """Of how many matrices of this many rows a product was taken, at most."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.most = rows, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.bmm.default and self.rows in args[1].shape[1:]:
            self.most = max(self.most, len(args[1]))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("layer", [nn.Linear(6, 18), nn.MultiheadAttention(6, 2)])
def test_a_turned_sequence_is_one_matrix_a_task(layer):
    module = Turned(layer).double()
    parameters, x = per_task(module), torch.randn(T, S, 5, 6, dtype=DOUBLE)
    with Products(rows=18) as products:
        out = task_forward(module, parameters, x)
    assert products.most == T
    assert torch.allclose(out, one_by_one(module, parameters, x), rtol=0, atol=1e-12)


def test_a_layer_with_two_names_keeps_its_parameters():
    layer, tied = nn.Linear(3, 3), nn.Linear(3, 3)
    tied.bias = layer.bias
    module = nn.Sequential(layer, nn.Tanh(), layer, tied)
    own = [layer.weight, layer.bias, tied.weight, tied.bias]
    others = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    assert not call_module(module, others, torch.ones(2, 3)).any()
    after = [module[2].weight, module[0].bias, tied.weight, tied.bias]
    assert all(a is b for a, b in zip(after, own, strict=True))


def test_settings_of_torch_come_back():
    fast_path = torch.backends.mha.get_fastpath_enabled()
    flash = torch.backends.cuda.flash_sdp_enabled()
    module = nn.Linear(2, 2)
    call_module(module, dict(module.named_parameters()), torch.randn(3, 2))
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    assert torch.backends.cuda.flash_sdp_enabled() == flash


def test_two_threads_may_run_one_module():
    module = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2)).double()
    x = torch.randn(T, S, 3, dtype=DOUBLE)
    several = [per_task(module) for _ in range(2)]
    right = [task_forward(module, parameters, x) for parameters in several]
    wrong = []

    def work(which):
        for _ in range(30):
            if not torch.equal(task_forward(module, several[which], x), right[which]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
