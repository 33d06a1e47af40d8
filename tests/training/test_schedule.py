import pytest

from fastmeta.training import Schedule


def test_factors():
    assert [Schedule().factor(step) for step in (0, 5, 10**9)] == [1, 1, 1]
    cosine = Schedule("cosine", 100)
    found = [cosine.factor(step) for step in (0, 25, 50, 75, 100, 200)]
    assert found == pytest.approx([1, 0.8535534, 0.5, 0.1464466, 0, 0])
    halving = Schedule("halving", 10)
    assert [halving.factor(step) for step in (0, 9, 10, 19, 20)] == [1, 1, 0.5, 0.5, 0.25]


def test_what_is_no_schedule():
    with pytest.raises(ValueError, match="one of constant, cosine, halving, not 'linear'"):
        Schedule("linear")
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Schedule("cosine", 0)
