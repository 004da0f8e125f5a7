"""A tile of the map, joined from the blocks of its windows.

Norms, attention and noise belong to a window, so neighbouring windows disagree a little about the pixels
at their common border, and large blocks leave seams in the map. With ``patches.blend`` = b blocks reach b
pixels over their borders; there the evidence fades linearly from one window to the next.
Shapes: H W rows and columns of the tile; Q side of a block with its margins; P pixel; V values of a pixel;
M member, T timestep, N window, K kept channel.
"""

import torch
from torch import Tensor

from mtmsd.ensemble import Ensemble
from mtmsd.interpolation import Features
from mtmsd.windows import PatchConfig


class Mosaic:
    """Weighted sums of what windows say of the pixels of a tile.

    Blocks are named by their row and column among those that touch the tile, from 0.
    """

    def __init__(self, height: int, width: int, values: int, patches: PatchConfig) -> None:
        self._sum_HWV, self._patches = torch.zeros((height, width, values)), patches
        self._weight_Q = fade(patches)

    def inside(self, block: int, axis: int) -> slice:
        """Which of a block's rows (axis 0) or columns (axis 1), margins included, lie on the tile."""
        first = self._first(block)
        last = min(len(self._weight_Q), self._sum_HWV.shape[axis] - first)
        return slice(max(0, -first), max(0, -first, last))

    def place(self, block: int, axis: int) -> slice:
        """Where on the tile these lie."""
        mine, first = self.inside(block, axis), self._first(block)
        return slice(first + mine.start, first + mine.stop)

    def add(self, row: int, column: int, rows: slice, values_PV: Tensor) -> None:
        """Take in some rows of a block, those columns that lie on the tile, in ascending order of blocks."""
        columns, first = self.inside(column, 1), self._first(row)
        weight = self._weight_Q[rows, None, None] * self._weight_Q[columns, None]
        values = values_PV.cpu().reshape(*weight.shape[:2], -1)
        self._sum_HWV[first + rows.start : first + rows.stop, self.place(column, 1)] += weight * values

    def add_window(
        self,
        row: int,
        column: int,
        features: Features,
        votes_MTNK: Tensor,
        window: int,
        ensemble: Ensemble,
        pixels: int,
    ) -> None:
        """Take in what the ensemble says of one window's block, with its margins.

        Args:
            row: Of the block.
            column: Of the block.
            features: Of some windows, read with ``patches.wide``.
            votes_MTNK: ``Ensemble.window_votes`` of the same windows.
            window: Which of them.
            ensemble: Answers.
            pixels: As many are classified at once, in whole rows and at least one.
        """
        answers = ensemble.answers(features, votes_MTNK, window)
        mine, columns = self.inside(row, 0), self.inside(column, 1)
        step = max(1, pixels // (columns.stop - columns.start))
        for first in range(mine.start, mine.stop, step):
            rows = slice(first, min(first + step, mine.stop))
            self.add(row, column, rows, answers(rows, columns))

    @property
    def values_HWV(self) -> Tensor:
        """The pixels' values: of one window, or the mean of up to four."""
        return self._sum_HWV

    def _first(self, block: int) -> int:
        return block * self._patches.stride + self._patches.origin - self._patches.margin


def fade(patches: PatchConfig) -> Tensor:
    """Weights (Q,) of a block's pixels along one axis; those of neighbouring blocks add up to 1.

    >>> fade(PatchConfig(size=8, stride=4, blend=1))
    tensor([0.2500, 0.7500, 1.0000, 1.0000, 0.7500, 0.2500])
    """
    blend, side = patches.margin, patches.wide.stride
    rise = (torch.arange(side) + 0.5) / max(2 * blend, 1)
    return torch.minimum(rise, rise.flip(0)).clamp(max=1.0) if blend else torch.ones(side)
