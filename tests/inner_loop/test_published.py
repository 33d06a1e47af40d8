"""Networks of published few-shot code, all but word by word, in the resident engine."""

import published_models as published
import pytest
from oracle import assert_exact, classification_tasks

import fastmeta as fm
from fastmeta.backends import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason="no native kernels")

MODELS = {
    "learn2learn omniglot": (published.OmniglotCNN, (28, 28)),
    "learn2learn omniglot, images": (published.OmniglotCNN, (1, 28, 28)),
    "learn2learn cnn4": (published.CNN4, (3, 32, 32)),
    "learn2learn resnet12": (lambda: published.ResNet12(pool=2), (3, 32, 32)),
    "wide resnet": (published.WideResNet, (3, 8, 8)),
    "torchmeta": (published.MetaConvModel, (1, 28, 28)),
    "maml-pytorch": (published.Learner, (1, 28, 28)),
    "higher": (published.higher_omniglot, (1, 28, 28)),
    "a dict of weights": (published.Functional, (784,)),
    "prototypes": (lambda: published.ProtoEncoder().eval(), (1, 12, 12)),
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_published_networks_are_exact_and_resident(name, order):
    make, sample = MODELS[name]
    tasks = classification_tasks(sample, t=2, s=4, q=3)
    meta = fm.MAML(make().double(), inner_lr=0.05, inner_steps=2, order=order)
    choice = fm.explain(meta, tasks)
    assert choice.name == "resident", choice.passed_over["resident"]
    assert_exact(meta, tasks, tolerance=1e-9)
