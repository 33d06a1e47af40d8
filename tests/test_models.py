import pytest
import torch
import torch.nn.functional as F

from fastmeta.models import (
    ACTIVATIONS,
    ResidualBlock,
    ResidualMLP,
    Sine,
    conv4,
    mlp,
    omniglot_fc,
    resnet12,
    siren,
)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_is_linear_layers_with_activations_between(activation):
    model = mlp([2, 7, 3], activation)
    kinds = [type(layer) for layer in model]
    assert kinds == [torch.nn.Linear, ACTIVATIONS[activation], torch.nn.Linear]
    assert model(torch.randn(5, 2)).shape == (5, 3)


@pytest.mark.parametrize("sizes", [[], [3], [3, 0]])
def test_sizes_that_make_no_network_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes"):
        mlp(sizes)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation must be one of relu"):
        mlp([1, 2], "swoosh")


def test_sine_has_a_frequency():
    x = torch.randn(4)
    assert torch.equal(Sine(30.0)(x), torch.sin(30 * x))
    assert "frequency=30" in repr(Sine(30.0))


# ---- networks for images -----------------------------------------------------------------------


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("model", "image", "size"),
    [
        # By hand: the first convolution, three more, four norms, the head.
        (conv4(5), (1, 28, 28), 640 + 3 * 36928 + 4 * 128 + 325),
        (conv4(20, pool="stride"), (1, 28, 28), 640 + 3 * 36928 + 4 * 128 + 1300),
        (conv4(5, 3, 32, 84), (3, 84, 84), 896 + 3 * 9248 + 4 * 64 + 4005),
        (conv4(5, layers=3, padding=0), (1, 28, 28), 640 + 2 * 36928 + 3 * 128 + 325),
        (omniglot_fc(5), (1, 28, 28), 200960 + 32896 + 8256 + 4160 + 2 * 512 + 325),
        (
            resnet12(5, widths=(4, 6)), (3, 12, 12),
            (108 + 2 * 144 + 12 + 4 * 8) + (216 + 2 * 324 + 24 + 4 * 12) + 35,
        ),
    ],
)  # fmt: skip
def test_image_networks_have_the_papers_shapes(model, image, size):
    ways = model[-1].out_features
    assert parameters(model) == size
    assert model(torch.randn(3, *image)).shape == (3, ways)


def test_the_full_residual_network():
    model = resnet12(None)
    assert model(torch.randn(2, 3, 84, 84)).shape == (2, 640)
    assert parameters(model) == 12_424_320  # MetaOptNet's embedding
    assert model[3].convolutions[6].out_channels == 640


def test_an_encoder_has_no_head():
    assert conv4(None)(torch.randn(2, 1, 28, 28)).shape == (2, 64)
    assert conv4(None, pool="stride", filters=8)(torch.randn(2, 1, 28, 28)).shape == (2, 8)


@pytest.mark.parametrize("model", [conv4(5), omniglot_fc(5), resnet12(5, widths=(4, 4))])
def test_norms_use_the_batch_in_eval_too(model):
    x = torch.randn(6, 3 if isinstance(model[0], ResidualBlock) else 1, 28, 28)
    torch.testing.assert_close(model.train()(x), model.eval()(x))
    assert not list(model.buffers())


def test_convolutions_start_as_in_the_papers_code():
    torch.manual_seed(0)
    model = conv4(5, pool="stride")
    for block in model[:4]:
        channels = block[0].in_channels
        bound = (6 / (9 * (channels + 64))) ** 0.5
        assert 0.9 * bound < block[0].weight.abs().max() <= bound
        assert not block[0].bias.any()
    assert abs(model[-1].weight.std() - 1) < 0.1
    head = conv4(5)[-1].weight
    assert head.abs().max() <= (6 / 69) ** 0.5 and not conv4(5)[-1].bias.any()


def test_fully_connected_starts_small():
    weight = omniglot_fc(5)[1].weight
    assert weight.abs().max() <= 0.02 and abs(weight.std() - 0.0088) < 3e-4


def test_residual_network_starts_from_kaiming():
    weight = resnet12(5, widths=(64, 64))[1].convolutions[0].weight
    assert abs(weight.std() / (2 / (64 * 9 * (1 + 0.01**2))) ** 0.5 - 1) < 0.02


def test_a_residual_block_is_what_it_says():
    block = ResidualBlock(2, 4)
    x = torch.randn(3, 2, 6, 6)
    total = block.convolutions(x) + block.shortcut(x)
    assert torch.equal(block(x), F.max_pool2d(F.leaky_relu(total, 0.1), 2))


def test_siren_starts_as_in_the_paper():
    torch.manual_seed(0)
    model = siren([2, 256, 256, 3], frequency=20.0)
    assert [type(layer) for layer in model] == [torch.nn.Linear, Sine] * 2 + [torch.nn.Linear]
    assert model[1].frequency == model[3].frequency == 20
    for layer, bound in ((model[0], 1 / 2), (model[2], (6 / 256) ** 0.5 / 20)):
        assert 0.95 * bound < layer.weight.abs().max() <= bound
    inner = model[:4](torch.rand(500, 2) * 2 - 1)
    assert 0.6 < inner.std() < 0.8  # sin of something normal: the arcsine law's 0.71


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: conv4(0), "ways must be a whole number"),
        (lambda: conv4(5, channels=0), "channels must be"),
        (lambda: conv4(5, filters=1.5), "filters must be"),
        (lambda: conv4(5, pool="mean"), 'pool must be "max" or "stride"'),
        (lambda: conv4(5, padding=-1), "padding must be"),
        (lambda: conv4(5, padding=0), "4 layers with padding 0 leave nothing of an image of 28x28"),
        (lambda: resnet12(5, widths=()), "widths must name"),
        (lambda: resnet12(5, widths=(4, 0)), r"widths\[1\] must be"),
        (lambda: resnet12(True), "ways must be"),
        (lambda: omniglot_fc(5, inputs=0), "inputs must be"),
        (lambda: siren([2]), "sizes must be"),
        (lambda: siren([2, 3], 0.0), "frequency must be positive"),
    ],
)
def test_what_makes_no_network_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_residual_perceptron_adds_to_its_input():
    model = ResidualMLP(3, [5, 4], "tanh", dropout=0.5)
    x = torch.randn(6, 3)
    assert parameters(model) == (15 + 5) + (20 + 4) + (12 + 3)
    assert not torch.equal(model(x), model(x))
    model.eval()
    torch.testing.assert_close(model(x), x + model.layers(x))
    for wrong in ({"hidden": [0]}, {"hidden": [], "activation": "x"}, {"hidden": [], "dropout": 1}):
        with pytest.raises(ValueError):
            ResidualMLP(3, **wrong)


def test_omniglot_fc_without_a_head():
    assert omniglot_fc(None)(torch.randn(4, 1, 28, 28)).shape == (4, 64)
