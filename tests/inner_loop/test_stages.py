"""Networks of images in the resident engine: against the reference, in every form they have."""

import copy
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import (
    DOUBLE,
    assert_exact,
    assert_slope,
    classification_tasks,
    float32_error_ratio,
    gradients,
    outer_loss,
    relative_error,
)
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.inner_loop.reading.stages import never_fits, stages_of

pytestmark = pytest.mark.skipif(
    cpu.unavailable() is not None, reason=f"no native kernels: {cpu.unavailable()}"
)


def norm(kind, channels, height, width):
    return {
        "none": nn.Identity,
        "batch": lambda: nn.BatchNorm2d(channels),
        "plain batch": lambda: nn.BatchNorm2d(channels, affine=False),
        "group": lambda: nn.GroupNorm(channels // 2 if channels % 2 == 0 else 1, channels),
        "layer": lambda: layer_norm(channels, height, width),
        "plain layer": lambda: nn.LayerNorm((channels, height, width), 0.1, False),
        "layer over pixels": lambda: layer_norm(height, width),
    }[kind]()


def layer_norm(*over, bias=True):
    """Of an eps that keeps a norm of norms from magnifying rounding."""
    layer = nn.LayerNorm(over, eps=0.1, bias=bias)
    for p in layer.parameters():
        nn.init.normal_(p, mean=0.5)
    return layer


ACTIVATIONS = [nn.Tanh(), nn.GELU(), nn.Softplus(), nn.ELU(), nn.SiLU(), nn.Identity()]
NORMS = ["none", "batch", "plain batch", "group", "layer", "plain layer", "layer over pixels"]


@st.composite
def networks(draw):
    """A network of one or two convolutions and a linear layer, and the shape of its samples."""
    channels, height, width = (draw(st.sampled_from(s)) for s in ([1, 3], [7, 10], [8, 9]))
    layers, c, shape = [], channels, (height, width)
    for _ in range(draw(st.integers(1, 2))):
        out = draw(st.sampled_from([2, 4, 16, 19]))
        kernel = draw(st.sampled_from([1, 3, (2, 3)])) if min(shape) >= 3 else 1
        conv = nn.Conv2d(
            c, out, kernel, bias=draw(st.booleans()),
            stride=draw(st.sampled_from([1, 2, (1, 3)])), padding=draw(st.sampled_from([0, 1])),
        )  # fmt: skip
        shape = tuple(conv(torch.zeros(1, c, *shape)).shape[2:])
        block = [
            norm(draw(st.sampled_from(NORMS)), out, *shape),
            draw(st.sampled_from(ACTIVATIONS)),
        ]
        layers += [conv, *(block if draw(st.booleans()) else block[::-1])]
        c = out
        pool = draw(st.sampled_from([None, nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(1, 2)]))
        if pool is not None and min(shape) >= 2:
            layers.append(pool)
            shape = tuple(pool(torch.zeros(1, 1, *shape)).shape[2:])
    if draw(st.booleans()):
        layers.append(nn.AdaptiveAvgPool2d(1))
        shape = (1, 1)
    width_of_all = c * shape[0] * shape[1]
    flat = draw(st.sampled_from([[], [layer_norm(width_of_all, bias=draw(st.booleans()))]]))
    layers += [nn.Flatten(), *flat, nn.Linear(width_of_all, 3)]
    return nn.Sequential(*layers), (channels, height, width)


@given(
    networks(), st.sampled_from([1, 2]), st.sampled_from([None, "tensor", "element"]),
    st.booleans(), st.integers(0, 2), st.integers(1, 3), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=40)
def test_random_networks_are_exact(network, order, learn, per_step, steps, tasks, seed):
    torch.manual_seed(seed)
    model, shape = network
    model = copy.deepcopy(model).double()
    for p in list(model.parameters())[seed % 5 :: 7]:
        p.requires_grad_(False)
    meta = fm.MAML(
        model, inner_lr=0.05, inner_steps=steps, order=order, learn_inner_lr=learn,
        per_step_lr=per_step and learn is not None,
    )  # fmt: skip
    batch = classification_tasks(shape, t=tasks, s=3, q=4)
    for x in (batch.support_x, batch.query_x):
        x.requires_grad_()
    assert meta.choice().name == "resident"
    inputs = [p for p in meta.parameters() if p.requires_grad] + [batch.support_x, batch.query_x]
    with fm.use_backend("cpu"):
        ours, loss = gradients(meta, batch, inputs), meta(batch).loss
    with fm.use_backend("reference"):
        right, right_loss = gradients(meta, batch, inputs), meta(batch).loss
    assert relative_error([loss], [right_loss]) < 1e-12
    assert relative_error(ours, right) < 1e-9


def conv4(filters=8, channels=1, pool=True):
    def block(c):
        conv = nn.Conv2d(c, filters, 3, padding=1, stride=1 if pool else 2)
        tail = [nn.MaxPool2d(2)] if pool else []
        return [conv, nn.BatchNorm2d(filters), nn.ReLU(), *tail]

    end = [nn.Flatten()] if pool else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    blocks = [*block(channels), *block(filters), *block(filters)]
    return nn.Sequential(*blocks, *end, nn.Linear(filters, 3))


@pytest.mark.parametrize("pool", [True, False])
def test_conv4_is_exact_with_every_instruction_set(variant, pool):
    meta = fm.MAML(conv4(pool=pool).double(), inner_lr=0.1, inner_steps=2)
    batch = classification_tasks((1, 12, 12) if pool else (1, 13, 13))
    inputs = list(meta.parameters())
    ours = gradients(meta, batch, inputs)
    with fm.use_backend("reference"):
        assert relative_error(ours, gradients(meta, batch, inputs)) < 1e-10


def test_the_meta_gradient_is_the_slope_of_the_meta_loss():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(16, 3),
    ).double()  # fmt: skip
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2)
    batch = classification_tasks((1, 7, 7))
    assert_slope(lambda: outer_loss(meta, batch), list(meta.parameters()))


def test_the_gradient_of_a_bias_before_batch_norm_is_zero():
    model = conv4().double()
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2)
    meta(classification_tasks((1, 12, 12))).loss.sum().backward()
    largest = model[0].weight.grad.abs().max()
    assert model[0].bias.grad.abs().max() < 1e-12 * largest


def layer_normed(dtype=torch.float32):
    """Each form of layer norm."""
    return nn.Sequential(
        layer_norm(1, 12, 12), nn.Conv2d(1, 16, 3, padding=1), layer_norm(16, 12, 12), nn.ReLU(),
        nn.MaxPool2d(2), layer_norm(6, 6), nn.Conv2d(16, 3, 3), nn.GELU(), nn.Flatten(),
        layer_norm(48, bias=False), nn.Linear(48, 3),
    ).to(dtype)  # fmt: skip


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_layer_norm_is_exact_with_every_instruction_set(variant, steps):
    model = layer_normed(DOUBLE)
    for frozen in (model[2].weight, model[5].bias):
        frozen.requires_grad_(False)
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=steps)
    assert meta.choice().name == "resident"
    batch = classification_tasks((1, 12, 12))
    for x in (batch.support_x, batch.query_x):
        x.requires_grad_()
    inputs = [p for p in model.parameters() if p.requires_grad]
    assert_exact(meta, batch, [*inputs, batch.support_x, batch.query_x], 1e-10)


def test_the_meta_gradient_of_layer_norm_is_the_slope_of_the_meta_loss():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), layer_norm(4, 5, 5), nn.Tanh(), layer_norm(5, 5), nn.Flatten(),
        layer_norm(100), nn.Linear(100, 3),
    ).double()  # fmt: skip
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2)
    batch = classification_tasks((1, 7, 7))
    assert_slope(lambda: outer_loss(meta, batch), list(meta.parameters()))


@pytest.mark.parametrize(
    "network",
    [lambda: conv4(16), lambda: conv4(32), layer_normed],
    ids=["conv4", "conv4 in tiles", "layer norm"],
)
@pytest.mark.parametrize("tasks", [1, 3])
def test_the_same_bits_for_any_number_of_threads(tasks, network):
    model = network()
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2, learn_inner_lr="element")
    batch = classification_tasks((1, 12, 12), t=tasks, s=10, q=30).to(dtype=torch.float32)
    inputs = list(meta.parameters())
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([meta(batch).loss, *gradients(meta, batch, inputs)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("network", [lambda: conv4(32), layer_normed], ids=["conv4", "layer norm"])
def test_float32_is_within_twice_the_error_of_pytorch(network):
    """In the median of nine draws: of few a ReLU near its kink may decide."""

    ratios = []
    for seed in range(9):
        torch.manual_seed(seed)
        model = network()
        batch = classification_tasks((1, 12, 12), t=2, s=6, q=10)
        ratios.append(float32_error_ratio(model, batch))
    assert statistics.median(ratios) < 2


def test_ragged_tasks_without_statistics_over_samples():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(100, 3)
    ).double()
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2)
    weight = torch.tensor([[1.0, 1, 0.5, 0, 0], [1, 1, 1, 1, 1]], dtype=DOUBLE)
    plain = classification_tasks((1, 7, 7), t=2)
    plain.support_x[0, 3:] = torch.nan
    batch = fm.TaskBatch(
        plain.support_x, plain.support_y, plain.query_x, plain.query_y, support_weight=weight
    )
    inputs = list(meta.parameters())
    ours = gradients(meta, batch, inputs)
    with fm.use_backend("reference"):
        assert relative_error(ours, gradients(meta, batch, inputs)) < 1e-11


def test_adapted_parameters_and_their_gradient():
    model = conv4().double()
    meta = fm.MAML(model, inner_lr=0.1, inner_steps=2)
    batch = classification_tasks((1, 12, 12))

    def run():
        fast = meta.adapt(batch.support_x, batch.support_y).parameters
        value = sum(p.sin().sum() for p in fast.values())
        return [*fast.values()], torch.autograd.grad(value, list(meta.parameters()))

    (ours, ours_g), reference = run(), None
    with fm.use_backend("reference"):
        reference = run()
    assert relative_error(ours, reference[0]) < 1e-12
    assert relative_error(ours_g, reference[1]) < 1e-10


def test_values_that_are_too_large_to_keep_are_computed_again(monkeypatch):
    """1 GiB of query values: 40 tasks of 80 x 80 images, in the narrowest network that has them."""
    model = nn.Sequential(nn.Conv2d(1, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    meta = fm.MAML(model, inner_lr=0.1, loss="mse")
    x = torch.randn(1, 2, 1, 256, 256)
    many = fm.TaskBatch(
        x, torch.zeros(1, 2, 16), x.repeat(1, 150, 1, 1, 1)[:, :300], torch.zeros(1, 300, 16)
    )
    meta(many).loss.sum().backward()
    few = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    same = fm.TaskBatch(x, torch.zeros(1, 2, 16), x, torch.zeros(1, 2, 16))
    meta(same).loss.sum().backward()
    assert relative_error([p.grad for p in model.parameters()], few) < 1e-4


def reason(model, *shape):
    found = stages_of(model, shape)
    return found if isinstance(found, str) else None


def test_what_is_not_a_chain_of_stages_has_a_reason():
    conv = nn.Conv2d(1, 4, 3)
    assert "groups" in reason(nn.Sequential(nn.Conv2d(6, 6, 3, groups=2)), 6, 8, 8)
    assert "channels" in reason(nn.Sequential(conv), 2, 8, 8)
    assert "ceil_mode" in reason(nn.Sequential(conv, nn.MaxPool2d(4, ceil_mode=True)), 1, 8, 8)
    assert "leaves nothing" in reason(nn.Sequential(conv), 1, 2, 2)
    assert "not among the layers" in reason(nn.Sequential(conv, nn.Dropout(0.5)), 1, 8, 8)
    flat = nn.Sequential(conv, nn.Flatten(), nn.BatchNorm1d(4))
    assert "over flattened" in reason(flat, 1, 8, 8)
    assert never_fits(nn.Sequential(conv, nn.LSTM(3, 4))) is not None
    assert "over [6] of samples" in reason(nn.Sequential(conv, nn.LayerNorm(6)), 1, 8, 8)
    flat = nn.Sequential(conv, nn.Flatten(), nn.LayerNorm(36))
    assert "over [36] of samples [144]" in reason(flat, 1, 8, 8)
    shared = nn.Sequential(conv, nn.Flatten(), nn.Linear(144, 144))
    shared.append(shared[2])
    assert "share" in reason(shared, 1, 8, 8)


def test_batch_norm_over_one_value_is_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    meta = fm.MAML(model, inner_lr=0.1)
    x, y = torch.randn(2, 5, 3), torch.zeros(2, 5, dtype=torch.int64)
    meta(fm.TaskBatch(x, y, x, y)).loss.sum().backward()
    with pytest.raises(ValueError, match=r"query_x \[1, 3\] .* more than 1 value"):
        meta(fm.TaskBatch(x, y, x[:, :1], y[:, :1]))


def test_another_image_size_is_another_network():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    meta = fm.MAML(model, inner_lr=0.1)
    for size in (6, 9):
        batch = classification_tasks((1, size, size), n_way=4)
        inputs = list(meta.parameters())
        ours = gradients(meta, batch, inputs)
        with fm.use_backend("reference"):
            assert relative_error(ours, gradients(meta, batch, inputs)) < 1e-11


ODD = {
    "stride past the kernel": nn.Conv2d(2, 4, 2, stride=4),
    "padding past the kernel": nn.Conv2d(2, 4, 2, padding=3),
    "a kernel larger than the image": nn.Conv2d(2, 4, 9, padding=4),
    "images of one pixel after it": nn.Conv2d(2, 4, 8),
    "a flat kernel": nn.Conv2d(2, 4, (1, 3), padding=(0, 4)),
}


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("engine", ["resident", "layered"])
@pytest.mark.parametrize("odd", ODD)
def test_odd_convolutions_are_exact(odd, engine, samples):
    conv = copy.deepcopy(ODD[odd])
    pixels = conv(torch.zeros(1, 2, 8, 8)).numel()
    model = nn.Sequential(conv, nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(pixels, 3))
    meta = fm.MAML(model.double(), inner_lr=0.05, inner_steps=2, engine=engine)
    batch = classification_tasks((2, 8, 8), t=2, s=samples, q=samples)
    inputs = [*meta.parameters()]
    with fm.use_backend("reference"):
        right = gradients(meta, batch, inputs)
    assert relative_error(gradients(meta, batch, inputs), right) < 1e-9


@pytest.mark.parametrize("side", [nn.Conv2d(2, 4, 9), nn.MaxPool2d(9)], ids=["conv", "pool"])
def test_windows_that_do_not_fit_are_refused(side):
    meta = fm.MAML(nn.Sequential(side, nn.Flatten(), nn.Linear(4, 3)).double())
    with pytest.raises(ValueError, match="cannot take a task's support_x"):
        meta(classification_tasks((2, 8, 8), t=2, s=3, q=3))
