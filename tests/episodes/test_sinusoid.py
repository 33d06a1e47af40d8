import math

import pytest
import torch

from fastmeta.episodes import Sinusoid


def waves_of(batch):
    """Amplitude and phase that fit each task, from y = a sin x + b cos x, and the residual."""
    x, y = (
        torch.cat([getattr(batch, f"support_{k}"), getattr(batch, f"query_{k}")], 1) for k in "xy"
    )
    basis = torch.cat([x.sin(), x.cos()], 2)
    solution = torch.linalg.lstsq(basis, y).solution[..., 0]
    residual = (basis @ solution[..., None] - y).abs().max()
    return solution.norm(dim=1), torch.atan2(-solution[:, 1], solution[:, 0]), residual


def test_tasks_are_waves_of_the_published_range():
    batch = Sinusoid(shots=7, queries=30, dtype=torch.float64).sample(4000)
    amplitude, phase, residual = waves_of(batch)
    assert residual < 1e-9
    assert 0.1 <= amplitude.min() < 0.12 and 4.98 < amplitude.max() <= 5.0
    assert -1e-9 <= phase.min() < 0.01 and math.pi - 0.01 < phase.max() <= math.pi + 1e-9
    assert -5 <= batch.query_x.min() < -4.99 and 4.99 < batch.query_x.max() <= 5
    assert abs(amplitude.mean() - 2.55) < 0.1 and abs(phase.mean() - math.pi / 2) < 0.1


def test_shapes_and_dtype():
    batch = Sinusoid(shots=3, queries=4, dtype=torch.float64).sample(2)
    assert batch.support_x.shape == batch.support_y.shape == (2, 3, 1)
    assert batch.query_x.shape == batch.query_y.shape == (2, 4, 1)
    assert batch.query_y.dtype == torch.float64


def test_the_seed_decides_and_the_stream_moves_on():
    one, same, other = Sinusoid(seed=1), Sinusoid(seed=1), Sinusoid(seed=2)
    first = one.sample(5)
    assert torch.equal(first.query_y, same.sample(5).query_y)
    assert not torch.equal(first.query_y, other.sample(5).query_y)
    assert not torch.equal(first.query_y, one.sample(5).query_y)


def test_a_stream_continues_where_another_stood():
    one, other = Sinusoid(seed=1), Sinusoid(seed=9)
    one.sample(5)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.sample(3).support_y, other.sample(3).support_y)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Sinusoid().sample(5)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("wrong", [{"shots": 0}, {"queries": 0}])
def test_no_samples_is_an_error(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sinusoid(**wrong)


def test_other_wrong_use():
    with pytest.raises(ValueError, match="n_tasks"):
        Sinusoid().sample(0)
    with pytest.raises(TypeError, match="dtype"):
        Sinusoid(dtype=torch.int64)
