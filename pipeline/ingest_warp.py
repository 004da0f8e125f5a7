"""Read a lazy image through another grid, block by block: pasted where the grids agree, else resampled."""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import dask.array as da
import numpy as np
import pyproj
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.warp import reproject

from pipeline.errors import UserError
from pipeline.georeference import Transform
from pipeline.ingest_labels import to_codes
from pipeline.ingest_options import same_crs
from pipeline.sources.layout import Cube, LabelMap

Array = np.ndarray[Any, np.dtype[Any]]

# Source pixels around a block that resampling may look at.
_MARGIN = 3
# Points along each side of a block that are carried over to the other CRS.
_EDGE = 9
# Grids this close, in pixels over their whole size, are the same grid.
_ALIGNED = 0.01


@dataclass(frozen=True)
class Grid:
    """Where pixels lie: CRS, transform and size."""

    crs_wkt: str
    transform: Transform
    height: int
    width: int


@dataclass(frozen=True)
class Layer:
    """A lazy image (band, y, x) with its own grid, to be read through another one.

    Attributes:
        data: dask array (band, y, x).
        own: Its grid.
        target: The grid that blocks are asked in.
        fill: The value of no data, in and out.
        resampling: "nearest" or "bilinear".
    """

    data: Any
    own: Grid
    target: Grid
    fill: float
    resampling: str = "nearest"

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Array | None:
        """Return a block of the target grid (band, y, x), or None where the image does not reach.

        Memory: the block and the window of the image under it.
        """
        window = self._window(y0, y1, x0, x1)
        if window is None:
            return None
        r0, r1, c0, c1 = window
        # Computed here and alone: tasks that shared blocks would keep them all in memory.
        stored = np.asarray(self.data[:, r0:r1, c0:c1].compute(scheduler="synchronous"))
        stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
        block = np.full((len(stored), y1 - y0, x1 - x0), self.fill, stored.dtype)
        if self._shift is not None:
            row, column = r0 + self._shift[0] - y0, c0 + self._shift[1] - x0
            block[:, row : row + r1 - r0, column : column + c1 - c0] = stored
            return block
        reproject(
            stored,
            block,
            src_transform=Affine(*self.own.transform) * Affine.translation(c0, r0),
            src_crs=CRS.from_wkt(self.own.crs_wkt),
            src_nodata=self.fill,
            dst_transform=Affine(*self.target.transform) * Affine.translation(x0, y0),
            dst_crs=CRS.from_wkt(self.target.crs_wkt),
            dst_nodata=self.fill,
            resampling=Resampling[self.resampling],
            tolerance=0,
            UNIFIED_SRC_NODATA="NO",  # or no data of one band is mixed into it where another has some
        )
        return block

    def reaches(self, y0: int, y1: int, x0: int, x1: int) -> bool:
        """Whether the image's rectangle meets a block of the target grid."""
        return self._window(y0, y1, x0, x1) is not None

    @property
    def aligned(self) -> bool:
        """Whether its pixels are pixels of the target grid, so that nothing is resampled."""
        return self._shift is not None

    @cached_property
    def _shift(self) -> tuple[int, int] | None:
        """Return (rows, columns) from the target's first pixel to this one's, if a whole number."""
        if not same_crs(pyproj.CRS.from_wkt(self.own.crs_wkt), pyproj.CRS.from_wkt(self.target.crs_wkt)):
            return None
        relative = ~Affine(*self.target.transform) * Affine(*self.own.transform)
        near = Affine(1, 0, round(relative.c), 0, 1, round(relative.f))
        for corner in ((0, 0), (self.own.width, self.own.height)):
            here, there = np.array(relative * corner), np.array(near * corner)
            if np.abs(here - there).max() > _ALIGNED:
                return None
        return int(near.f), int(near.c)

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> tuple[int, int, int, int] | None:
        """Return the rows and columns of the image under a block of the target; None outside."""
        shift = self._shift
        if shift is not None:
            low, high = (y0 - shift[0], x0 - shift[1]), (y1 - shift[0], x1 - shift[1])
        else:
            ends = _project(_outline(y0, y1, x0, x1), self.target, self.own)
            if ends is None:
                return None
            # Coarser pixels in the target mix more pixels of the image.
            size = np.ptp(ends, axis=0)
            margin = np.ceil(_MARGIN * np.maximum(1, size / (y1 - y0, x1 - x0)))
            start, end = np.floor(ends.min(axis=0)) - margin, np.ceil(ends.max(axis=0)) + margin
            low, high = (int(start[0]), int(start[1])), (int(end[0]), int(end[1]))
        r0, c0 = max(0, low[0]), max(0, low[1])
        r1, c1 = min(self.own.height, high[0]), min(self.own.width, high[1])
        return (r0, r1, c0, c1) if r0 < r1 and c0 < c1 else None


def grid_of(cube: Cube, where: str) -> Grid:
    """Return the grid of a cube; UserError when it has no place on Earth."""
    if cube.crs_wkt is None or cube.transform is None:
        missing = "CRS" if cube.crs_wkt is None else "transform"
        raise UserError(f"{where}: expected an image with a place on Earth, found no {missing}")
    return Grid(cube.crs_wkt, cube.transform, *(int(n) for n in cube.data.shape[1:]))


def union_grid(grids: list[Grid], where: str) -> Grid:
    """Return the grid of the first image, made as large as all images together.

    A rotated first grid becomes north-up with pixels of the same area.

    Raises:
        UserError: An image cannot be placed in the CRS of the first.
    """
    first = grids[0]
    a, b, c, d, e, f = first.transform
    if b or d:
        side = abs(a * e - b * d) ** 0.5
        first = replace(first, transform=(side, 0.0, c, 0.0, -side, f))
    ends = []
    for grid in grids:
        corners = _project(_outline(0, grid.height, 0, grid.width), grid, first)
        if corners is None:
            raise UserError(f"{where}: a flight line lies outside of where the CRS of the first is defined")
        ends.append(corners)
    every = np.concatenate(ends)
    # Corners that miss a pixel edge by rounding alone do not open another row.
    y0, x0 = (int(v) for v in np.floor(every.min(axis=0) + _ALIGNED))
    y1, x1 = (int(v) for v in np.ceil(every.max(axis=0) - _ALIGNED))
    moved = Affine(*first.transform) * Affine.translation(x0, y0)
    a, b, c, d, e, f = tuple(moved)[:6]
    return Grid(first.crs_wkt, (a, b, c, d, e, f), y1 - y0, x1 - x0)


def labels_on_grid(labels: LabelMap, cube: Cube, where: str) -> LabelMap:
    """Return a label map carried over to the grid of a cube: the nearest label of each pixel.

    Raises:
        UserError: One of them has no place on Earth, or they do not meet.
    """
    target = grid_of(cube, "--warp-labels: the image")
    codes = to_codes(labels.data, labels.fill, where)[None]
    own = grid_of(Cube(codes, crs_wkt=labels.crs_wkt, transform=labels.transform), where)
    layer = Layer(codes, own, target, 0)
    if not layer.reaches(0, target.height, 0, target.width):
        raise UserError(f"{where}: expected labels inside of the image, found them elsewhere on Earth")

    def block(block_id: tuple[int, int] = (0, 0)) -> Array:
        y0, x0 = block_id[0] * side, block_id[1] * side
        y1, x1 = min(y0 + side, target.height), min(x0 + side, target.width)
        found = layer.read(y0, y1, x0, x1)
        return found[0] if found is not None else np.zeros((y1 - y0, x1 - x0), np.int32)

    side = 1024
    chunks = da.core.normalize_chunks((side, side), (target.height, target.width))
    data = da.map_blocks(block, chunks=chunks, dtype=np.int32, meta=np.empty((0, 0), np.int32))
    return LabelMap(data, None, labels.classes, cube.crs_wkt, cube.transform)


def _outline(y0: int, y1: int, x0: int, x1: int) -> Array:
    """Return points (n, 2) as (column, row) along the edge of a window and across it."""
    rows, columns = np.meshgrid(np.linspace(y0, y1, _EDGE), np.linspace(x0, x1, _EDGE), indexing="ij")
    return np.stack([columns.ravel(), rows.ravel()], axis=1)


@lru_cache(maxsize=64)
def _change(start_wkt: str, end_wkt: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(start_wkt, end_wkt, always_xy=True)


def _project(points: Array, start: Grid, end: Grid) -> Array | None:
    """Carry (column, row) points (n, 2) of one grid to (row, column) of another.

    Points that the other CRS cannot express are left out; None when none remains.
    """
    x, y = Affine(*start.transform) * (points[:, 0], points[:, 1])
    x, y = _change(start.crs_wkt, end.crs_wkt).transform(x, y)
    columns, rows = ~Affine(*end.transform) * (np.asarray(x), np.asarray(y))
    found = np.stack([rows, columns], axis=1)
    found = found[np.isfinite(found).all(axis=1)]
    return found if len(found) else None
