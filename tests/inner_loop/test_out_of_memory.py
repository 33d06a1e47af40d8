"""What is said when memory does not hold an inner loop."""

import pytest
import torch

import fastmeta as fm
from fastmeta.inner_loop import recursion

TASKS = fm.TaskBatch(*(torch.randn(7, 4, 3), torch.randn(7, 4, 2)) * 2)


def full(*_, **__):
    raise torch.OutOfMemoryError("Tried to allocate 9.00 GiB")


@pytest.mark.parametrize("when", ["forward", "backward", "adapt"])
def test_the_size_and_the_way_to_shrink_it_are_told(monkeypatch, when):
    meta = fm.MAML(torch.nn.Linear(3, 2), loss="mse", inner_steps=2, engine="vmap")
    monkeypatch.setattr(recursion, "steps_to_keep", lambda *_: 0)
    loss = meta(TASKS).loss.mean()
    monkeypatch.setattr(recursion, "_support_gradient", full)
    run = {
        "forward": lambda: meta(TASKS),
        "backward": loss.backward,
        "adapt": lambda: meta.adapt(TASKS.support_x, TASKS.support_y),
    }[when]
    with pytest.raises(torch.OutOfMemoryError) as told:
        run()
    message = str(told.value)
    assert "fast weights of 7 tasks over 2 inner steps, 8 numbers each" in message
    assert "fewer tasks in a batch" in message and "order=1" in message
    assert message.count("fast weights") == 1 and message.endswith("Tried to allocate 9.00 GiB")
