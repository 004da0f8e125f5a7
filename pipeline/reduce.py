"""Stage ``reduce``: statistics of the spectra, and the reduced cube that all later stages read."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import zarr
from zarr.codecs import ZstdCodec

from mtmsd.spectral import fit_projection
from pipeline import storage
from pipeline.artifacts import RunFolder, read_json, write_json
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.georeference import consolidate
from pipeline.labels import hidden_blocks
from pipeline.progress import metered
from pipeline.readers import SceneReader, reduced_grid
from pipeline.reduction import UsedBands, project, tile_moments
from pipeline.scene import Scene, write_georeference
from pipeline.units import (
    ChunkSink,
    TileGrid,
    TileRegions,
    UnitSource,
    in_order,
    read_units,
    write_units,
)

_BLOCK_BYTES = 96 << 20
"""Spectra that one block of tiles holds at most."""
_MOST_TILES = 32
_CPUS = 1
_TASKS_PER_CPU = 4


def run(config: Config, folder: RunFolder, scene: Scene) -> dict[str, Any]:
    """Write ``spectral.json`` and ``reduced.zarr``; returns what was measured.

    A ``spectral.json`` that is there already (an interrupted run, or a model made elsewhere) is used.

    Raises:
        UserError: The scene holds no valid pixel, or too few bands for the components.
    """
    grid = reduced_grid(scene)
    passes = 1 if folder.spectral.exists() else 2
    with metered("reduce", passes * len(grid), "tiles") as (meter, record):
        if passes == 2:
            seen = SceneReader(scene, grid, hidden_blocks(config, scene))
            write_json(folder.spectral, _statistics(config, seen, meter))
        spectral = read_json(folder.spectral)
        _create(folder, scene, grid, len(spectral["scale"]))
        todo = folder.todo("reduce", range(len(grid)))
        meter.skip.remote(len(grid) - len(todo))
        if todo:
            dataset = _tiles("reduce: scene", SceneReader(scene, grid), todo, together=1).map_batches(
                partial(project, spectral=spectral), batch_size=1, num_cpus=_CPUS
            )
            places = TileRegions(grid, ("reduced",), layers=True)
            sink = ChunkSink("reduced.zarr", folder.reduced, places, folder.markers("reduce"), meter)
            write_units(dataset, sink, num_cpus=_CPUS)
        return record()


def _tiles(name: str, reader: SceneReader, units: list[int], together: int = _MOST_TILES) -> ray.data.Dataset:
    """Tiles of the scene, up to ``together`` in a block: few where they are written, to be marked soon.

    A tile takes milliseconds, so several share Ray's work for a task. Only this grouping depends on the
    cluster; tiles are summed and written one by one. A task takes a whole CPU: it computes, and every
    process more spends seconds on its imports first.
    """
    source = UnitSource(name, units, reader, reader.scene.bands * reader.grid.side**2 * 4)
    most = min(_MOST_TILES, max(1, _BLOCK_BYTES // source.row_bytes))
    busy = int(_TASKS_PER_CPU * ray.cluster_resources().get("CPU", 1))
    tasks = max(-(-len(units) // most), min(len(units), busy))
    return read_units(source, tasks, min(together, most), _CPUS)


def _statistics(config: Config, reader: SceneReader, meter: Any) -> dict[str, Any]:
    """One pass over the scene: which bands hold data, and the moments of the pixels that do."""
    scene, sums = reader.scene, UsedBands(reader.scene.bands)
    parts = _tiles("reduce: statistics", reader, list(range(len(reader.grid)))).map_batches(
        tile_moments, batch_size=1, num_cpus=_CPUS
    )
    for row in in_order(parts.iter_rows()):
        sums.add(row)
        meter.add.remote(1, 0, int(row["bytes_read"]), 0, int(row["peak_rss"]))
    total, moments = sums.valid_B, sums.moments
    used = np.flatnonzero(total > 0)
    if not len(used):
        raise UserError(
            f"scene {scene.url}: expected pixels with data, found no data anywhere; check its _FillValue and "
            "scale_factor, or --fill when it was made"
        )
    if moments.count == 0:
        raise UserError(
            f"scene {scene.url}: expected pixels with data in every band that holds any, found none"
        )
    try:
        projection = fit_projection(moments, config.reduce)
    except ValueError as error:
        raise UserError(f"scene {scene.url}: {error}") from None
    return projection.as_json() | {
        "bands_used": used.tolist(), "bands_dropped": np.flatnonzero(total == 0).tolist(),
        "bands": scene.bands, "wavelength_nm": scene.wavelength_nm, "valid_pixels": moments.count,
    }  # fmt: skip


def _create(folder: RunFolder, scene: Scene, grid: TileGrid, components: int) -> None:
    if folder.must_lay_out("reduce", folder.reduced):
        with storage.laid_out(folder.reduced) as place:
            _lay_out(place, scene, grid, components)


def _lay_out(place: Path, scene: Scene, grid: TileGrid, components: int) -> None:
    group = zarr.open_group(place, mode="w")
    group.create_array(
        "reduced", shape=(components, scene.height, scene.width), chunks=(components, grid.side, grid.side),
        dtype="float32", fill_value=float("nan"), dimension_names=("component", "y", "x"),
        compressors=ZstdCodec(level=1), attributes={"long_name": "principal component score", "units": "1"},
    )  # fmt: skip
    write_georeference(group, scene)
    consolidate(group)
