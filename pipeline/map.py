"""Stage ``map``: every pixel's class, confidence and entropy.

One row is one tile of the map with its halo. One actor takes it through windows, U-Net features,
purification, fusion and the ensemble; only the finished tile leaves the actor. With ``map.regions`` that is
the pixel-wise map, and a second pass over it makes the final one (regions.py).
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from ray.actor import ActorHandle

from mtmsd.calibration import Reliability
from mtmsd.metrics import Confusion
from mtmsd.mosaic import Mosaic
from mtmsd.purify import Selection
from mtmsd.split import TEST
from mtmsd.windows import windows_of_tile
from pipeline import regions, storage
from pipeline.artifacts import RunFolder, read_json, without_map_scores, write_json
from pipeline.classes import ClassTable, table_of, to_attributes
from pipeline.cluster import Shares, share_out
from pipeline.config import Config
from pipeline.export import preview, write_cogs, write_overviews
from pipeline.progress import metered, peak_rss
from pipeline.readers import Reduced, TileReader
from pipeline.region_reader import PIXEL
from pipeline.regions import ARRAYS
from pipeline.scene import Scene, write_georeference
from pipeline.scene_arrays import named_array
from pipeline.trained import load_ensemble, make_extractor
from pipeline.units import ROUND, ChunkSink, TileGrid, TileRegions, UnitSource, read_units, write_units

_CACHED_BYTES = 6 << 20
"""Features of the pixels that are classified at once: they should stay in the processor's cache."""

_GPU_BYTES = 512 << 20
"""The same on a GPU."""

_ACTORS_A_WRITE = 8
"""Many actors' tiles are written several by a task: Ray's work for a task is shared, and of the tiles that
wait there are fewer than actors."""

_STRIP = 64
"""Rows of a tile that are decided at once."""


def run(config: Config, folder: RunFolder, scene: Scene) -> dict[str, Any]:
    """Write ``map.zarr``, ``map.tif`` and ``confidence.tif``; returns what was measured."""
    grid = TileGrid(scene.height, scene.width, config.tile)
    shares = share_out(config.cluster)
    reduced = Reduced(str(folder.reduced))
    units, suffix = (2 * len(grid), PIXEL) if config.map.regions else (len(grid), "")
    with metered("map", units, "tiles") as (meter, record):
        create(folder, scene, grid, regional=bool(config.map.regions))
        left = folder.todo("map", range(units))
        meter.skip.remote(units - len(left))
        if todo := grid.largest_first(unit for unit in left if unit < len(grid)):
            side = TileReader.side(grid, config.patches)
            reader = TileReader(reduced, grid, config.patches)
            source = UnitSource("map: tiles", todo, reader, reduced.shape[0] * side**2 * 4)
            arguments = config, folder, shares.gpu, meter
            tiles = TileRegions(grid, tuple(name + suffix for name in ARRAYS))
            map_tiles(folder, tiles, source, shares, MapActor, arguments, meter)
        if voting := [unit for unit in left if unit >= len(grid)]:
            regions.vote(config, folder, grid, voting, shares, meter)
        finish(folder, scene)
        return record()


def map_tiles(
    folder: RunFolder,
    tiles: TileRegions,
    source: UnitSource,
    shares: Shares,
    actor: type,
    arguments: tuple[Any, ...],
    meter: ActorHandle[Any],
) -> None:
    """Take a source's tiles through a pool of actors into ``map.zarr``, each with its marker."""
    together = max(1, shares.actors // _ACTORS_A_WRITE)
    sink = ChunkSink("map.zarr", folder.map, tiles, folder.markers("map"), meter, together)
    for part in source.rounds(ROUND):
        write_units(shares.through_actors(read_units(part), len(part), actor, arguments), sink)


def finish(folder: RunFolder, scene: Scene) -> None:
    """Write what is made from the finished map: overviews, GeoTIFFs, the preview."""
    write_overviews(folder.map, scene)
    write_cogs(folder.map, scene, folder.path)
    preview(folder.map, folder.path / "map_preview.png")
    if folder.metrics.exists() and folder.features.exists():
        write_json(folder.metrics, without_map_scores(read_json(folder.metrics)) | score(folder))


def score(folder: RunFolder) -> dict[str, Any]:
    """``map_oa``: share of the test pixels at which the finished map is right; ``map_ece``: its calibration
    error there.

    ``oa`` scores each test pixel by its own block's window alone; on the map neighbouring windows blend, and
    where regions have voted, ``map_oa_pixel`` is that of the map before, ``map_confusion`` that of the
    final one.
    """
    group: Any = zarr.open_group(str(folder.features), mode="r", use_consolidated=False)
    split, label, y, x = (np.asarray(group[n][...]) for n in ("split", "label", "y_index", "x_index"))
    tested = split == TEST
    mapped: Any = zarr.open_group(str(folder.map), mode="r", use_consolidated=False)
    at, truth = (y[tested], x[tested]), label[tested]
    final = mapped["class"].vindex[at]
    reliability = Reliability()
    reliability.update(mapped["confidence"].vindex[at], final == truth)
    found: dict[str, Any] = {"map_oa": float((final == truth).mean()), "map_ece": reliability.error()}
    if "class" + PIXEL in mapped:
        codes = np.asarray([entry["code"] for entry in read_json(folder.metrics)["per_class"]])
        confusion = Confusion(len(codes))
        confusion.update(np.searchsorted(codes, truth), np.searchsorted(codes, final))
        found["map_oa_pixel"] = float((mapped["class" + PIXEL].vindex[at] == truth).mean())
        found["map_confusion"] = confusion.counts.tolist()
    return found


class MapActor:
    """A tile of the reduced cube -> a tile of the map."""

    def __init__(
        self, config: Config, folder: RunFolder, gpu: bool, meter: ActorHandle[Any] | None = None
    ) -> None:
        torch.set_num_threads(config.cluster.threads)
        self._config, self._meter = config, meter
        self._suffix = PIXEL if config.map.regions else ""
        self._ensemble = load_ensemble(config, folder, gpu)
        stored = read_json(folder.selection)
        self._codes = np.asarray(stored["codes"])
        selection = Selection.from_json(stored)
        self._extract = make_extractor(config, folder, gpu, selection, self._ensemble)
        patch = config.patch**2 * config.reduce.components
        of_pixel = 4 * (self._ensemble.mean_2TK[0].numel() + patch)
        self._pixels = config.map.pixels or max(1, (_GPU_BYTES if gpu else _CACHED_BYTES) // of_pixel)

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
        row = {
            name + self._suffix: self._whole(values)[None]
            for name, values in zip(ARRAYS, answers, strict=True)
        }
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


def create(folder: RunFolder, scene: Scene, grid: TileGrid, regional: bool = False) -> None:
    """Lay out ``map.zarr``, empty, unless it is there, also for the pixel-wise map where regions vote."""
    if folder.must_lay_out("map", folder.map):
        classes = table_of([tuple(row) for row in read_json(folder.selection)["classes"]])
        with storage.laid_out(folder.map) as place:
            _lay_out(place, scene, grid, classes, regional)


def _lay_out(place: Path, scene: Scene, grid: TileGrid, classes: ClassTable, regional: bool) -> None:
    group = zarr.open_group(place, mode="w", zarr_format=2)  # GDAL before 3.11 reads no final Zarr v3
    about: dict[str, dict[str, Any]] = {
        "class": {"long_name": "class", **to_attributes(classes)},
        "confidence": {"long_name": "probability of the class", "units": "1"},
        "entropy": {"long_name": "entropy of the classes' probabilities", "units": "nat"},
    }
    for name, suffix in itertools.product(ARRAYS, ("", PIXEL) if regional else ("",)):
        integer, said = name == "class", dict(about[name])
        if regional and not suffix:
            said["long_name"] += ", after the vote of supertokens"
        named_array(
            group, name + suffix, ("y", "x"), said, shape=(scene.height, scene.width),
            chunks=(grid.side, grid.side), dtype=classes.code_type if integer else "float32",
            fill_value=None if integer else float("nan"), compressors={"id": "gzip", "level": 5},
        )  # fmt: skip
    write_georeference(group, scene)
