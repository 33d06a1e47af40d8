"""Tasks drawn where the images are."""

import pytest
import torch

from fastmeta.episodes import ImageEpisodes

# The odds that a sound sampler fails at this many standard deviations are about one in a million.
DEVIATIONS = 5


def drawn(classes, device, **options):
    options = {"ways": 4, "shots": 2, "queries": 3, "seed": 5} | options
    return ImageEpisodes(classes.to(device), **options).drawn_on_device()


def told(batch):
    """Class and sample [T, S + Q] that the unturned images of a batch say they are, and labels."""
    x = torch.cat([batch.support_x, batch.query_x], 1).mul(255).round().long().cpu()
    labels = torch.cat([batch.support_y, batch.query_y], 1).cpu()
    return x[:, :, 0, 0, 0], x[:, :, 0, 0, 1], labels


def assert_even(counts):
    draws, share = counts.sum(), 1 / counts.numel()
    spread = (draws * share * (1 - share)) ** 0.5
    assert ((counts - draws * share).abs() < DEVIATIONS * spread).all(), counts


def test_classes_and_samples_of_a_task_differ(make_classes, device):
    sizes = [5, 9, 6, 30, 5, 7]
    batch = drawn(make_classes(sizes), device).sample(300)
    assert batch.support_x.device.type == device.type and batch.known_ways == 4
    label, sample, way = told(batch)
    for task in range(300):
        by_way = {w.item(): set(label[task, way[task] == w].tolist()) for w in way[task].unique()}
        assert all(len(classes) == 1 for classes in by_way.values())
        assert len(set.union(*by_way.values())) == 4
        images = set(zip(label[task].tolist(), sample[task].tolist(), strict=True))
        assert len(images) == 20
        assert all(s < sizes[c] for c, s in images)


def test_every_class_and_sample_comes_as_often(make_classes, device):
    label, sample, _ = told(drawn(make_classes([6] * 5), device, queries=1).sample(2000))
    assert_even(label[:, ::3].flatten().bincount(minlength=5).double())
    assert_even(sample.flatten().bincount(minlength=6).double())


@pytest.mark.parametrize("rotations", ["classes", "random"])
def test_turned_classes_are_drawn(make_classes, device, rotations):
    source = drawn(make_classes([6] * 5), device, rotations=rotations)
    images = source.sample(500).support_x.unflatten(1, (4, 2))[:, :, :, 0].cpu()  # [T, N, K, H, W]
    # Where the pixel went that tells the turn.
    marks = [images[..., 0, 2], images[..., 1, 0], images[..., 3, 1], images[..., 2, 3]]
    turn = torch.stack(marks, -1).argmax(-1)
    assert_even(turn[:, :, 0].flatten().bincount(minlength=4).double())
    assert torch.equal(turn[:, :, 0], turn[:, :, 1])


def test_a_stream_continues_and_the_cpu_draws_as_before(make_classes, device):
    classes = make_classes([9] * 6)
    source = drawn(classes, device)
    source.sample(3)
    state = source.state_dict()
    wanted = source.sample(3)
    again = drawn(classes, device, seed=99)
    again.load_state_dict(state)
    assert torch.equal(again.sample(3).query_x, wanted.query_x)
    with pytest.raises(ValueError, match="another kind of device"):
        again.load_state_dict({"generator": torch.zeros(17, dtype=torch.uint8)})
    options = dict(ways=4, shots=2, queries=3, seed=5)
    one, other = (ImageEpisodes(classes, **options) for _ in range(2))
    other.drawn_on_device().sample(4)
    assert torch.equal(one.sample(3).query_x, other.sample(3).query_x)
    assert one.generators == () and source.generators[0].device.type == device.type
