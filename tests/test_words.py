"""How messages put things, and that they name the way out."""

import numpy as np
import pytest
import torch
from torch import nn

import fastmeta as fm
from fastmeta.cli.few_shot import described
from fastmeta.words import (
    adaptation_time,
    after_steps,
    counted,
    duration,
    kind_of,
    nearest,
    one_of,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2.34e-7, "0.234 us"),
        (3.02e-2, "30.2 ms"),
        (9.994e-4, "999 us"),
        (9.996e-4, "1 ms"),
        (0.9996, "1 s"),
        (1234.5, "1234 s"),
    ],
)
def test_durations_have_three_digits_and_no_exponent(seconds, text):
    assert duration(seconds) == text


def test_counts():
    assert counted(1, "query", "queries") == "1 query"
    assert counted(0, "task") == "0 tasks" and counted(1, "task") == "1 task"


def test_when_in_inner_steps():
    said = ["before adaptation", "after 1 step", "after 2 steps"]
    assert [after_steps(k) for k in range(3)] == said


def test_a_task_in_words():
    assert described(1, 1, 1) == "1 way, 1 shot, 1 query a class"
    assert described(5, 2, 15) == "5 ways, 2 shots, 15 queries a class"
    assert adaptation_time(0.0302, 1) == "30.2 ms a task (1 task at once)"


def test_names_that_are_close():
    known = ("resident", "layered", "vmap")
    assert nearest("Residnt", known) == ["resident"] and nearest("xyz", known) == []
    said = "engine must be one of resident, layered, vmap, not"
    assert one_of("engine", "layerd", known) == f"{said} 'layerd'; did you mean 'layered'?"
    assert one_of("engine", 3, known) == f"{said} 3"


def meta(**options):
    return fm.MAML(fm.models.mlp([1, 1]), **options)


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda: fm.use_backend("tritn").__enter__(), "triton"),
        (lambda: meta(engine="residnt"), "resident"),
        (lambda: meta(loss="crossentropy"), "cross_entropy"),
        (lambda: fm.ProtoNet(nn.Identity(), metric="euclid"), "euclidean"),
        (lambda: fm.models.mlp([1, 1], activation="rellu"), "relu"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_right_one(call, meant):
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        call()


def test_numpy_arrays_are_named_with_the_way_to_tensors():
    x, array = torch.zeros(1, 2, 1), np.zeros((1, 2, 1), np.float32)
    way = r"must be a tensor.*, not ndarray \(torch.from_numpy"
    for position, name in enumerate(("support_x", "support_y", "query_x", "query_y")):
        given = [array if i == position else x for i in range(4)]
        with pytest.raises(TypeError, match=f"{name} {way}"):
            fm.TaskBatch(*given)
    with pytest.raises(TypeError, match="support_weight must be a floating tensor, not ndarray"):
        fm.TaskBatch(x, x, x, x, support_weight=array)
    with pytest.raises(TypeError, match=f"x {way}"):
        meta(loss="mse").adapt(x, x)(array)
    with pytest.raises(TypeError, match=f"weight {way}"):
        fm.functional.linear(x, array)
    assert kind_of([1]) == "list"
    with pytest.raises(TypeError, match="x must be a floating tensor, not ndarray"):
        fm.functional.relu(array)
    labels = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(TypeError, match=f"features {way}"):
        fm.functional.prototypes(array, labels, 1)
    with pytest.raises(TypeError, match=f"labels {way}"):
        fm.functional.prototypes(x, labels.numpy(), 1)
