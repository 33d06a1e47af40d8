"""Tiles and splits for any shape: what the kernels take for granted of them."""

from hypothesis import given
from hypothesis import strategies as st

from fastmeta.kernels import configs

SIZES = st.integers(1, 10**5)
PRECISIONS = st.sampled_from(["ieee", "tf32x3", "tf32", "bf16"])


def is_power_of_two(n):
    return n & (n - 1) == 0


def assert_fits(tile):
    assert all(is_power_of_two(n) for n in (tile.m, tile.n, tile.k, tile.num_warps)), tile
    assert min(tile.m, tile.n, tile.k) >= 16, tile
    assert 32 * tile.num_warps * 128 >= tile.m * tile.n, tile  # sums a thread holds


@given(SIZES, SIZES, SIZES, st.integers(1, 64), PRECISIONS, st.booleans())
def test_products(rows, columns, depth, batch, precision, along_columns):
    of_sizes = rows, columns, depth, batch, precision
    assert_fits(configs.for_product(*of_sizes, along_columns=along_columns))


@given(SIZES, SIZES, st.integers(1, 512), st.integers(1, 25), PRECISIONS)
def test_depths_of_convolutions_lie_within_a_tap_where_they_can(rows, columns, C, taps, precision):
    tile = configs.for_convolution(rows, columns, C, taps, 32, precision, along_columns=True)
    assert_fits(tile)
    assert C % tile.k == 0 or C % 16 or taps * C <= 16


@given(SIZES, st.integers(1, 512), st.integers(1, 25), SIZES, st.integers(1, 64), PRECISIONS)
def test_long_sums_are_split_evenly(outputs, C, taps, pixels, batch, precision):
    tile = configs.for_weight_gradient(outputs, C, taps, pixels, precision)
    assert_fits(tile)
    parts = configs.splits(tile, outputs, taps * C, pixels, batch)
    blocks = batch * -(-outputs // tile.m) * -(-taps * C // tile.n)
    assert parts == 1 or blocks * parts <= 8 * 132
    assert parts == 1 or -(-pixels // parts) >= 8 * tile.k - tile.k
