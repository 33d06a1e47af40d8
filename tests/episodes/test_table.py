from pathlib import Path

import numpy as np
import pytest
import torch

from fastmeta.episodes import (
    Standardisation,
    Table,
    TableEpisodes,
    choose_support_norm,
    split_tasks,
    tasks_with_rows,
)
from fastmeta.episodes.table import centre_weights


def make_table(rows_by_task, features=2, seed=0):
    """A table whose targets are 0, 1, 2, ... by row, so that a row is known by its target."""
    names = [name for name, count in rows_by_task.items() for _ in range(count)]
    numbers = np.random.default_rng(seed).normal(5.0, 3.0, (len(names), features))
    return Table(
        path=Path("t.csv"),
        task_of_row=tuple(names),
        lines=tuple(range(2, len(names) + 2)),
        features=numbers,
        target=np.arange(len(names), dtype=float),
        feature_names=tuple(f"f{i}" for i in range(features)),
        left_out={},
    )


@pytest.fixture
def table():
    return make_table({"a": 7, "b": 12, "c": 9, "d": 30})


def episodes_of(table, tasks=None, **options):
    scale = Standardisation.of(table, table.tasks)
    return TableEpisodes(table, tasks or table.tasks, scale, **({"shots": 3} | options))


# ---- splitting and scaling ----------------------------------------------------------------------


def test_the_split_depends_on_names_and_seed_only():
    names = [str(i) for i in range(42)]
    train, held_out = split_tasks(names, held_out=0.25, seed=0)
    assert len(train) == 32 and len(held_out) == 10
    assert {*train, *held_out} == set(names)
    assert split_tasks(names[::-1] + names, held_out=0.25, seed=0) == (train, held_out)
    assert split_tasks(names, held_out=0.25, seed=1) != (train, held_out)
    # Written down: another version must not move tasks from one side to the other.
    assert held_out == ("15", "36", "20", "25", "18", "7", "33", "37", "4", "9")


@pytest.mark.parametrize(
    ("names", "fraction", "message"),
    [(["a"], 0.5, "cannot be split"), (["a", "b"], 0.9, "either side"), (["a", "b"], 1.0, "held")],
)
def test_too_few_tasks_for_a_split(names, fraction, message):
    with pytest.raises(ValueError, match=message):
        split_tasks(names, held_out=fraction)


def test_scale_is_measured_on_the_train_tasks_only(table):
    train = ("a", "b", "c")
    rows = table.rows_of(train)
    scale = Standardisation.of(table, train)
    scaled = scale.features(table)
    np.testing.assert_allclose(scaled[rows].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(scaled[rows].std(0), 1)
    table.features[table.rows_of(["d"])] += 100
    assert Standardisation.of(table, train) == scale
    assert Standardisation.of(table, table.tasks) != scale


def test_wild_inputs_are_cut(table):
    scale = Standardisation.of(table, ("a", "b", "c"))
    row = table.rows_of(["d"])[0]
    table.features[row] = 1e6, -1e6
    assert scale.features(table)[row].tolist() == [5.0, -5.0]


def test_constant_inputs_are_left_out(table):
    table.features[table.rows_of(["a", "b"]), 0] = 0.1
    scale = Standardisation.of(table, ("a", "b"))
    assert scale.feature_names == ("f1",) and scale.constant == ("f0",)
    assert scale.features(table).shape == (58, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.features.fill(3.0), "every input column is constant"),
        (lambda t: t.target.fill(2.0), "the target is 2.0"),
        (lambda t: t.features.__setitem__((0, 1), 1e200), "'f1' are too large"),
    ],
)
def test_what_cannot_be_scaled(table, change, message):
    change(table)
    with pytest.raises(ValueError, match=message):
        Standardisation.of(table, table.tasks)


# ---- episodes -----------------------------------------------------------------------------------


def test_support_and_query_are_all_rows_of_each_task_once(table):
    scale = Standardisation.of(table, table.tasks)
    batch = episodes_of(table, dtype=torch.float64).sample()
    assert batch.support_x.shape == (4, 3, 2) and batch.query_x.shape == (4, 27, 2)
    for t, name in enumerate(table.tasks):
        real = batch.query_weight[t] == 1
        assert set(batch.query_weight[t].tolist()) <= {0.0, 1.0}
        y = torch.cat([batch.support_y[t, :, 0], batch.query_y[t, real, 0]])
        x = torch.cat([batch.support_x[t], batch.query_x[t, real]])
        row = (y * scale.target_scale + scale.target_mean).round().long()
        assert sorted(row.tolist()) == table.rows_of([name]).tolist()
        np.testing.assert_allclose(x, scale.features(table)[row])


def test_query_is_as_long_as_the_longest_task_drawn(table):
    source = episodes_of(table, tasks=("a", "c"))
    assert source.sample(2).query_x.shape[1] == 6
    assert {source.sample(1).query_x.shape[1] for _ in range(20)} == {4, 6}


def test_tasks_of_one_length_need_no_padding():
    batch = episodes_of(make_table({"a": 5, "b": 5})).sample()
    assert batch.query_weight.eq(1).all()


def test_draws_differ_and_cover_every_row(table):
    source = episodes_of(table, tasks=("a",))
    seen = {y for _ in range(60) for y in source.sample().support_y.flatten().tolist()}
    assert len(seen) == 7


def test_different_tasks_in_a_batch(table):
    source = episodes_of(table)
    for _ in range(20):
        first = source.sample(3).query_y[:, 0, 0]
        assert len(first.unique()) == 3


def test_seed_and_state(table):
    one, same, other = (episodes_of(table, seed=seed) for seed in (1, 1, 2))
    first = one.sample(2)
    assert torch.equal(first.support_y, same.sample(2).support_y)
    assert not torch.equal(first.support_y, other.sample(2).support_y)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.sample(3).support_y, other.sample(3).support_y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 7}, r"task 'a' \(from line 2\) has 7 row\(s\), but 7 shots and one .* need 8"),
        ({"shots": 0}, "shots must be a whole number of at least 1"),
        ({"tasks": ("a", "zz")}, "no rows of task 'zz'"),
        ({"support_norm": 0.5}, "support_norm"),
    ],
)
def test_wrong_use(table, options, message):
    with pytest.raises(ValueError, match=message):
        episodes_of(table, **options)


def test_wrong_number_of_tasks(table):
    for wrong in (0, 5):
        with pytest.raises(ValueError, match="n_tasks must be "):
            episodes_of(table).sample(wrong)


def test_tasks_with_enough_rows(table):
    assert tasks_with_rows(table, 10) == ("b", "d")


# ---- the centre of the support rows -------------------------------------------------------------


def centre(values, norm):
    weight = centre_weights(values, norm)
    assert torch.allclose(weight.sum(1), torch.ones(len(values), dtype=values.dtype))
    return (weight * values).sum(1)


@pytest.mark.parametrize("norm", [1.2, 1.5, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weighted_mean_minimises_the_norm(norm, dtype):
    values = torch.randn(6, 5, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 7 + 3
    grid = torch.linspace(0, 1, 20_001, dtype=torch.float64)[None]
    low, high = values.double().amin(1, keepdim=True), values.double().amax(1, keepdim=True)
    grid = low + (high - low) * grid
    cost = (values.double()[:, :, None] - grid[:, None]).abs().pow(norm).sum(1)
    best = grid.gather(1, cost.argmin(1, keepdim=True))[:, 0]
    torch.testing.assert_close(centre(values, norm).double(), best, atol=5e-3, rtol=0)


def test_norms_1_and_2_are_median_and_mean():
    values = torch.tensor([[1.0, 2.0, 30.0, 4.0, 5.0], [-7.0, 0.0, 0.5, 0.6, 0.7]])
    torch.testing.assert_close(centre(values, 1), values.median(1).values, atol=0.02, rtol=0)
    torch.testing.assert_close(centre(values, 2), values.mean(1))


@pytest.mark.parametrize("norm", [1.0, 1.5, 3.0])
def test_equal_rows_and_a_single_row(norm):
    for values in (torch.full((2, 5), 3.25), torch.tensor([[1.5]])):
        torch.testing.assert_close(centre(values, norm), values[:, 0])


def test_weights_go_with_the_support_rows(table):
    batch = episodes_of(table, support_norm=3.0).sample()
    expected = centre_weights(batch.support_y[..., 0], 3.0)
    torch.testing.assert_close(batch.support_weight, expected)
    assert episodes_of(table).sample().support_weight is None


@pytest.mark.parametrize(
    ("draw", "best"),
    [
        (lambda g, n: g.uniform(-1, 1, n), {3.0}),
        (lambda g, n: g.normal(size=n), {2.0}),
        (lambda g, n: g.standard_t(1.5, size=n), {1.0, 1.5}),
    ],
    ids=["uniform", "normal", "outliers"],
)
def test_the_norm_follows_the_spread_inside_tasks(draw, best):
    table = make_table({str(i): 60 for i in range(40)})
    generator = np.random.default_rng(0)
    level = np.repeat(generator.normal(0, 3, 40), 60)
    table.target[:] = level + draw(generator, len(level))
    scale = Standardisation.of(table, table.tasks)
    assert choose_support_norm(table, table.tasks, scale, shots=5) in best
