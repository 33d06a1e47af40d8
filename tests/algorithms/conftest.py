import pytest
import torch


@pytest.fixture
def backwards(monkeypatch):
    """How often autograd's backward was asked for."""
    asked = []
    backward = torch.Tensor.backward

    def noted(tensor, *args, **options):
        asked.append(tensor)
        return backward(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "backward", noted)
    return asked
