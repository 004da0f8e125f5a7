"""Second pass of stage ``map``, with ``map.regions``: every pixel's class after the vote of its supertokens.

The first pass leaves the pixel-wise map in ``class_pixel`` and so on; this one reads it, and the reduced
cube, tile by tile with a halo, and writes ``class``, ``confidence`` and ``entropy``. Nothing that it reads
is written in this pass, so tiles may be made in any order, and again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from ray.actor import ActorHandle

from mtmsd.ensemble import decide
from mtmsd.supertokens import SupertokenConfig, Supertokens, pixel_probabilities, spectral_metric
from pipeline.artifacts import RunFolder, read_json
from pipeline.chunks import read_region
from pipeline.cluster import Shares
from pipeline.config import Config
from pipeline.progress import peak_rss
from pipeline.readers import Reduced
from pipeline.units import ROUND, ChunkSink, Row, TileGrid, TileRegions, UnitSource, read_units, write_units

ARRAYS = ("class", "confidence", "entropy")
PIXEL = "_pixel"
"""Suffix of the arrays of the pixel-wise map, where regions vote."""


def vote(
    config: Config,
    folder: RunFolder,
    grid: TileGrid,
    todo: list[int],
    shares: Shares,
    meter: ActorHandle[Any],
) -> None:
    """Make the tiles ``todo`` of the final map from the finished pixel-wise map.

    Units are numbered after those of the first pass.
    """
    reader = RegionReader(Reduced(str(folder.reduced)), folder.map, grid, config.supertokens)
    row_bytes = reader.side**2 * (reader.reduced.shape[0] * 4 + 8)
    source = UnitSource("map: regions", todo, reader, row_bytes)
    sink = ChunkSink("map.zarr: regions", folder.map, TileRegions(grid, ARRAYS), folder.markers("map"), meter)
    arguments = config, folder, shares.gpu
    for part in source.rounds(ROUND):
        write_units(shares.through_actors(read_units(part), len(part), RegionActor, arguments), sink)


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


class RegionActor:
    """A tile's pixel-wise answers and spectra, with their halo -> the tile after the vote."""

    def __init__(self, config: Config, folder: RunFolder, gpu: bool) -> None:
        torch.set_num_threads(config.cluster.threads)
        self._device, self._tile = "cuda" if gpu else "cpu", config.tile
        self._codes = np.asarray(read_json(folder.selection)["codes"])
        self._tokens = Supertokens(config.supertokens, _metric(folder, config.supertokens)).to(self._device)

    @torch.inference_mode()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Let the tokens of one tile vote."""
        code = batch["code"][0]
        position = np.where(code > 0, np.searchsorted(self._codes, code), -1)
        cube, position_HW, confidence_HW = (
            torch.tensor(values, device=self._device)
            for values in (batch["cube"][0], position, batch["confidence"][0])
        )
        own = pixel_probabilities(position_HW, confidence_HW, len(self._codes))
        y0, y1, x0, x1 = batch["at"][0]
        voted = self._tokens.vote(cube, own)[:, y0:y1, x0:x1]
        answer = decide(voted.flatten(1).T, "mean")
        valid = position[y0:y1, x0:x1] >= 0
        found = (
            self._codes[answer.position_N.cpu().numpy()], answer.confidence_N.cpu().numpy(),
            answer.entropy_N.cpu().numpy(),
        )  # fmt: skip
        row = {
            name: self._whole(np.where(valid, values.reshape(valid.shape), 0 if name == "class" else np.nan))
            for name, values in zip(ARRAYS, found, strict=True)
        }
        carried = {key: batch[key] for key in ("unit", "pixels", "bytes_read")}
        return row | carried | {"peak_rss": np.array([peak_rss()])}

    def _whole(self, values: NDArray[Any]) -> NDArray[Any]:
        """A batch of one tile, filled up where the scene's edge cuts it."""
        return np.pad(values, [(0, self._tile - length) for length in values.shape])[None]


def _metric(folder: RunFolder, config: SupertokenConfig) -> torch.Tensor:
    """The projection of the run's reduced components, with bands in the order of wavelength."""
    stored = read_json(folder.spectral)
    loadings = np.asarray(stored["loadings"])
    wavelength = np.asarray(stored["wavelength_nm"] or np.nan, np.float64)
    wavelength = wavelength[stored["bands_used"]] if wavelength.ndim else np.full(len(loadings), np.nan)
    known = bool(np.isfinite(wavelength).all())
    order = np.argsort(wavelength, kind="stable") if known else np.arange(len(loadings))
    return spectral_metric(
        torch.tensor(loadings[order]),
        torch.tensor(stored["scale"]),
        torch.tensor(wavelength[order]) if known else None,
        config.derivative,
    )
