"""Readers of units: scene tiles, tiles of the reduced cube with their halo, windows, training patches.

Each is a small picklable value; arrays are opened, and decoded chunks kept, in the process that reads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from mtmsd.split import HiddenBlocks
from mtmsd.steps import PretrainConfig, draw_patches, turned
from mtmsd.windows import PatchConfig, read_padded
from pipeline.chunks import read_region
from pipeline.scene import Scene
from pipeline.units import Row, TileGrid

GROUP = 128
"""Labelled pixels in a chunk of features.zarr; a unit of work holds whole chunks."""
_UNIT_PIXELS = 1 << 17
"""Pixels of the windows of a unit, about."""
KEPT_BYTES = 256 << 20
"""Decoded chunks of a cube that a process keeps, at most (but one in any case)."""


def reduced_grid(scene: Scene) -> TileGrid:
    """Chunks of the reduced cube: those of the scene where they are of a handy size."""
    return TileGrid(scene.height, scene.width, int(np.clip(max(scene.chunk), 64, 256)))


@dataclass(frozen=True)
class SceneReader:
    """Unit = tile of the scene, without halo: ``cube`` (band, y, x) padded to whole tiles with NaN."""

    scene: Scene
    grid: TileGrid
    hidden: HiddenBlocks | None = None
    """What is read as no data."""

    def __call__(self, unit: int) -> Row:
        """Read a tile."""
        y0, y1, x0, x1 = self.grid.bounds(unit)
        cube = np.full((self.scene.bands, self.grid.side, self.grid.side), np.nan, np.float32)
        cube[:, : y1 - y0, : x1 - x0] = self.scene.read(y0, y1, x0, x1)
        if self.hidden:
            cube[:, : y1 - y0, : x1 - x0][:, self.hidden.mask(y0, y1, x0, x1)] = np.nan
        return {"cube": cube, "pixels": (y1 - y0) * (x1 - x0), "bytes_read": cube.nbytes}


@dataclass(frozen=True)
class Reduced:
    """The reduced cube on disk: (component, y, x) float32, NaN = no data."""

    path: str
    hidden: HiddenBlocks | None = None
    """What is read as no data, too."""

    @property
    def array(self) -> zarr.Array[Any]:
        """The array, opened once per process."""
        return _opened(self.path, _written(self.path))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(components, height, width)."""
        return cast(tuple[int, int, int], self.array.shape)

    def read(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.float32]:
        """Pixels inside the scene, from decoded chunks that are kept for the next read."""
        side_y, side_x = self.array.chunks[1:]
        chunk_at = _chunks(self.path, _written(self.path))
        result = np.empty((self.shape[0], y1 - y0, x1 - x0), np.float32)
        for row in range(y0 // side_y, -(-y1 // side_y)):
            for column in range(x0 // side_x, -(-x1 // side_x)):
                top, left = row * side_y, column * side_x
                a0, a1 = max(y0, top), min(y1, top + side_y)
                b0, b1 = max(x0, left), min(x1, left + side_x)
                chunk = chunk_at(row, column)
                result[:, a0 - y0 : a1 - y0, b0 - x0 : b1 - x0] = chunk[
                    :, a0 - top : a1 - top, b0 - left : b1 - left
                ]
        if self.hidden:
            result[:, self.hidden.mask(y0, y1, x0, x1)] = np.nan
        return result

    def has_data(self, y: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether pixels have data; reads the chunks that hold them, one after the other."""
        side_y, side_x = self.array.chunks[1:]
        chunk = y // side_y * -(-self.shape[2] // side_x) + x // side_x
        found = np.zeros(len(y), bool)
        order = np.argsort(chunk, kind="stable")
        for mine in np.split(order, np.flatnonzero(np.diff(chunk[order])) + 1) if len(y) else ():
            top, left = int(y[mine].min()), int(x[mine].min())
            part = self.read(top, int(y[mine].max()) + 1, left, int(x[mine].max()) + 1)
            found[mine] = ~np.isnan(part[0, y[mine] - top, x[mine] - left])
        return found

    def window(self, y0: int, y1: int, x0: int, x1: int, patches: PatchConfig) -> NDArray[np.float32]:
        """A region that may reach beyond the scene."""
        return read_padded(self.read, self.shape[1:], (y0, y1), (x0, x1), patches.padding)


def _written(path: str) -> int:
    """When a local cube was laid out: one that was made anew is opened anew."""
    about = Path(path) / "reduced" / "zarr.json"
    return 0 if "://" in path else about.stat().st_mtime_ns


@lru_cache(maxsize=4)
def _opened(path: str, written: int) -> zarr.Array[Any]:
    return cast("zarr.Array[Any]", zarr.open_group(path, mode="r", use_consolidated=False)["reduced"])


@lru_cache(maxsize=4)
def _chunks(path: str, written: int) -> Callable[[int, int], NDArray[np.float32]]:
    """Reads a chunk by its row and column; the last ones, as many as ``KEPT_BYTES`` hold, stay decoded."""
    array = _opened(path, written)
    depth, side_y, side_x = array.shape[0], *array.chunks[1:]

    @lru_cache(maxsize=max(1, KEPT_BYTES // (depth * side_y * side_x * np.dtype(np.float32).itemsize)))
    def chunk(row: int, column: int) -> NDArray[np.float32]:
        rows, columns = slice(row * side_y, (row + 1) * side_y), slice(column * side_x, (column + 1) * side_x)
        return np.asarray(read_region(array, (slice(None), rows, columns)), np.float32)

    return chunk


@dataclass(frozen=True)
class TileReader:
    """Unit = tile of the map: ``cube`` (component, side + halo, side + halo), beyond the scene padded."""

    reduced: Reduced
    grid: TileGrid
    patches: PatchConfig

    def __call__(self, unit: int) -> Row:
        """Read a tile and its halo."""
        y0, y1, x0, x1 = self.grid.bounds(unit)
        before, side = self.patches.before - self.patches.origin, self.side(self.grid, self.patches)
        top, left = y0 - before, x0 - before
        cube = self.reduced.window(top, top + side, left, left + side, self.patches)
        return {
            "cube": cube, "height": y1 - y0, "width": x1 - x0, "pixels": (y1 - y0) * (x1 - x0),
            "bytes_read": cube.nbytes,
        }  # fmt: skip

    @staticmethod
    def side(grid: TileGrid, patches: PatchConfig) -> int:
        """Side of the cube: all blocks that touch a tile, and their windows' halo."""
        return patches.blocks(grid.side) * patches.stride + patches.side - patches.stride


@dataclass(frozen=True)
class WindowReader:
    """Unit = run of pixels, ordered by window: the ``windows`` that see them, and which pixel lies where.

    ``window`` and ``offset`` tell each pixel's window and its index in that window's block. All three are
    padded to the largest unit, so that rows have one shape.
    """

    reduced: Reduced
    patches: PatchConfig
    y: NDArray[np.int64]
    x: NDArray[np.int64]
    starts: NDArray[np.int64]
    """First pixel of each unit, and the number of pixels."""
    most: tuple[int, int]
    """Pixels and windows of the largest unit."""
    first: int = 0
    """The unit to which the first of ``starts`` belongs."""

    @staticmethod
    def plan(
        reduced: Reduced, patches: PatchConfig, y: NDArray[np.int64], x: NDArray[np.int64]
    ) -> "WindowReader":
        """Cut pixels into units of whole chunks (``GROUP`` pixels) that share at most a few windows.

        A window whose pixels lie in two units is computed for both.
        """
        fresh = np.ones(len(y), bool)
        fresh[1:] = (np.diff(patches.block(y)) != 0) | (np.diff(patches.block(x)) != 0)
        number = np.cumsum(fresh) - 1
        limit = max(8, _UNIT_PIXELS // patches.side**2)
        starts, most_pixels, most_windows = [0], 0, 0
        for first in range(0, len(y), GROUP):
            last = min(first + GROUP, len(y)) - 1
            if number[last] - number[starts[-1]] >= limit and first > starts[-1]:
                starts.append(first)
            most_pixels = max(most_pixels, last + 1 - starts[-1])
            most_windows = max(most_windows, int(number[last] - number[starts[-1]]) + 1)
        return WindowReader(reduced, patches, y, x, np.array([*starts, len(y)]), (most_pixels, most_windows))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.most[1] * self.reduced.shape[0] * self.patches.side**2 * 4 + self.most[0] * 16

    def __len__(self) -> int:
        return len(self.starts) - 1

    def part(self, units: Sequence[int]) -> "WindowReader":
        """The reader of the units from the first to the last of some: it holds their pixels alone."""
        starts = self.starts[units[0] - self.first : units[-1] + 2 - self.first]
        mine = slice(starts[0], starts[-1])
        return replace(self, y=self.y[mine], x=self.x[mine], starts=starts - starts[0], first=units[0])

    def __call__(self, unit: int) -> Row:
        """Read the windows of a unit's pixels."""
        mine = slice(*self.starts[unit - self.first :][:2])
        y, x, patches, side = self.y[mine], self.x[mine], self.patches, self.patches.side
        blocks, window = np.unique(patches.block(np.stack([y, x])), axis=1, return_inverse=True)
        windows = np.zeros((self.most[1], self.reduced.shape[0], side, side), np.float32)
        for i, (row, column) in enumerate(patches.corner(blocks.T)):
            windows[i] = self.reduced.window(row, row + side, column, column + side, self.patches)
        positions = np.full((2, self.most[0]), -1, np.int64)
        positions[0, : len(y)] = window
        positions[1, : len(y)] = patches.within(y) * patches.stride + patches.within(x)
        return {
            "windows": windows, "count": blocks.shape[1], "window": positions[0], "offset": positions[1],
            "pixels": len(y), "bytes_read": windows.nbytes,
        }  # fmt: skip


@dataclass(frozen=True)
class PatchReader:
    """Unit = training step: this worker's ``patches`` (share, component, size, size), NaN = no data."""

    reduced: Reduced
    patches: PatchConfig
    pretrain: PretrainConfig
    seed: int
    share: slice

    def __call__(self, unit: int) -> Row:
        """Read the share of step ``unit``."""
        _, height, width = self.reduced.shape
        size, before = self.patches.size, self.patches.size // 2
        draw = draw_patches(self.seed, unit, self.pretrain, height, width, before)
        stack = [
            turned(self.reduced.window(y, y + size, x, x + size, self.patches), turn)
            for y, x, turn in zip(draw.y[self.share], draw.x[self.share], draw.turn[self.share], strict=True)
        ]
        return {"patches": np.stack(stack)}
