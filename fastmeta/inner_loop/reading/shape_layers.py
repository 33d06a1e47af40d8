"""What a forward does to the shape of its samples, as layers; shapes are those of a sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from fastmeta.inner_loop.reading.sizes import ROWS

__all__ = [
    "Largest", "Mean", "OfSizes", "Over", "Padded", "Part", "Picked", "Repeated", "Reshaped",
    "Viewed", "flattened", "inferred", "largest", "mean", "of_shape", "padded", "part_of_chunks",
    "part_of_split", "picked", "place_of", "resized", "slices", "squeezed", "unflattened",
    "unsqueezed", "whole",
]  # fmt: skip

Shape = Sequence[int]


class Reshaped(nn.Module):
    """The numbers of each sample in another shape, of which one side may be -1."""

    def __init__(self, sample: Shape) -> None:
        super().__init__()
        self.sample = tuple(sample)


class Viewed(nn.Module):
    """The numbers of each sample in a shape that depends on the one they have.

    Attributes:
        shape: from the one to the other; ValueError where there is none.
        squeezes: a lone sample would lose its dimension.
    """

    def __init__(self, shape: Callable[[Shape], list[int]], squeezes: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.squeezes = squeezes


class Over(nn.Module):
    """One number of all those over dimensions of a batch, as PyTorch counts them."""

    def __init__(self, dims: Sequence[int], keepdim: bool) -> None:
        super().__init__()
        self.dims = tuple(dims)
        self.keepdim = keepdim


class Mean(Over):
    pass


class Largest(Over):
    """Of several that are equal the first, to which the gradient goes."""


class Padded(nn.Module):
    """Zeros around the last sides: before and behind of each, the last one first."""

    def __init__(self, around: Sequence[int]) -> None:
        super().__init__()
        self.around = tuple(around)


class Picked(nn.Module):
    """x[index]: some of a sample's pixels, as places that an index has."""

    def __init__(self, places: Sequence[Any]) -> None:
        super().__init__()
        self.places = tuple(places)


class Part(nn.Module):
    """One of the pieces that chunk or split makes along a dimension.

    Attributes:
        sizes: of all pieces, of so many numbers.
    """

    def __init__(self, dim: int, at: int, sizes: Callable[[int], list[int]]) -> None:
        super().__init__()
        self.dim = dim
        self.at = at
        self.sizes = sizes


class Repeated(nn.Module):
    """Every pixel again and again, as many times a side; or to a size."""

    def __init__(self, factor: Any, size: Any = None) -> None:
        super().__init__()
        self.factor = factor
        self.size = size


class OfSizes(nn.Module):
    """Layers that shapes of samples tell, with the module's names of their parameters."""

    def __init__(
        self, layers: Callable[[Sequence[Shape]], list[tuple[nn.Module, Mapping[str, str]]]]
    ) -> None:
        super().__init__()
        self.layers = layers


# ---- calls ---------------------------------------------------------------------------------------


def of_shape(*shape: Any) -> nn.Module:
    """A view or a reshape."""
    rows, *sample = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    if rows is ROWS and sample == [-1]:
        return nn.Flatten()
    open_sides = sample.count(-1) + (rows is not ROWS)
    of_samples = rows is ROWS or (type(rows) is int and rows == -1)
    if not (of_samples and sample and open_sides <= 1 and all(map(_is_side, sample))):
        raise ValueError("a shape that is not one of samples")
    return Reshaped(sample)


def inferred(sizes: Any, numbers: int) -> list[int]:
    """Sizes of so many numbers, of which one may be -1."""
    sizes = [*sizes] if isinstance(sizes, (tuple, list)) else [sizes]
    if not all(map(_is_side, sizes)) or sizes.count(-1) > 1:
        raise ValueError("sizes that are not numbers")
    known = math.prod(n for n in sizes if n != -1)
    found = [numbers // known if n == -1 else n for n in sizes]
    if math.prod(found) != numbers:
        raise ValueError(f"{sizes} of {numbers} numbers")
    return found


def _is_side(n: Any) -> bool:
    return type(n) is int and (n > 0 or n == -1)


def mean(dim: Any, keepdim: bool = False) -> nn.Module:
    return Mean(dim if isinstance(dim, (tuple, list)) else (dim,), keepdim)


def largest(dim: int, keepdim: bool = False) -> nn.Module:
    if type(dim) is not int:
        raise ValueError("the larger of two")
    return Largest((dim,), keepdim)


def part_of_chunks(at: int, chunks: int, dim: int = 0) -> nn.Module:
    """As torch.chunk cuts, whose last piece may be smaller."""
    if type(chunks) is not int or chunks < 1:
        raise ValueError("chunks that are no number")
    return Part(dim, at, lambda n: _pieces(n, -(-n // chunks)))


def part_of_split(at: int, split_size: Any, dim: int = 0) -> nn.Module:
    """As torch.split cuts: into pieces of one size, or of those that are listed."""
    if type(split_size) is int and split_size > 0:
        return Part(dim, at, lambda n: _pieces(n, split_size))
    if not isinstance(split_size, (tuple, list)) or not all(type(n) is int for n in split_size):
        raise ValueError("sizes that are not numbers")
    return Part(dim, at, lambda n: [*split_size])


def _pieces(n: int, size: int) -> list[int]:
    return [min(size, n - begin) for begin in range(0, n, size)]


def flattened(start_dim: int = 0, end_dim: int = -1) -> nn.Module:
    return nn.Flatten(start_dim, end_dim)


def whole(shape: Shape, start_dim: int, end_dim: int) -> list[int]:
    """What a Flatten makes of it."""
    start, end = (place_of(dim, len(shape)) for dim in (start_dim, end_dim))
    if start > end:
        raise ValueError("dimensions in disorder")
    return [*shape[: start - 1], math.prod(shape[start - 1 : end]), *shape[end:]]


def squeezed(dim: Any = None) -> Viewed:
    dims = dim if isinstance(dim, (tuple, list)) else (dim,)

    def shape(given: Shape) -> list[int]:
        gone = range(1, len(given) + 1) if dim is None else [place_of(d, len(given)) for d in dims]
        return [n for i, n in enumerate(given, start=1) if n != 1 or i not in gone]

    return Viewed(shape, squeezes=dim is None)


def unsqueezed(dim: int) -> Viewed:
    def shape(given: Shape) -> list[int]:
        at = place_of(dim, len(given) + 1) - 1
        return [*given[:at], 1, *given[at:]]

    return Viewed(shape)


def unflattened(dim: Any, sizes: Any) -> Viewed:
    def shape(given: Shape) -> list[int]:
        at = place_of(dim, len(given))
        return [*given[: at - 1], *inferred(sizes, given[at - 1]), *given[at:]]

    return Viewed(shape)


def picked(index: Any) -> nn.Module:
    """x[index], which takes all or some of a sample's numbers."""
    places = list(index) if isinstance(index, (tuple, list)) else [index]
    if isinstance(index, list) or not all(p is None or type(p) in _PLACES for p in places):
        raise ValueError("an index that is no place")
    if any(_takes_some(place) for place in places) and None not in places:
        return Picked(places)
    return Viewed(lambda given: _picked(given, _spelled_out(places, len(given) + 1)))


def _takes_some(place: Any) -> bool:
    """Whether it may, of more than one."""
    return type(place) is int or (type(place) is slice and place != slice(None))


def slices(places: Sequence[Any], given: Shape) -> list[tuple[range, bool]]:
    """What an index takes of each side of a sample, and whether the side goes."""
    of_samples, *others = _spelled_out([*places], len(given) + 1)
    if of_samples != slice(None):
        raise ValueError("a pick of samples")
    taken = []
    for place, n in zip(others, given, strict=True):
        at = range(n)[place]
        taken.append((at, False) if isinstance(at, range) else (range(at, at + 1), True))
    return taken


def padded(pad: Any, mode: str = "constant", value: Any = None) -> Padded:
    around = pad if isinstance(pad, (tuple, list)) else (pad,)
    if mode != "constant" or value not in (None, 0) or not all(type(n) is int for n in around):
        raise ValueError("a padding that is not of zeros")
    return Padded(around)


def resized(
    size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: Any = None,
    recompute_scale_factor: Any = None, antialias: bool = False,
) -> Repeated:  # fmt: skip
    if mode not in ("nearest", "nearest-exact") or align_corners is not None or antialias:
        raise ValueError("an interpolation between pixels")
    return Repeated(scale_factor, size)


_PLACES = (int, slice, type(...))


def _spelled_out(places: list[Any], dims: int) -> list[Any]:
    """With a slice for each dimension that an ellipsis, or nothing at all, stands for."""
    dots = [i for i, place in enumerate(places) if place is ...] or [len(places)]
    own = sum(place is not None and place is not ... for place in places)
    if len(dots) > 1 or own > dims:
        raise ValueError("an index of more dimensions than there are")
    return [*places[: dots[0]], *[slice(None)] * (dims - own), *places[dots[0] + 1 :]]


def _picked(given: Shape, places: Sequence[Any]) -> list[int]:
    of_samples, *others = places
    if of_samples != slice(None):
        raise ValueError("a pick of samples")
    sides, shape = iter(given), []
    for place in others:
        n = 1 if place is None else next(sides)
        taken = range(n)[place] if isinstance(place, slice) else range(n)
        if taken != range(n) or (isinstance(place, int) and (n != 1 or place not in (0, -1))):
            raise ValueError("a pick of some of a sample's numbers")
        if not isinstance(place, int):
            shape.append(n)
    return shape


def place_of(dim: Any, rank: int) -> int:
    """Of a dimension of samples, which are counted from 1 on behind their number."""
    if type(dim) is not int or not -rank - 1 <= dim <= rank:
        raise ValueError("a dimension that is not there")
    if dim % (rank + 1) == 0:
        raise ValueError("the dimension of the samples")
    return dim % (rank + 1)
