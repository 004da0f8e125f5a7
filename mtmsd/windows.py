"""Scene <-> windows <-> pixels: pure integer geometry.

A scene of (height, width) pixels is cut into blocks of stride x stride pixels. Each block is seen
through one window of size x size pixels that holds the block at offset ``before`` on either axis.
With stride 1 every pixel has a window of its own and lies at index size // 2 of it, as in the paper.
Blocks that blend (mosaic.py) begin half a stride before the scene, so that few of them touch a tile.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mtmsd.checks import check_ranges

Padding = Literal["zeros", "reflect"]
IntArray = NDArray[np.int64]
Read = Callable[[int, int, int, int], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class PatchConfig:
    """How the scene is cut into windows.

    >>> patches = PatchConfig(size=48, stride=4)
    >>> patches.before, patches.stride, patches.after
    (22, 4, 22)
    """

    size: int = 48
    """Side of a pretraining patch, pixels."""
    window: int | None = None
    """Side of a window that features are read from, pixels; absent: the patch's."""
    stride: int = 0
    """Side of the block that one window answers for, pixels; 1 = a window for every pixel (exact);
    0 or absent: half of the window."""
    blend: int | None = None
    """Pixels on either side of a border between blocks over which one window's answer fades into the next;
    absent: a sixth of the stride, at most 8, as the window allows."""
    padding: Padding = "reflect"
    """What lies beyond the scene's edge: zeros as in the paper, or the scene reflected."""

    def __post_init__(self) -> None:
        """Refuse windows that cannot hold their block."""
        check_ranges("patches", self, size="[4, inf)", window="[4, inf)")
        if self.stride == 0:
            object.__setattr__(self, "stride", self.side // 2)
        if not 1 <= self.stride <= self.side:
            raise ValueError(
                f"patches.stride must lie in 1..{self.side}, the side of a window, found {self.stride}"
            )
        if not 0 <= self.margin <= self._most:
            raise ValueError(
                f"patches.blend must lie in 0..{self._most} (half a stride, inside the window), "
                f"found {self.blend}"
            )

    @property
    def side(self) -> int:
        """Side of a window, pixels."""
        return self.size if self.window is None else self.window

    @property
    def before(self) -> int:
        """Pixels of a window above (left of) its block."""
        return (self.side - self.stride + 1) // 2

    @property
    def after(self) -> int:
        """Pixels of a window below (right of) its block."""
        return self.side - self.stride - self.before

    @property
    def margin(self) -> int:
        """``blend``, or what stands for it."""
        return min(self.stride // 6, 8, self._most) if self.blend is None else self.blend

    @property
    def _most(self) -> int:
        return min(self.stride // 2, (self.side - self.stride) // 2)

    @property
    def origin(self) -> int:
        """First row (column) of the first block."""
        return -(self.stride // 2) if self.margin else 0

    @property
    def wide(self) -> "PatchConfig":
        """The same windows with blocks that hold their margins."""
        return replace(self, stride=self.stride + 2 * self.margin, blend=0)

    def block(self, position: IntArray) -> IntArray:
        """Row (column) of the block that holds each row (column) of pixels.

        >>> PatchConfig(stride=4).block(np.array([0, 3, 4])).tolist()
        [0, 0, 1]
        >>> PatchConfig(stride=4, blend=1).block(np.array([0, 1, 2])).tolist()
        [0, 0, 1]
        """
        return (position - self.origin) // self.stride

    def within(self, position: IntArray) -> IntArray:
        """Row (column) of pixels, counted from its block's first."""
        return (position - self.origin) % self.stride

    def corner(self, block: IntArray) -> IntArray:
        """First row (column) of the window that sees a block."""
        return block * self.stride + self.origin - self.before

    def blocks(self, pixels: int) -> int:
        """Blocks whose pixels, margins included, touch the first ``pixels`` rows (columns) of a tile.

        >>> PatchConfig(stride=4).blocks(16), PatchConfig(stride=4, blend=1).blocks(16)
        (4, 5)
        """
        return -(-(pixels - self.origin + self.margin) // self.stride)


def pad_index(start: int, stop: int, limit: int, padding: Padding) -> tuple[IntArray, NDArray[np.bool_]]:
    """Source index of each position in [start, stop) on an axis of ``limit`` samples.

    Returns:
        The index, always within [0, limit), and whether the position holds data. Reflection (about
        the centre of the edge samples, as ``numpy.pad(mode="reflect")``) always does.

    >>> index, inside = pad_index(-2, 6, 4, "reflect")
    >>> index.tolist()
    [2, 1, 0, 1, 2, 3, 2, 1]
    >>> index, inside = pad_index(-2, 6, 4, "zeros")
    >>> inside.astype(int).tolist()
    [0, 0, 1, 1, 1, 1, 0, 0]
    """
    position = np.arange(start, stop, dtype=np.int64)
    if padding == "zeros":
        return np.clip(position, 0, limit - 1), (position >= 0) & (position < limit)
    period = max(2 * (limit - 1), 1)
    folded = np.abs((position + period * (1 + abs(start) // period)) % period)
    return np.minimum(folded, period - folded) if limit > 1 else np.zeros_like(position), np.ones(
        len(position), bool
    )


def read_padded(
    read: Read, shape: tuple[int, int], y: tuple[int, int], x: tuple[int, int], padding: Padding
) -> NDArray[np.float32]:
    """Read rows y[0]..y[1] and columns x[0]..x[1], which may reach beyond the scene.

    Args:
        read: ``read(y0, y1, x0, x1)`` -> (channel, y1 - y0, x1 - x0), called once, inside the scene.
        shape: (height, width) of the scene, pixels.
        y: Half-open range of rows.
        x: Half-open range of columns.
        padding: What lies beyond the edge; zeros are returned as NaN, the mark of no data.

    >>> cube = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    >>> read = lambda y0, y1, x0, x1: cube[:, y0:y1, x0:x1]
    >>> read_padded(read, (2, 3), (-1, 2), (0, 3), "reflect")[0].tolist()
    [[3.0, 4.0, 5.0], [0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    """
    rows, row_inside = pad_index(*y, shape[0], padding)
    cols, col_inside = pad_index(*x, shape[1], padding)
    y0, x0 = int(rows.min()), int(cols.min())
    source = read(y0, int(rows.max()) + 1, x0, int(cols.max()) + 1)
    window = source[:, rows[:, None] - y0, cols[None, :] - x0].astype(np.float32)
    window[:, ~(row_inside[:, None] & col_inside[None, :])] = np.nan
    return window


def windows_of_tile(tile_CHW: NDArray[np.float32], patches: PatchConfig) -> NDArray[np.float32]:
    """All windows of a tile, by row and column of their blocks.

    Args:
        tile_CHW: (channel, rows + side - stride, columns + side - stride): whole blocks plus halo.
        patches: The geometry.

    Returns:
        (row, column, channel, side, side), a view.

    Raises:
        ValueError: The tile does not hold whole blocks.

    >>> patches = PatchConfig(size=6, stride=2)
    >>> windows_of_tile(np.zeros((3, 8, 10), np.float32), patches).shape  # 2 x 3 blocks, halo of 4
    (2, 3, 3, 6, 6)
    """
    _, height, width = tile_CHW.shape
    extra = patches.side - patches.stride
    if (height - extra) % patches.stride or (width - extra) % patches.stride:
        raise ValueError(
            f"a tile of whole {patches.stride}-pixel blocks plus a halo of {extra} was expected, "
            f"found {height} x {width}"
        )
    view = np.lib.stride_tricks.sliding_window_view(tile_CHW, (patches.side, patches.side), (1, 2))
    return view[:, :: patches.stride, :: patches.stride].transpose(1, 2, 0, 3, 4)
