import numpy as np
import pytest
import torch

from fastmeta.episodes import VectorClasses, VectorEpisodes, read_vectors


def classes_of(sizes=(4, 6, 5), width=3):
    """The first number of a vector is its class, the second its place within it."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    place = np.concatenate([np.arange(size) for size in sizes])
    features = np.stack([labels, place, *[labels] * (width - 2)], 1).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(labels))
    return VectorClasses.from_labels(features[order], labels[order])


def test_tasks_have_the_labels_of_their_classes_and_no_vector_twice():
    source = VectorEpisodes(classes_of(), ways=2, shots=1, queries=3, seed=1)
    tasks = source.sample(50)
    assert tasks.support_x.shape == (50, 2, 3) and tasks.query_x.shape == (50, 6, 3)
    for x, y, query, query_y in zip(
        tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y, strict=True
    ):
        own = {int(label): float(row[0]) for row, label in zip(x, y, strict=True)}
        assert len(set(own.values())) == 2
        assert [own[int(label)] for label in query_y] == query[:, 0].tolist()
        rows = [tuple(row.tolist()) for row in torch.cat([x, query])]
        assert len(set(rows)) == 8
    assert len({tuple(x[:, 0].tolist()) for x in tasks.support_x}) == 6


def test_the_stream_continues_and_does_not_depend_on_the_vectors():
    one, other = (VectorEpisodes(classes_of(), ways=3, queries=2, seed=4) for _ in range(2))
    one.sample(3)
    other.load_state_dict(one.state_dict())
    scaled = VectorEpisodes(classes_of().map(lambda x: 2 * x), ways=3, queries=2, seed=4)
    scaled.sample(3)
    expected = one.sample(2).query_x
    assert torch.equal(other.sample(2).query_x, expected)
    assert torch.equal(scaled.sample(2).query_x, 2 * expected)


def test_classes_are_selected_by_name(tmp_path):
    classes = classes_of()
    assert classes.names == ("0", "1", "2") and classes.sizes.tolist() == [4, 6, 5]
    chosen = classes.select(["2", "0"])
    assert len(chosen) == 2 and chosen.sizes.tolist() == [5, 4]
    assert chosen.features[:, 0].tolist() == [2.0] * 5 + [0.0] * 4
    assert chosen.fingerprint() != classes.select(["0", "2"]).fingerprint()
    assert len(classes.select([])) == 0
    with pytest.raises(ValueError, match="no class '7' among 3"):
        classes.select(["7"])


def test_texts_as_labels_and_dropped_rows(tmp_path):
    x = np.arange(8.0).reshape(4, 2)
    np.savez(tmp_path / "v.npz", x=x, who=np.array(["b", "a", "b", "a"]))
    classes = read_vectors(tmp_path / "v.npz", features="x", labels="who", drop_rows=[0])
    assert classes.names == ("a", "b") and classes.features.tolist() == [[2, 3], [6, 7], [4, 5]]


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.zeros(3), np.zeros(3, int), r"numbers \[n, D\]"),
        (np.zeros((3, 2)), np.zeros(4, int), "3 vectors need a label each"),
        (np.zeros((3, 2)), np.zeros(3), "integers or texts, not float64"),
        (np.array([[0.0], [np.nan]]), np.zeros(2, int), "row 1 of the features"),
    ],
)
def test_arrays_that_do_not_fit(features, labels, message):
    with pytest.raises(ValueError, match=message):
        VectorClasses.from_labels(features, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 4}, "4 ways need 4 classes, and there are 3"),
        ({"ways": 2, "queries": 4}, "class '0' has 4 vectors, but 1 shots and 4 queries need 5"),
        ({"ways": 0}, "ways must be a whole number of at least 1"),
    ],
)
def test_episodes_that_cannot_be_drawn(options, message):
    with pytest.raises(ValueError, match=message):
        VectorEpisodes(classes_of(), **options)
