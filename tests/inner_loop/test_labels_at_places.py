"""Cross-entropy of labels at pixels of images and words of sequences, and of classes that weigh."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from native_losses import assert_native, chain
from oracle import DOUBLE, assert_exact, classification_tasks, float32_error_ratio
from torch import nn

import fastmeta as fm
from fastmeta.backends import cpu
from fastmeta.functional.loss_programs import Unreadable
from fastmeta.functional.loss_programs.places import at_places

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")
WEIGHTS = torch.tensor([1.0, 2.5, 0.5], dtype=DOUBLE)
IMAGE, LENGTH = (4, 3), 5


def segmenter(classes=3):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, classes, 1)
    ).double()  # fmt: skip


class Tagger(nn.Module):
    """Scores [S, L, N], the classes last."""

    def __init__(self, classes=3):
        super().__init__()
        self.cells, self.head = nn.GRU(2, 4, batch_first=True), nn.Linear(4, classes)

    def forward(self, x):
        return self.head(self.cells(x)[0])


def tasks_of(sample, places, t=3, s=4, q=2, classes=3):
    x = torch.randn(t, s + q, *sample, dtype=DOUBLE)
    y = torch.randint(classes, (t, s + q, *places))
    return fm.TaskBatch(x[:, :s], y[:, :s], x[:, s:], y[:, s:])


def images(**sizes):
    return tasks_of((2, *IMAGE), IMAGE, **sizes)


def sequences(**sizes):
    return tasks_of((LENGTH, 2), (LENGTH,), **sizes)


def with_ignored(tasks, label, chance=0.3):
    """Some labels of each sample changed, and never all of them."""
    torch.manual_seed(7)
    for y in (tasks.support_y, tasks.query_y):
        chosen = torch.rand(y.shape) < chance
        chosen.flatten(2)[:, :, 0] = False
        y[chosen] = label
    return tasks


def by_pixels(p, y):
    return F.cross_entropy(p.permute(0, 2, 3, 1).reshape(-1, p.shape[1]), y.reshape(-1))


OF_IMAGES = {
    "by name": "cross_entropy",
    "function": F.cross_entropy,
    "module": nn.CrossEntropyLoss(),
    "pixel by pixel": by_pixels,
    "with weights": nn.CrossEntropyLoss(weight=WEIGHTS),
    "with weights that are read": lambda p, y: F.cross_entropy(p, y, WEIGHTS),
}
OF_SEQUENCES = {
    "word by word": lambda p, y: F.cross_entropy(p.flatten(0, 1), y.flatten()),
    "turned": lambda p, y: F.cross_entropy(p.transpose(1, 2), y),
    "with weights": lambda p, y: F.cross_entropy(p.reshape(-1, 3), y.view(-1), WEIGHTS),
}
IGNORING = {
    "as PyTorch does": (F.cross_entropy, -100),
    "borders": (nn.CrossEntropyLoss(ignore_index=255), 255),
    "a class": (lambda p, y: F.cross_entropy(p, y, ignore_index=0), 0),
    "with weights": (nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=1), 1),
}
OTHERS = {
    "a sum": lambda p, y: F.cross_entropy(p, y, reduction="sum"),
    "smoothed": lambda p, y: F.cross_entropy(p, y, label_smoothing=0.1),
    "of each weighted alike": lambda p, y: F.cross_entropy(p, y, WEIGHTS, reduction="none").mean(),
    "shifted": lambda p, y: F.cross_entropy(p[..., 1:], y[..., :-1]),
    "scaled": lambda p, y: F.cross_entropy(2 * p, y),
    "without a gradient": lambda p, y: F.cross_entropy(p.detach() + 0 * p, y),
}


@pytest.mark.parametrize("t", [1, 3, 9])
@pytest.mark.parametrize("loss", OF_IMAGES.values(), ids=OF_IMAGES)
def test_images(loss, t):
    assert_native(fm.MAML(segmenter(), inner_lr=0.3, inner_steps=2, loss=loss), images(t=t))


@pytest.mark.parametrize("t", [1, 3, 9])
@pytest.mark.parametrize("loss", OF_SEQUENCES.values(), ids=OF_SEQUENCES)
def test_sequences(loss, t):
    meta = fm.MAML(Tagger().double(), inner_lr=0.3, inner_steps=2, loss=loss)
    assert_native(meta, sequences(t=t))


@pytest.mark.parametrize(("loss", "label"), IGNORING.values(), ids=IGNORING)
def test_ignored_labels(loss, label):
    meta = fm.MAML(segmenter(), inner_lr=0.3, inner_steps=2, loss=loss)
    assert_native(meta, with_ignored(images(), label))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 4), st.integers(1, 5), st.tuples(st.integers(1, 4), st.integers(2, 9)),
    st.booleans(), st.sampled_from([1, 2, 17]), st.sampled_from([None, 0, -100]),
)  # fmt: skip
def test_any_shape(classes, s, places, last, t, ignored):
    def loss(p, y):
        p = p.movedim(-1, 1) if last else p
        return F.cross_entropy(p, y, ignore_index=-100 if ignored is None else ignored)

    model = nn.Sequential(
        nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, classes * places[0] * places[1]),
        nn.Unflatten(1, (*places, classes) if last else (classes, *places)),
    ).double()  # fmt: skip
    tasks = tasks_of((2,), places, t=t, s=s, classes=classes)
    if ignored is not None:
        with_ignored(tasks, ignored)
    for y in (tasks.support_y, tasks.query_y):
        y.flatten(2)[:, :, 0] = classes - 1  # some count
    assert_native(fm.MAML(model, inner_lr=0.3, inner_steps=2, loss=loss), tasks)


@pytest.mark.parametrize("t", [1, 3, 20])
@pytest.mark.parametrize("width", [8, 40])
def test_weights_of_classes_without_places(width, t):
    model = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 3)).double()
    for loss in (
        nn.CrossEntropyLoss(weight=WEIGHTS),
        lambda p, y: F.cross_entropy(p, y, ignore_index=1),
    ):
        tasks = classification_tasks((2,), t=t)
        tasks.support_y[:, 0] = tasks.query_y[:, 0] = 2
        assert_native(fm.MAML(model, inner_lr=0.3, inner_steps=3, loss=loss), tasks)


def test_weights_that_change_count_at_once():
    loss = nn.CrossEntropyLoss(weight=WEIGHTS.clone())
    meta, tasks = fm.MAML(chain(), inner_lr=0.3, loss=loss), classification_tasks((2,))
    assert_native(meta, tasks)
    loss.weight[0] = 4
    assert_native(meta, tasks)


def test_samples_that_weigh():
    tasks = images()
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5], dtype=DOUBLE).expand(3, 4)
    tasks = fm.TaskBatch(
        tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y, support_weight=weight
    )
    assert_native(fm.MAML(segmenter(), inner_lr=0.3, loss="cross_entropy"), tasks)


@pytest.mark.parametrize("loss", OTHERS.values(), ids=OTHERS)
def test_other_losses_are_run_as_they_are(loss):
    meta, tasks = fm.MAML(segmenter(), inner_lr=0.3, loss=loss), images()
    assert_exact(meta, tasks)
    assert "cross-entropies" in str(meta.choice(tasks=tasks))


@pytest.mark.parametrize("ignored", [-100, 255])
def test_a_mean_over_all_places_counts_what_it_ignores(ignored):
    def loss(p, y):
        return F.cross_entropy(p, y, reduction="none", ignore_index=ignored).mean()

    meta = fm.MAML(segmenter(), inner_lr=0.3, inner_steps=2, loss=loss)
    assert_native(meta, images())
    assert_exact(meta, with_ignored(images(), ignored))


def by_chunks(p, y):
    """Of more than eight samples another mean."""
    if len(p) <= 8:
        return F.cross_entropy(p, y)
    losses = [F.cross_entropy(*chunk) for chunk in zip(p.split(8), y.split(8), strict=True)]
    return torch.stack(losses).mean()


def of_twelve(p, y):
    """Of a number of samples that nobody tries before they come."""
    return 2 * F.cross_entropy(p, y) if len(p) == 12 else F.cross_entropy(p, y)


@pytest.mark.parametrize("loss", [by_chunks, of_twelve])
@pytest.mark.parametrize("of", ["pixels", "samples"])
def test_losses_that_are_others_of_some_numbers_of_samples(of, loss):
    model = segmenter() if of == "pixels" else chain()
    meta = fm.MAML(model, inner_lr=0.3, inner_steps=2, loss=loss)
    for s, q in ((4, 2), (12, 2), (4, 12), (5, 13)):
        tasks = images(s=s, q=q) if of == "pixels" else classification_tasks((2,), s=s, q=q)
        assert_exact(meta, tasks)


def test_losses_that_are_read_without_gradients():
    tasks = images()
    meta = fm.MAML(segmenter(), inner_lr=0.3, loss=lambda p, y: F.cross_entropy(p, y))
    with torch.no_grad():
        found = meta(tasks).loss
    torch.testing.assert_close(found, meta(tasks).loss.detach())


def test_own_backwards_are_not_taken_for_known_ones():
    class Same(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad

    def loss(p, y):
        return F.cross_entropy(Same.apply(p), y)

    with pytest.raises(Unreadable):
        at_places(loss, (3, 5), (5,), samples=(4,), others=(1, 2), dtype=DOUBLE)


def test_a_task_of_ignored_labels_learns_nothing():
    tasks = images()
    tasks.support_y[1] = -100
    meta = fm.MAML(segmenter(), inner_lr=0.3, inner_steps=2, loss=F.cross_entropy)
    assert_exact(meta, tasks)


@pytest.mark.parametrize(
    ("loss", "error", "said"),
    [
        ("cross_entropy", ValueError, r"query_y has labels from 0 to 3"),
        (F.cross_entropy, IndexError, "Target 3 is out of bounds"),
    ],
)
def test_labels_without_a_class(loss, error, said):
    tasks = images()
    tasks.support_y.fill_(0)
    tasks.query_y.fill_(0)
    tasks.query_y[0, 1, 2, 0] = 3
    with pytest.raises(error, match=said):
        fm.MAML(segmenter(), inner_lr=0.3, loss=loss)(tasks)


def test_labels_of_another_shape():
    tasks = images()
    tasks = fm.TaskBatch(
        tasks.support_x, tasks.support_y[..., :2], tasks.query_x, tasks.query_y[..., :2]
    )
    with pytest.raises(ValueError, match=r"support_y is \[3, 4, 4, 2\] and the module's outputs"):
        fm.MAML(segmenter(), inner_lr=0.3, loss="cross_entropy")(tasks)


def test_accuracy_is_that_of_places():
    tasks = images()
    out = fm.MAML(segmenter(), inner_lr=0.3, loss="cross_entropy")(tasks)
    hits = out.predictions.argmax(2) == tasks.query_y
    torch.testing.assert_close(out.accuracy, hits.to(DOUBLE).flatten(1).mean(1))
    words = sequences()
    out = fm.MAML(Tagger().double(), inner_lr=0.3, loss=OF_SEQUENCES["turned"])(words)
    hits = out.predictions.argmax(-1) == words.query_y
    torch.testing.assert_close(out.accuracy, hits.to(DOUBLE).flatten(1).mean(1))


def test_accuracy_leaves_out_ignored_labels():
    tasks = with_ignored(images(), -100)
    out = fm.MAML(segmenter(), inner_lr=0.3, loss=F.cross_entropy)(tasks)
    hits, counts = out.predictions.argmax(2) == tasks.query_y, tasks.query_y >= 0
    right = [float(hit[count].double().mean()) for hit, count in zip(hits, counts, strict=True)]
    torch.testing.assert_close(out.accuracy, torch.tensor(right, dtype=DOUBLE))


def test_accuracy_where_classes_may_be_either_dimension():
    tasks = sequences(classes=LENGTH)
    out = fm.MAML(Tagger(LENGTH).double(), inner_lr=0.3, loss=OF_SEQUENCES["turned"])(tasks)
    with pytest.raises(ValueError, match="third or the last dimension"):
        _ = out.accuracy


def test_many_labels_of_float32():
    torch.manual_seed(0)
    assert float32_error_ratio(segmenter().float(), tasks_of((2, 40, 40), (40, 40), t=2)) < 2
