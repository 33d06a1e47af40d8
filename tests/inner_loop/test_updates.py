"""The update for all parameters together, as on a GPU, beside one after another, as on the CPU."""

import pytest
import torch

from fastmeta.inner_loop import updates

THETA = {"w": torch.randn(2, 3, 4), "b": torch.randn(1, 5).expand(2, 5)}
GRADIENT = {"w": torch.randn(2, 4, 3).mT, "b": torch.randn(2, 5)}
RATES = [0.3, {"w": torch.rand(2, 3, 1), "b": torch.rand(1, 5)}]


@pytest.mark.parametrize("rates", RATES)
def test_all_together_is_one_after_another(rates):
    right = updates.stepped(THETA, GRADIENT, rates, 1, {})
    before = {name: g.clone() for name, g in GRADIENT.items()}
    together = updates._all_together(THETA, GRADIENT, rates, 1)
    for name in THETA:
        assert torch.equal(together[name], right[name])
        assert together[name].stride() == GRADIENT[name].stride()
        assert torch.equal(GRADIENT[name], before[name])


@pytest.mark.parametrize("rates", RATES)
def test_a_step_goes_into_the_room_that_is_there(rates):
    room = updates.room_for_path(THETA, 3)
    assert len(room) == 3 and not room[2]
    for step in (0, 1):
        new = updates.stepped(THETA, GRADIENT, rates, step, room[step])
        assert all(new[name].data_ptr() == room[step][name].data_ptr() for name in THETA)
