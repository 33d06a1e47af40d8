import torch

import fastmeta as fm
from fastmeta.cli.config import meta_config, training_config
from fastmeta.cli.network import mlp_config
from fastmeta.cli.options import build_parser
from fastmeta.cli.setup import Job, make_meta, make_run
from fastmeta.training import Schedule


def options_of(line):
    return build_parser().parse_args(["train", "sinusoid", *line.split()])


def config_of(line):
    options = options_of(line)
    return {
        "model": mlp_config(options, inputs=1),
        "meta": meta_config(options),
        "training": training_config(options),
    }


def meta_of(line):
    return make_meta(config_of(line))


def test_each_algorithm_is_what_its_name_says():
    assert type(meta_of("")) is fm.MAML and meta_of("").order == 2
    assert meta_of("--algorithm fomaml").order == 1
    assert type(meta_of("--algorithm anil")) is fm.ANIL
    assert meta_of("--algorithm anil").adapt_parameters == ("4.weight", "4.bias")
    assert type(meta_of("--algorithm reptile")) is fm.Reptile
    assert meta_of("--algorithm metasgd").learn_inner_lr == "element"


def test_options_reach_the_meta_learner():
    meta = meta_of(
        "--hidden 7 --activation tanh --inner-lr 0.3 --inner-steps 4 --learn-inner-lr tensor "
        "--per-step-lr --engine vmap"
    )
    assert [tuple(p.shape) for p in meta.model.parameters()] == [(7, 1), (7,), (1, 7), (1,)]
    assert type(meta.model[1]) is torch.nn.Tanh
    assert (meta.inner_lr, meta.inner_steps, meta.engine) == (0.3, 4, "vmap")
    assert meta.learn_inner_lr == "tensor" and meta.per_step_lr
    assert len(list(meta_of("--hidden").parameters())) == 2


def test_only_weight_matrices_decay():
    run = make_run(Job(None, config_of("--weight-decay 3 --lr 0.5 --learn-inner-lr element")))
    decayed, others = run.optimizer.param_groups
    weights = [p for name, p in run.meta.model.named_parameters() if "weight" in name]
    assert [id(p) for p in decayed["params"]] == [id(p) for p in weights]
    assert len(decayed["params"]) + len(others["params"]) == len(list(run.meta.parameters()))
    assert (decayed["weight_decay"], others["weight_decay"], decayed["lr"]) == (3, 0, 0.5)


def test_the_schedule_is_told_with_its_length():
    def schedule(line):
        return make_run(Job(None, config_of(f"--steps 70 {line}"))).schedule

    assert schedule("") == Schedule("constant")
    assert schedule("--schedule cosine") == Schedule("cosine", 70)
    assert schedule("--schedule halving --halve-every 9") == Schedule("halving", 9)
