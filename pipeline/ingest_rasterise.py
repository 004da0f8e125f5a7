"""Polygons and points onto the grid of a scene, block by block."""

from typing import Any

import dask.array as da
import numpy as np
import shapely
from affine import Affine
from dask.base import compute
from dask.delayed import delayed
from rasterio.features import rasterize

from pipeline.georeference import Transform

Array = np.ndarray[Any, np.dtype[Any]]

# Pixels to a side of a block: a few MiB in memory, and few blocks for a city.
_SIDE = 1024


def grid_bounds(transform: Transform, height: int, width: int) -> tuple[float, float, float, float]:
    """Return left, bottom, right, top of a grid, which may be rotated."""
    to_map = Affine(*transform)
    corners = np.array([to_map * corner for corner in ((0, 0), (width, 0), (0, height), (width, height))])
    (left, bottom), (right, top) = corners.min(axis=0), corners.max(axis=0)
    return float(left), float(bottom), float(right), float(top)


def rasterise(
    geometry: Array, code: Array, transform: Transform, shape: tuple[int, int], all_touched: bool
) -> tuple[Any, int]:
    """Return the labels of shapes on a grid and how many pixels were left out as contested.

    A polygon labels the pixels whose centre it holds, a point the pixel that it lies in. Where
    shapes of different classes meet in one pixel, the pixel stays unlabelled.

    Args:
        geometry: shapely polygons or points (n,) in the CRS of the grid.
        code: Their codes (n,); 0 labels nothing.
        transform: The grid.
        shape: Its size (y, x).
        all_touched: Whether a polygon labels every pixel that it touches.

    Returns:
        A dask array (y, x) of int32 codes, and the number of contested pixels.
    """
    tree = shapely.STRtree(geometry)
    rows, contested = [], []
    for y0 in range(0, shape[0], _SIDE):
        row = []
        for x0 in range(0, shape[1], _SIDE):
            size = (min(_SIDE, shape[0] - y0), min(_SIDE, shape[1] - x0))
            place = Affine(*transform) * Affine.translation(x0, y0)
            inside = np.sort(tree.query(shapely.box(*grid_bounds(_six(place), *size))))
            if not len(inside):
                row.append(da.zeros(size, dtype=np.int32, chunks=size))
                continue
            part = delayed(burn)(geometry[inside], code[inside], _six(place), size, all_touched)
            contested.append(part[1])
            row.append(da.from_delayed(part[0], size, np.int32))
        rows.append(row)
    return da.block(rows), int(sum(compute(*contested)))


def burn(
    geometry: Array, code: Array, transform: Transform, shape: tuple[int, int], all_touched: bool
) -> tuple[Array, int]:
    """Return the codes (y, x) of one block and the number of its contested pixels."""
    codes = np.zeros(shape, np.int32)
    contested = np.zeros(shape, bool)
    for one in np.unique(code):
        if one == 0:
            continue
        hit = rasterize(
            list(geometry[code == one]),
            out_shape=shape,
            transform=Affine(*transform),
            default_value=1,
            all_touched=all_touched,
            dtype=np.uint8,
        ).astype(bool)
        contested |= hit & (codes != 0)
        codes[hit] = one
    codes[contested] = 0
    return codes, int(contested.sum())


def _six(place: Affine) -> Transform:
    a, b, c, d, e, f = tuple(place)[:6]
    return a, b, c, d, e, f
