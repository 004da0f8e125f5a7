"""Stage ``map``: every pixel's class, confidence and entropy.

One row is one tile of the map with its halo. One actor takes it through windows, U-Net features,
purification, fusion and the ensemble; only the finished tile leaves the actor.
"""

from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from ray.actor import ActorHandle

from mtmsd.mosaic import Mosaic
from mtmsd.purify import Selection
from mtmsd.split import TEST
from mtmsd.windows import windows_of_tile
from pipeline.artifacts import RunFolder, read_json, write_json
from pipeline.classes import table_of, to_attributes
from pipeline.cluster import Shares, share_out
from pipeline.config import Config
from pipeline.export import preview, write_cogs, write_overviews
from pipeline.progress import metered, peak_rss
from pipeline.readers import Reduced, TileReader
from pipeline.scene import Scene, write_georeference
from pipeline.scene_arrays import named_array
from pipeline.trained import load_ensemble, make_extractor
from pipeline.units import ChunkSink, TileGrid, TileRegions, UnitSource, read_units, write_units

_CACHED_BYTES = 6 << 20
"""Features of the pixels that are classified at once: they should stay in the processor's cache."""

_STRIP = 64
"""Rows of a tile that are decided at once."""

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
            side = TileReader.side(grid, config.patches)
            reader = TileReader(reduced, grid, config.patches)
            source = UnitSource("map: tiles", todo, reader, reduced.shape[0] * side**2 * 4)
            map_tiles(folder, grid, source, shares, MapActor, (config, folder, shares.gpu, meter), meter)
        finish(folder, scene)
        return record()


def map_tiles(
    folder: RunFolder,
    grid: TileGrid,
    source: UnitSource,
    shares: Shares,
    actor: type,
    arguments: tuple[Any, ...],
    meter: ActorHandle[Any],
) -> None:
    """Take a source's tiles through a pool of actors into ``map.zarr``, each with its marker."""
    tiles = shares.through_actors(read_units(source), len(source), actor, arguments)
    sink = ChunkSink("map.zarr", folder.map, TileRegions(grid, ARRAYS), folder.markers("map"), meter)
    write_units(tiles, sink)


def finish(folder: RunFolder, scene: Scene) -> None:
    """Write what is made from the finished map: overviews, GeoTIFFs, the preview."""
    write_overviews(folder.map, scene)
    write_cogs(folder.map, scene, folder.path)
    preview(folder.map, folder.path / "map_preview.png")
    if folder.metrics.exists() and folder.features.exists():
        write_json(folder.metrics, read_json(folder.metrics) | {"map_oa": score(folder)})


def score(folder: RunFolder) -> float:
    """Share of the test pixels at which the finished map is right.

    ``oa`` scores each test pixel by its own block's window alone; on the map neighbouring windows blend.
    """
    group: Any = zarr.open_group(folder.features, mode="r", use_consolidated=False)
    split, label, y, x = (np.asarray(group[n][...]) for n in ("split", "label", "y_index", "x_index"))
    tested = split == TEST
    found: Any = zarr.open_group(folder.map, mode="r", use_consolidated=False)["class"]
    return float((found.vindex[y[tested], x[tested]] == label[tested]).mean())


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
        patches, cube = self._config.patches, batch["cube"][0]
        height, width = int(batch["height"][0]), int(batch["width"][0])
        start = patches.before - patches.origin
        valid = ~np.isnan(cube[0, start : start + height, start : start + width])
        mosaic = Mosaic(height, width, self._ensemble.values, patches)
        windows = windows_of_tile(cube, patches)
        wanted = [
            (row, column)
            for row in range(patches.blocks(height))
            for column in range(patches.blocks(width))
            if valid[mosaic.place(row, 0), mosaic.place(column, 1)].any()
        ]
        for first in range(0, len(wanted), self._extract.batch):
            mine = wanted[first : first + self._extract.batch]
            self._add(mosaic, mine, np.stack([windows[at] for at in mine]))
        answers = self._decide(mosaic, valid)
        row = {name: self._whole(values)[None] for name, values in zip(ARRAYS, answers, strict=True)}
        carried = {key: batch[key] for key in ("unit", "pixels", "bytes_read")}
        return row | carried | {"peak_rss": np.array([peak_rss()])}

    @torch.inference_mode()
    def _add(self, mosaic: Mosaic, at: list[tuple[int, int]], windows_NCWW: NDArray[np.float32]) -> None:
        """Take in what the ensemble says of some windows."""
        features = self._extract(torch.from_numpy(np.nan_to_num(windows_NCWW)))
        if self._meter is not None:
            self._meter.add.remote(0, 0, 0, 0, 0, len(at) * features.pooled_NTK.shape[1])
        votes = self._ensemble.window_votes(features.pooled_NTK)
        for i, (row, column) in enumerate(at):
            mosaic.add_window(row, column, features, votes, i, self._ensemble, self._pixels)

    def _decide(self, mosaic: Mosaic, valid: NDArray[np.bool_]) -> tuple[NDArray[Any], ...]:
        """Class code, confidence and entropy of a tile's pixels, strip by strip."""
        code = np.zeros(valid.shape, np.int64)
        confidence, entropy = np.full((2, *valid.shape), np.nan, np.float32)
        for first in range(0, len(valid), _STRIP):
            rows = slice(first, first + _STRIP)
            here, values = valid[rows], mosaic.values_HWV[rows]
            answer = self._ensemble.decide(values[torch.from_numpy(here)])
            code[rows][here] = self._codes[answer.position_N.numpy()]
            confidence[rows][here], entropy[rows][here] = answer.confidence_N, answer.entropy_N
        return code, confidence, entropy

    def _whole(self, values: NDArray[Any]) -> NDArray[Any]:
        """A tile at the scene's edge, filled up to a whole tile."""
        side = self._config.tile
        missing = [(0, side - length) for length in values.shape]
        return np.pad(values, missing)


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
