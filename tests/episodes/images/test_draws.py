import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmeta.episodes.images.draws import distinct


def by_popping(unit, sizes):
    columns = []
    for numbers, size in zip(unit, sizes, strict=True):
        left = list(range(size))
        columns.append([left.pop(int(u * len(left))) for u in numbers])
    return np.array(columns).T


@given(
    rows=st.integers(1, 6),
    count=st.integers(1, 12),
    spare=st.integers(0, 30),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_same_as_popping_from_a_list(rows, count, spare, seed):
    generator = np.random.default_rng(seed)
    sizes = count + generator.integers(0, spare + 1, rows)
    unit = generator.random((rows, count))
    np.testing.assert_array_equal(distinct(unit, sizes), by_popping(unit, sizes))


@pytest.mark.parametrize("extreme", [0.0, np.nextafter(1, 0)])
def test_the_ends_of_the_interval(extreme):
    sizes = np.array([3, 7, 2**31 + 5])
    unit = np.full((3, 3), extreme)
    drawn = distinct(unit, sizes)
    assert (drawn >= 0).all() and (drawn < sizes).all()
    assert all(len(set(column)) == 3 for column in drawn.T)
