"""Tiles are written and marked while others are computed, on a single CPU too."""

from pathlib import Path

import pytest
import ray
import zarr

from benchmarks.sleeper import ROW_BYTES, SIDE, TinyReader
from pipeline.cluster import ray_session, share_out
from pipeline.config import ClusterConfig
from pipeline.progress import metered
from pipeline.units import ChunkSink, TileGrid, UnitSource, no_regions, read_units, write_units
from tests.actors import Counter

TILES = 60


@pytest.mark.cluster
def test_tiles_are_marked_while_others_are_read(tmp_path: Path) -> None:
    """Else all that is finished is lost with the machine; half of the tiles are not yet read then.

    So it goes where Ray reserves a share of the CPUs for each operator (also with three CPUs), or where a
    read or a write takes a quarter of one (also with two).
    """
    notes, markers = tmp_path / "notes", tmp_path / "done"
    notes.mkdir()
    markers.mkdir()
    zarr.open_group(tmp_path / "map.zarr", mode="w")
    source = UnitSource("tiles", range(TILES), TinyReader(TileGrid(SIDE, TILES * SIDE, SIDE)), ROW_BYTES)
    try:
        ray.init(address="local", num_cpus=1, log_to_driver=False)
        with ray_session(), metered("map", TILES, "tiles") as (meter, _):
            shares = share_out(ClusterConfig(gpu=False))
            rows = shares.through_actors(
                read_units(source), TILES, Counter, (markers, notes, 0.1 * shares.actors)
            )
            sink = ChunkSink("map", tmp_path / "map.zarr", no_regions, markers, meter)
            write_units(rows, sink)
    finally:
        ray.shutdown()
    begun = sorted(note.name for note in notes.iterdir())
    assert len(begun) == TILES
    marked = [int(note.split("-")[1]) for note in begun]
    assert marked[TILES // 2] >= TILES // 6, marked
