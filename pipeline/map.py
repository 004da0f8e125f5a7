"""Stage ``map``: every pixel's class, confidence and entropy.

One row is one tile of the map with its halo. One actor takes it through windows, U-Net features,
purification, fusion and the ensemble; only the finished tile leaves the actor.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from ray.actor import ActorHandle

from mtmsd.classifier import Prediction
from mtmsd.features import Features
from mtmsd.purify import Selection
from mtmsd.windows import blocks_to_tile, windows_of_tile
from pipeline.artifacts import RunFolder, read_json
from pipeline.classes import table_of, to_attributes
from pipeline.cluster import share_out
from pipeline.config import Config
from pipeline.export import preview, write_cogs, write_overviews
from pipeline.progress import metered, peak_rss
from pipeline.readers import Reduced, TileReader
from pipeline.scene import Scene, write_georeference
from pipeline.scene_arrays import named_array
from pipeline.trained import load_ensemble, make_extractor
from pipeline.units import ChunkSink, Region, TileGrid, UnitSource, read_units, write_units

_CACHED_BYTES = 6 << 20
"""Features of the pixels that are classified at once: they should stay in the processor's cache."""

ARRAYS = ("class", "confidence", "entropy")


def run(config: Config, folder: RunFolder, scene: Scene) -> dict[str, Any]:
    """Write ``map.zarr``, ``map.tif`` and ``confidence.tif``; returns what was measured."""
    grid = TileGrid(scene.height, scene.width, config.tile)
    shares = share_out(config.cluster)
    reduced = Reduced(str(folder.reduced))
    with metered("map", len(grid), "tiles") as (meter, record):
        create(folder, scene, grid)
        todo = folder.todo("map", range(len(grid)))
        meter.skip.remote(len(grid) - len(todo))
        if todo:
            side = grid.side + config.patches.side - config.patches.stride
            reader = TileReader(reduced, grid, config.patches)
            source = UnitSource("map: tiles", todo, reader, reduced.shape[0] * side**2 * 4)
            tiles = shares.through_actors(
                read_units(source), len(todo), MapActor, (config, folder, shares.gpu, meter)
            )
            sink = ChunkSink("map.zarr", folder.map, _Regions(grid), folder.markers("map"), meter)
            write_units(tiles, sink)
        finish(folder, scene)
        return record()


def finish(folder: RunFolder, scene: Scene) -> None:
    """Write what is made from the finished map: overviews, GeoTIFFs, the preview."""
    write_overviews(folder.map, scene)
    write_cogs(folder.map, scene, folder.path)
    preview(folder.map, folder.path / "map_preview.png")


class _Regions:
    def __init__(self, grid: TileGrid) -> None:
        self._grid = grid

    def __call__(self, unit: int) -> dict[str, Region]:
        y0, y1, x0, x1 = self._grid.bounds(unit)
        return {name: (slice(y0, y1), slice(x0, x1)) for name in ARRAYS}


class MapActor:
    """A tile of the reduced cube -> a tile of the map."""

    def __init__(
        self, config: Config, folder: RunFolder, gpu: bool, meter: ActorHandle[Any] | None = None
    ) -> None:
        torch.set_num_threads(config.cluster.threads)
        self._config, self._meter = config, meter
        self._ensemble = load_ensemble(config, folder, gpu)
        stored = read_json(folder.selection)
        self._codes = np.asarray(stored["codes"])
        selection = Selection.from_json(stored)
        self._extract = make_extractor(config, folder, gpu, selection, self._ensemble)
        of_pixel = 4 * len(config.features.timesteps) * len(selection.centre)
        self._pixels = config.map.pixels or max(1, _CACHED_BYTES // of_pixel)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Classify one tile."""
        patches, side = self._config.patches, self._config.tile
        cube = batch["cube"][0]
        blocks = [blocks_to_tile(part, side)[None] for part in self._blocks(windows_of_tile(cube, patches))]
        row = dict(zip(ARRAYS, blocks, strict=True))
        carried = {key: batch[key] for key in ("unit", "pixels", "bytes_read")}
        return row | carried | {"peak_rss": np.array([peak_rss()])}

    def _blocks(self, windows_NCWW: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """Class code, confidence and entropy of each window's block, (N, stride, stride)."""
        stride, before = self._config.patches.stride, self._config.patches.before
        inner = slice(before, before + stride)
        valid = np.asarray(~np.isnan(windows_NCWW[:, :, inner, inner]).any(axis=1))
        shape = (len(windows_NCWW), stride, stride)
        code, confidence, entropy = (
            np.zeros(shape, np.int64),
            *(np.full((2, *shape), np.nan, np.float32)),
        )
        wanted = np.flatnonzero(valid.any(axis=(1, 2)))
        for start in range(0, len(wanted), self._extract.batch):
            mine = wanted[start : start + self._extract.batch]
            features = self._extract(torch.from_numpy(np.nan_to_num(windows_NCWW[mine])))
            if self._meter is not None:
                self._meter.add.remote(0, 0, 0, 0, 0, len(mine) * features.pooled_NTK.shape[1])
            votes = self._ensemble.window_votes(features.pooled_NTK)
            for i, window in enumerate(mine):
                for rows, answer in self.answers(features, votes, i):
                    size = (rows.stop - rows.start, stride)
                    code[window, rows] = self._codes[answer.position_N.cpu().numpy()].reshape(size)
                    confidence[window, rows] = answer.confidence_N.cpu().numpy().reshape(size)
                    entropy[window, rows] = answer.entropy_N.cpu().numpy().reshape(size)
        confidence[~valid], entropy[~valid] = np.nan, np.nan
        return np.where(valid, code, 0), confidence, entropy

    @torch.inference_mode()
    def answers(
        self, features: Features, votes_MTNK: torch.Tensor, window: int
    ) -> Iterator[tuple[slice, Prediction]]:
        """Predictions of a window's block, as many rows at once as ``map.pixels`` allows."""
        stride = self._config.patches.stride
        step = max(1, self._pixels // stride)
        for first in range(0, stride, step):
            last = min(first + step, stride)
            centre, spectra = features.rows(window, first, last), features.spectra_rows(window, first, last)
            votes = votes_MTNK[:, :, window : window + 1]
            yield slice(first, last), self._ensemble.classify(centre, votes, spectra)


def create(folder: RunFolder, scene: Scene, grid: TileGrid) -> None:
    """Lay out ``map.zarr``, empty, unless it is there."""
    if folder.map.exists():
        return
    partial = folder.map.with_name("map.zarr.partial")
    group = zarr.open_group(partial, mode="w", zarr_format=2)  # GDAL before 3.11 reads no final Zarr v3
    classes = table_of([tuple(row) for row in read_json(folder.selection)["classes"]])
    code_type = "uint8" if max(classes.codes) < 256 else "uint16"
    about: dict[str, dict[str, Any]] = {
        "class": {"long_name": "class", **to_attributes(classes)},
        "confidence": {
            "long_name": "mean probability of the class over the ensemble",
            "units": "1",
        },
        "entropy": {"long_name": "entropy of the ensemble's mean probabilities", "units": "nat"},
    }
    for name in ARRAYS:
        integer = name == "class"
        named_array(
            group, name, ("y", "x"), about[name], shape=(scene.height, scene.width),
            chunks=(grid.side, grid.side), dtype=code_type if integer else "float32",
            fill_value=None if integer else float("nan"), compressors={"id": "gzip", "level": 5},
        )  # fmt: skip
    write_georeference(group, scene)
    partial.rename(folder.map)
