"""Sources that draw on a device, or send there what they drew."""

import pytest
import torch

from fastmeta.episodes import Sinusoid

devices = pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)],
)


@devices
def test_waves_are_drawn_where_they_stay_and_a_stream_continues(device):
    source = Sinusoid(seed=3, device=device)
    first = source.sample(4)
    state = source.state_dict()
    second = source.sample(4)
    assert {t.device.type for t in (first.support_x, first.query_y)} == {device}
    again = Sinusoid(seed=9, device=device)
    again.load_state_dict(state)
    assert torch.equal(again.sample(4).query_y, second.query_y)
    assert source.generators[0].device.type == device


def test_a_stream_of_another_kind_of_device_is_refused():
    state = {"generator": torch.zeros(16, dtype=torch.uint8)}  # as large as a GPU's
    with pytest.raises(ValueError, match="another kind of device"):
        Sinusoid().load_state_dict(state)
