import pytest
import torch

from fastmeta.models import ACTIVATIONS, Sine, mlp


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
