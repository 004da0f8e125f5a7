"""Patches of a map: connected pixels of one class, and the merging of those below a smallest size.

A map is read strip of rows by strip of rows, several times; what stays in memory is a strip and about 100
bytes for each patch. The result does not depend on the height of the strips.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Array = np.ndarray[Any, np.dtype[Any]]
IntArray = NDArray[np.int64]
ReadRows = Callable[[int, int], Array]
"""(first row, last row + 1) -> class codes (rows, width), 0 = no data."""


@dataclass
class Patches:
    """Patches in the order of their first pixel, row by row. P = patches."""

    of_piece: IntArray
    """Patch of each piece, a piece being what a patch has in one strip; 0 stands for no data."""
    first_piece: IntArray
    """Number of the first piece of each strip, less one."""
    code_P: IntArray
    pixels_P: IntArray
    area_P: NDArray[np.float64]
    last_strip_P: IntArray

    def in_strip(self, strip: int, codes: Array) -> IntArray:
        """Return the patch of each pixel (rows, width) of a strip, counted from 1, 0 = no data."""
        pieces, _ = _pieces(codes)
        return np.asarray(self.of_piece[np.where(pieces, pieces + self.first_piece[strip], 0)])


def find_patches(read: ReadRows, height: int, rows: int, area_of_row: Array, min_px: int) -> Patches:
    """Return the patches of a map, where none of fewer than `min_px` pixels has a neighbour.

    A smaller patch becomes part of its largest neighbour (sharing an edge; of equal ones the first), all
    of them at once, again and again until none is left. The merged patch has the class of its largest one.

    Args:
        read: Reads rows of class codes.
        height: Rows of the map.
        rows: Rows of a strip.
        area_of_row: Area of a pixel in each row (height,).
        min_px: Smallest size in pixels; 1 merges nothing.
    """
    found = _label(read, height, rows, area_of_row)
    if min_px > 1:
        touching = _neighbours(found, read, height, rows, min_px)
        while (step := _merge_once(found, touching, min_px)) is not None:
            found, touching = step
    return found


def strips(height: int, rows: int) -> Iterator[tuple[int, int, int]]:
    """Number, first row and last row + 1 of each strip."""
    for strip, y in enumerate(range(0, height, rows)):
        yield strip, y, min(y + rows, height)


def _pieces(codes: Array) -> tuple[IntArray, IntArray]:
    """Connected pixels of one code, sharing an edge: (rows, width) counted from 1, and their codes."""
    pieces, code = np.zeros(codes.shape, np.int64), [np.empty(0, np.int64)]
    total = 0
    for value in np.unique(codes[codes > 0]):
        mine, count = ndimage.label(codes == value)
        pieces += np.where(mine, mine + total, 0)
        code.append(np.full(count, value, np.int64))
        total += count
    return pieces, np.concatenate(code)


def _label(read: ReadRows, height: int, rows: int, area_of_row: Array) -> Patches:
    """Label strips, join pieces across their borders, and number the patches by their first pixel."""
    starts, total = [], 0
    codes_of, pixels_of, areas_of, firsts_of, strip_of = [], [], [], [], []
    seams: list[Array] = [np.empty((2, 0), np.int64)]
    above: tuple[Array, IntArray] | None = None
    for strip, y0, y1 in strips(height, rows):
        codes = read(y0, y1)
        pieces, code = _pieces(codes)
        count, flat = len(code), pieces.ravel()
        first = np.zeros(count + 1, np.int64)
        first[flat[::-1]] = np.arange(flat.size)[::-1]  # the last assignment stays: the first pixel
        weights = np.repeat(area_of_row[y0:y1], codes.shape[1])
        starts.append(total)
        codes_of.append(code)
        pixels_of.append(np.bincount(flat, minlength=count + 1)[1:])
        areas_of.append(np.bincount(flat, weights, minlength=count + 1)[1:])
        firsts_of.append(first[1:] + y0 * codes.shape[1])
        strip_of.append(np.full(count, strip))
        shifted = np.where(pieces, pieces + total, 0)
        if above is not None:
            joined = (above[0] == codes[0]) & (codes[0] > 0)
            seams.append(np.stack([above[1][joined], shifted[0][joined]]))
        above = codes[-1], shifted[-1]
        total += count
    if not total:
        nothing = np.zeros(0, np.int64)
        return Patches(np.zeros(1, np.int64), np.array(starts), nothing, nothing, np.zeros(0), nothing)
    group = _groups(total, np.concatenate(seams, axis=1) - 1)
    first = np.full(group.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, group, np.concatenate(firsts_of))
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    patch = rank[group]
    code_P, last_P = np.empty((2, len(first)), np.int64)
    code_P[patch] = np.concatenate(codes_of)
    last_P[patch] = np.concatenate(strip_of)  # pieces stand in the order of strips
    return Patches(
        np.concatenate([[0], patch + 1]),
        np.array(starts),
        code_P,
        np.bincount(patch, np.concatenate(pixels_of)).astype(np.int64),
        np.bincount(patch, np.concatenate(areas_of)).astype(np.float64),
        last_P,
    )


def _groups(count: int, pairs: Array) -> IntArray:
    """Number of the group of each of `count` nodes that pairs (2, N) connect."""
    edges = coo_array((np.ones(pairs.shape[1], bool), (pairs[0], pairs[1])), shape=(count, count))
    return np.asarray(connected_components(edges, directed=False)[1], np.int64)


def _neighbours(found: Patches, read: ReadRows, height: int, rows: int, min_px: int) -> Array:
    """Pairs of patches (2, N), from 0, that share an edge and one of which is too small."""
    pairs: list[Array] = [np.empty((2, 0), np.int64)]
    above: IntArray | None = None
    for strip, y0, y1 in strips(height, rows):
        inside = found.in_strip(strip, read(y0, y1))
        tall = inside if above is None else np.concatenate([above[None], inside])
        for one, other in ((inside[:, :-1], inside[:, 1:]), (tall[:-1], tall[1:])):
            apart = (one != other) & (one > 0) & (other > 0)
            here = np.stack([one[apart], other[apart]]) - 1
            small = (found.pixels_P[here] < min_px).any(axis=0)
            pairs.append(np.unique(np.sort(here[:, small], axis=0), axis=1))
        above = inside[-1]
    return np.unique(np.concatenate(pairs, axis=1), axis=1)


def _merge_once(found: Patches, touching: Array, min_px: int) -> tuple[Patches, Array] | None:
    """Join each too small patch to its largest neighbour; None when there is none to join."""
    both = np.concatenate([touching, touching[::-1]], axis=1)
    small, neighbour = both[:, found.pixels_P[both[0]] < min_px]
    if not small.size:
        return None
    order = np.lexsort((neighbour, -found.pixels_P[neighbour], small))
    _, best = np.unique(small[order], return_index=True)
    chosen = np.stack([small[order][best], neighbour[order][best]])
    group = _groups(len(found.code_P), chosen)
    # Patches stand in the order of their first pixel, and so do groups by their first patch.
    _, first = np.unique(group, return_index=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    group = rank[group]
    by_size = np.lexsort((np.arange(len(group)), -found.pixels_P, group))
    _, largest = np.unique(group[by_size], return_index=True)
    last = np.zeros(len(first), np.int64)
    np.maximum.at(last, group, found.last_strip_P)
    merged = Patches(
        np.concatenate([[0], group + 1])[found.of_piece],
        found.first_piece,
        found.code_P[by_size][largest],
        np.bincount(group, found.pixels_P).astype(np.int64),
        np.bincount(group, found.area_P).astype(np.float64),
        last,
    )
    left = group[touching]
    left = np.unique(np.sort(left[:, left[0] != left[1]], axis=0), axis=1)
    return merged, left[:, (merged.pixels_P[left] < min_px).any(axis=0)]
