import pytest
import torch

from fastmeta.episodes import ImageEpisodes, PixelScale, omniglot
from fastmeta.episodes.images.rows import TASKS_AHEAD

# The odds that a sound sampler fails at this many standard deviations are about one in a million.
DEVIATIONS = 5


def told(batch):
    """Class and sample [T, S + Q] that the unturned images of a batch say they are, and labels."""
    x = torch.cat([batch.support_x, batch.query_x], 1).mul(255).round().long()
    labels = torch.cat([batch.support_y, batch.query_y], 1)
    return x[:, :, 0, 0, 0], x[:, :, 0, 0, 1], labels


def turns_of(x):
    """Quarter turns counterclockwise of images [..., 4, 4], from where pixel (0, 2) went."""
    corner = torch.stack([x[..., 0, 2], x[..., 1, 0], x[..., 3, 1], x[..., 2, 3]], -1)
    assert (corner == 1).sum(-1).eq(1).all()
    return corner.argmax(-1)


def assert_even(counts):
    """Counts of `draws` that fall on each of n with equal odds."""
    draws, share = counts.sum(), 1 / counts.numel()
    spread = (draws * share * (1 - share)) ** 0.5
    assert ((counts - draws * share).abs() < DEVIATIONS * spread).all(), counts


def same(one, other):
    names = ("support_x", "support_y", "query_x", "query_y")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


# ---- what a task is -----------------------------------------------------------------------------


def test_shapes_and_labels(make_classes):
    episodes = ImageEpisodes(make_classes([9] * 6, channels=3), ways=4, shots=2, queries=3)
    batch = episodes.sample(7)
    assert batch.support_x.shape == (7, 8, 3, 4, 4) and batch.query_x.shape == (7, 12, 3, 4, 4)
    assert batch.support_x.dtype == torch.float32 and batch.support_y.dtype == torch.int64
    assert batch.support_y.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]] * 7
    assert batch.query_y.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]] * 7
    assert batch.support_x.is_contiguous() and batch.query_x.is_contiguous()


def test_classes_and_samples_of_a_task_differ(make_classes):
    sizes = [5, 9, 6, 30, 5, 7]
    batch = ImageEpisodes(make_classes(sizes), ways=4, shots=2, queries=3).sample(500)
    label, sample, way = told(batch)
    for task in range(500):
        by_way = {w.item(): set(label[task, way[task] == w].tolist()) for w in way[task].unique()}
        assert all(len(classes) == 1 for classes in by_way.values())
        assert len(set.union(*by_way.values())) == 4
        images = set(zip(label[task].tolist(), sample[task].tolist(), strict=True))
        assert len(images) == 20  # so support and query have none in common
        assert all(s < sizes[c] for c, s in images)


def test_everything_is_drawn_equally_often(make_classes):
    sizes = [5, 9, 6, 30, 5, 7]
    episodes = ImageEpisodes(make_classes(sizes), ways=3, shots=1, queries=4, seed=3)
    label, sample, way = told(episodes.sample(6000))
    first_of_way = label[:, :3]  # support, one shot a way
    for position in range(3):
        assert_even(first_of_way[:, position].bincount(minlength=6))
    for c, size in enumerate(sizes):
        chosen = label == c
        assert_even(sample[:, :3][chosen[:, :3]].bincount(minlength=size))
        drawn = sample[chosen].bincount(minlength=size)
        assert (drawn > 0).all() and len(drawn) == size
        if size > 5:  # with 5 of 5 every image is in every task
            assert_even(sample[:, 3::4][chosen[:, 3::4]].bincount(minlength=size))


def test_which_classes_meet_is_even(make_classes):
    episodes = ImageEpisodes(make_classes([2] * 5), ways=2, shots=1, queries=1)
    label, _, _ = told(episodes.sample(5000))
    pairs = (5 * label[:, 0] + label[:, 1]).bincount(minlength=25).view(5, 5)
    assert pairs.diagonal().sum() == 0
    assert_even(pairs[~torch.eye(5, dtype=torch.bool)])


def test_the_scale_is_applied(make_classes):
    classes = make_classes([4, 4], channels=3)
    scale = PixelScale(mean=(0.1, 0.2, 0.3), std=0.5, invert=True, dtype=torch.float64)
    options = {"ways": 2, "shots": 1, "queries": 2, "seed": 4}
    raw = ImageEpisodes(classes, **options).sample(5)
    scaled = ImageEpisodes(classes, scale=scale, **options).sample(5)
    assert scaled.query_x.dtype == torch.float64
    assert torch.equal(scaled.query_x, scale(raw.query_x.mul(255).round().byte()))


# ---- rotations ----------------------------------------------------------------------------------


def test_turned_classes_are_classes_of_their_own(make_classes):
    episodes = ImageEpisodes(
        make_classes([3] * 5), ways=4, shots=1, queries=2, rotations="classes", seed=1
    )
    assert episodes.n_classes == 20
    batch = episodes.sample(4000)
    x = torch.cat([batch.support_x, batch.query_x], 1)[:, :, 0]
    turn = turns_of(x)
    upright = torch.stack([torch.rot90(x, -k, (-2, -1)) for k in range(4)])
    upright = upright.gather(0, turn[None, ..., None, None].expand(1, *x.shape))[0]
    label = upright[..., 0, 0].mul(255).round().long()
    both = 4 * label + turn
    ways = torch.cat([batch.support_y, batch.query_y], 1)
    for way in range(4):
        of_way = both[ways == way].view(4000, 3)
        assert (of_way == of_way[:, :1]).all()
        assert_even(of_way[:, 0].bincount(minlength=20))
    support = both[:, :4].sort(1)[0]
    assert (support.diff(dim=1) > 0).all()
    # One character in two turns is two classes.
    assert (label[:, :4].sort(1)[0].diff(dim=1) == 0).any()


def test_turns_at_random_leave_classes_apart(make_classes):
    episodes = ImageEpisodes(
        make_classes([3] * 5), ways=4, shots=1, queries=2, rotations="random", seed=1
    )
    assert episodes.n_classes == 5
    batch = episodes.sample(4000)
    turn, query_turn = turns_of(batch.support_x[:, :, 0]), turns_of(batch.query_x[:, :, 0])
    assert torch.equal(turn.repeat_interleave(2, 1), query_turn)
    for way in range(4):
        assert_even(turn[:, way].bincount(minlength=4))
    x = batch.support_x[:, :, 0]
    upright = torch.stack([torch.rot90(x, -k, (-2, -1)) for k in range(4)])
    upright = upright.gather(0, turn[None, ..., None, None].expand(1, *x.shape))[0]
    label = upright[..., 0, 0].mul(255).round().long()
    assert (label.sort(1)[0].diff(dim=1) > 0).all()


# ---- the stream ---------------------------------------------------------------------------------


def test_the_seed_decides_and_the_stream_moves_on(make_classes):
    classes = make_classes([30] * 30)
    one, alike, other = (ImageEpisodes(classes, seed=seed) for seed in (1, 1, 2))
    first = one.sample(3)
    assert same(first, alike.sample(3))
    assert not same(first, other.sample(3))
    assert not same(first, one.sample(3))


@pytest.mark.parametrize("rotations", [None, "random", "classes"])
def test_tasks_do_not_depend_on_the_batch_sizes(make_classes, rotations):
    classes = make_classes([30] * 30)
    options = {"rotations": rotations, "queries": 3, "seed": 1}
    sizes = (1, 5, TASKS_AHEAD, 2, TASKS_AHEAD + 1, 63, 4, 3)
    at_once = ImageEpisodes(classes, **options).sample(sum(sizes))
    bit_by_bit, begin = ImageEpisodes(classes, **options), 0
    for size in sizes:
        assert same(bit_by_bit.sample(size), at_once[begin : begin + size])
        begin += size


@pytest.mark.parametrize("before", [0, 1, 5, TASKS_AHEAD - 1, TASKS_AHEAD, TASKS_AHEAD + 3])
def test_a_stream_continues_where_another_stood(make_classes, before):
    classes = make_classes([30] * 30)
    one, other = ImageEpisodes(classes, seed=1), ImageEpisodes(classes, seed=9)
    for _ in range(before):
        one.sample(1)
    other.sample(2)
    other.load_state_dict(one.state_dict())
    again = ImageEpisodes(classes, seed=5)
    again.load_state_dict(other.state_dict())
    following = one.sample(3)
    assert same(following, other.sample(3)) and same(following, again.sample(3))


def test_asking_for_the_state_changes_nothing(make_classes):
    classes = make_classes([30] * 30)
    one, other = ImageEpisodes(classes, seed=1), ImageEpisodes(classes, seed=1)
    for _ in range(TASKS_AHEAD + 2):
        one.state_dict()
        assert same(one.sample(1), other.sample(1))


def test_batches_are_the_callers_own(make_classes):
    classes = make_classes([3] * 5)
    episodes = ImageEpisodes(classes, ways=2, queries=1, seed=1)
    batch = episodes.sample(1)
    batch.support_y.fill_(7)
    batch.support_x.fill_(7)
    other = ImageEpisodes(classes, ways=2, queries=1, seed=1)
    other.sample(1)
    assert same(episodes.sample(1), other.sample(1))


def test_the_global_generator_is_left_alone(make_classes):
    before = torch.get_rng_state()
    ImageEpisodes(make_classes([30] * 5)).sample(5)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("rotations", [None, "random", "classes"])
def test_the_same_tasks_on_a_gpu(make_classes, rotations):
    classes = make_classes([30] * 9, channels=3)
    options = {"rotations": rotations, "scale": PixelScale(mean=(0.1, 0.2, 0.3)), "seed": 1}
    here = ImageEpisodes(classes, **options).sample(9)
    there = ImageEpisodes(classes.to("cuda"), **options).sample(9)
    assert there.support_x.is_cuda and there.query_y.is_cuda
    assert torch.equal(here.query_y, there.query_y.cpu())
    # A GPU may fuse the multiplication and the addition.
    torch.testing.assert_close(here.query_x, there.query_x.cpu(), rtol=0, atol=1e-6)


# ---- wrong use ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 0}, "ways must be a whole number of at least 1, not 0"),
        ({"shots": 0}, "shots must be a whole number of at least 1"),
        ({"queries": 0}, "queries must be a whole number of at least 1"),
        ({"ways": 4}, "4 ways need 4 classes, and there are 3"),
        ({"ways": 13, "rotations": "classes"}, "13 ways need 13 classes, and there are 12"),
        ({"shots": 4, "queries": 2}, "class 'class 1' has 5 images, but 4 shots and 2 queries"),
        ({"shots": 5, "queries": 5}, "need 10 .and 2 classes more"),
        ({"rotations": "all"}, "rotations must be None"),
        ({"scale": PixelScale(std=(1.0, 2.0))}, "std has 2 numbers"),
    ],
)
def test_options_that_do_not_fit_the_classes(make_classes, options, message):
    with pytest.raises(ValueError, match=message):
        ImageEpisodes(make_classes([9, 5, 8]), **({"ways": 3, "queries": 1} | options))


def test_other_wrong_use(make_classes):
    classes = make_classes([4, 4])
    with pytest.raises(ValueError, match="n_tasks must be a whole number of at least 1"):
        ImageEpisodes(classes, ways=2, queries=1).sample(0)
    with pytest.raises(ValueError, match="there are 0"):
        ImageEpisodes(classes.select([]))
    oblong = classes.select(classes.names)
    object.__setattr__(oblong, "images", oblong.images[..., :3])
    with pytest.raises(ValueError, match=r"square images, not \[4, 3\]"):
        ImageEpisodes(oblong, ways=2, queries=1, rotations="random")


# ---- real images --------------------------------------------------------------------------------


def test_omniglot_tasks_are_rows_of_the_archive(data_folder):
    train = omniglot(data_folder).train
    batch = ImageEpisodes(train, ways=20, shots=1, queries=5, rotations="classes").sample(8)
    assert batch.query_x.shape == (8, 100, 1, 28, 28)
    known = {image.numpy().tobytes() for image in train.images}
    x = torch.cat([batch.support_x, batch.query_x], 1).mul(255).round().byte().flatten(0, 1)
    for image in x:
        turns = [torch.rot90(image, -k, (-2, -1)).contiguous() for k in range(4)]
        assert any(turn.numpy().tobytes() in known for turn in turns)
