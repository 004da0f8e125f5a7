"""What the second pass of stage ``map`` reads: the pixel-wise map and the reduced cube of whole cells."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor

from mtmsd.supertokens import SupertokenConfig, pixel_probabilities
from pipeline.chunks import read_region
from pipeline.readers import Reduced
from pipeline.units import Row, TileGrid

PIXEL = "_pixel"
"""Suffix of the arrays of the pixel-wise map, where regions vote."""


@dataclass(frozen=True)
class RegionReader:
    """Unit = number of tiles + tile: the tile's cells with their halo, of the pixel-wise map and the cube."""

    reduced: Reduced
    map: Path
    grid: TileGrid
    config: SupertokenConfig

    @property
    def side(self) -> int:
        """Side of what is read, pixels."""
        return self.config.side(self.grid.side)

    def __call__(self, unit: int) -> Row:
        """Read a tile and its halo; there is no data beyond the scene."""
        y0, y1, x0, x1 = self.grid.bounds(unit % len(self.grid))
        cell, halo = self.config.cell, self.config.halo
        top, left = ((start // cell - halo) * cell for start in (y0, x0))
        rows, columns = (
            slice(max(0, start), min(limit, start + self.side))
            for start, limit in ((top, self.grid.height), (left, self.grid.width))
        )
        inside = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
        cube = np.zeros((self.reduced.shape[0], self.side, self.side), np.float32)
        code = np.zeros((self.side, self.side), np.int32)
        confidence = np.zeros(code.shape, np.float32)
        cube[:, *inside] = self.reduced.read(rows.start, rows.stop, columns.start, columns.stop)
        group: Any = zarr.open_group(str(self.map), mode="r", use_consolidated=False)
        code[inside] = read_region(group["class" + PIXEL], (rows, columns))
        confidence[inside] = read_region(group["confidence" + PIXEL], (rows, columns))
        read = (cube.shape[0] + 2) * 4 * (rows.stop - rows.start) * (columns.stop - columns.start)
        return {
            "cube": np.nan_to_num(cube), "code": code, "confidence": np.nan_to_num(confidence),
            "at": np.array([y0 - top, y1 - top, x0 - left, x1 - left]), "pixels": 0, "bytes_read": read,
        }  # fmt: skip


def own_answers(
    code: NDArray[Any], confidence: NDArray[np.float32], codes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Tensor]:
    """Class positions (-1 = no data) and class probabilities (C, H, W) of a region's pixels."""
    position = np.where(code > 0, np.searchsorted(codes, code), -1)
    return position, pixel_probabilities(torch.from_numpy(position), torch.tensor(confidence), len(codes))
