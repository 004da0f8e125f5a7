"""Units of work: tiles cover every pixel once, order does not matter, writers own whole chunks."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import click
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.data import DataContext
from ray.data.block import BlockAccessor

from benchmarks.sleeper import ROW_BYTES, SIDE, SleepActor, TinyReader
from pipeline import cluster
from pipeline.cluster import share_out
from pipeline.config import ClusterConfig
from pipeline.errors import run_command
from pipeline.progress import metered
from pipeline.units import (
    ChunkSink,
    TileGrid,
    TileRegions,
    UnitSource,
    in_order,
    read_units,
    write_units,
)
from tests.actors import Dying, LateSecond, NotingSink, Sleeper


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70), side=st.integers(1, 40))
def test_tiles_cover_every_pixel_once(height: int, width: int, side: int) -> None:
    grid = TileGrid(height, width, side)
    seen = np.zeros((height, width), int)
    for tile in range(len(grid)):
        y0, y1, x0, x1 = grid.bounds(tile)
        assert y1 > y0
        assert x1 > x0
        assert y0 % side == x0 % side == 0
        seen[y0:y1, x0:x1] += 1
    assert (seen == 1).all()


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(8)))
def test_in_order_restores_the_order(arrival: list[int]) -> None:
    rows = in_order({"unit": unit} for unit in arrival)
    assert [row["unit"] for row in rows] == list(range(8))


def test_in_order_notices_a_missing_unit() -> None:
    with pytest.raises(RuntimeError, match="unit 1 never arrived"):
        list(in_order({"unit": unit} for unit in (0, 2)))


@pytest.mark.parametrize("parallelism", [1, 3, 50])
def test_source_gives_every_unit_once_and_is_pure(parallelism: int) -> None:
    source = UnitSource("tiles", [4, 7, 9, 11], lambda unit: {"value": np.full((2, 2), unit)}, 32)
    assert source.estimate_inmemory_data_size() == 128
    for _ in range(2):
        tasks = source.get_read_tasks(parallelism)
        rows = [
            row
            for task in tasks
            for block in task()
            for row in BlockAccessor.for_block(block).iter_rows(public_row_format=False)
        ]
        assert [int(row["unit"]) for row in rows] == [4, 7, 9, 11]
        assert [int(np.asarray(row["value"])[0, 0]) for row in rows] == [4, 7, 9, 11]
    assert len(tasks) == min(parallelism, 4)


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (3, [[5, 3, 9], [1, 7], [2, 8]]),
        (7, [[5, 3, 9, 1, 7, 2, 8]]),
        (1, [[n] for n in (5, 3, 9, 1, 7, 2, 8)]),
    ],
)
def test_rounds_of_units(most: int, expected: list[list[int]]) -> None:
    source = UnitSource("tiles", [5, 3, 9, 1, 7, 2, 8], lambda unit: {"unit": unit}, 10)
    rounds = source.rounds(most)
    assert [part.units for part in rounds] == expected
    assert {(part.get_name(), part.row_bytes) for part in rounds} == {("tiles", 10)}


class _Meter:
    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.add = SimpleNamespace(remote=lambda *counts: self.calls.append(counts))


def _row(unit: int, values: np.ndarray) -> dict[str, Any]:
    scalars = {"unit": unit, "pixels": 6, "bytes_read": 10, "peak_rss": 99}
    return {key: np.array([value]) for key, value in scalars.items()} | {"class": values[None]}


def test_sink_crops_writes_and_marks_last(tmp_path: Path) -> None:
    grid, meter = TileGrid(5, 6, 4), _Meter()
    group = zarr.open_group(tmp_path / "map.zarr", mode="w")
    group.create_array("class", shape=(5, 6), chunks=(4, 4), dtype="uint8", fill_value=0)
    (tmp_path / "done").mkdir()

    def regions(unit: int) -> dict[str, tuple[slice, ...]]:
        y0, y1, x0, x1 = grid.bounds(unit)
        return {"class": (slice(y0, y1), slice(x0, x1))}

    sink = ChunkSink("map", tmp_path / "map.zarr", regions, tmp_path / "done", meter)
    blocks = [BlockAccessor.batch_to_block(_row(unit, np.full((4, 4), unit + 1))) for unit in (3, 1)]
    for _ in range(2):  # a repeated write leaves the same
        sink.write(blocks, None)
        expected = np.zeros((5, 6), np.uint8)
        expected[:4, 4:], expected[4:, 4:] = 2, 4
        assert np.array_equal(group["class"][...], expected)
    assert sorted(path.name for path in (tmp_path / "done").iterdir()) == ["1", "3"]
    assert meter.calls[0] == (1, 6, 10, 2 * 8, 99)


def test_a_failed_write_leaves_no_marker(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "map.zarr", mode="w")
    (tmp_path / "done").mkdir()
    regions = {"class": (slice(0, 4), slice(0, 4))}
    sink = ChunkSink("map", tmp_path / "map.zarr", lambda unit: regions, tmp_path / "done", _Meter())
    with pytest.raises(KeyError):
        sink.write([BlockAccessor.batch_to_block(_row(0, np.zeros((4, 4))))], None)
    assert not list((tmp_path / "done").iterdir())


@pytest.mark.cluster
def test_units_of_one_read_travel_in_small_blocks(ray_cluster: None) -> None:
    usual = DataContext.get_current().target_max_block_size
    source = UnitSource("tiles", range(40), TinyReader(TileGrid(SIDE, 40 * SIDE, SIDE)), ROW_BYTES)
    blocks = [
        bundle.num_rows()
        for bundle in read_units(source, tasks=2, together=3).iter_internal_ref_bundles()
    ]  # fmt: skip
    assert (max(blocks), sum(blocks), len(blocks)) == (3, 40, 14)
    assert DataContext.get_current().target_max_block_size == usual


@pytest.mark.cluster
def test_long_reads_leave_room_for_writes(ray_cluster: None, tmp_path: Path) -> None:
    """Four reads that outlast their buffers would hold all CPUs that the actors leave, on two CPUs."""
    grid, units = TileGrid(10 * SIDE, 8 * SIDE, SIDE), 80
    arrays = ("class", "confidence", "entropy")
    group = zarr.open_group(tmp_path / "map.zarr", mode="w")
    for name in arrays:
        kind = "uint8" if name == "class" else "float32"
        group.create_array(
            name, shape=(grid.height, grid.width), chunks=(SIDE, SIDE), dtype=kind, fill_value=0
        )
    (tmp_path / "done").mkdir()
    with metered("map", units, "tiles") as (meter, record):
        source = UnitSource("tiles", range(units), TinyReader(grid), ROW_BYTES)
        shares = share_out(ClusterConfig())
        rows = read_units(source, tasks=4, together=1)
        rows = shares.through_actors(rows, units, SleepActor, (0.0, meter))
        regions = TileRegions(grid, arrays)
        write_units(rows, ChunkSink("map", tmp_path / "map.zarr", regions, tmp_path / "done", meter))
        assert record()["pixels"] == grid.height * grid.width
    assert len(list((tmp_path / "done").iterdir())) == units
    whole: Any = zarr.open_group(tmp_path / "map.zarr", mode="r")["class"]
    expected = np.arange(units).reshape(10, 8).repeat(SIDE, 0).repeat(SIDE, 1)
    assert np.array_equal(whole[...], expected)


@pytest.mark.cluster
@pytest.mark.parametrize(("together", "expected"), [(1, [1] * 10), (4, [2, 4, 4])])
def test_units_written_by_one_task(
    together: int, expected: list[int], ray_cluster: None, tmp_path: Path
) -> None:
    grid, meter = TileGrid(SIDE, 10 * SIDE, SIDE), cast(Any, None)
    source = UnitSource("tiles", range(10), TinyReader(grid), ROW_BYTES)
    rows = share_out(ClusterConfig(gpu=False)).through_actors(read_units(source), 10, Sleeper, (0.0,))
    write_units(rows, NotingSink("map", tmp_path, TileRegions(grid, ()), tmp_path, meter, together))
    assert sorted(int(note.name.split("-")[0]) for note in tmp_path.iterdir()) == expected


@pytest.mark.cluster
def test_the_first_actor_leaves_tiles_to_the_second(ray_cluster: None, tmp_path: Path) -> None:
    source = UnitSource("tiles", range(2), TinyReader(TileGrid(SIDE, 2 * SIDE, SIDE)), ROW_BYTES)
    shares = replace(share_out(ClusterConfig(gpu=False)), actors=2, num_cpus=0.25)
    rows = shares.through_actors(read_units(source), 2, LateSecond, (tmp_path,)).take_all()
    assert sorted(row["unit"] for row in rows) == [0, 1]
    assert len({row["process"] for row in rows}) == 2


@pytest.mark.cluster
@pytest.mark.parametrize(("at_start", "starts"), [(False, 2), (True, 3)])
def test_what_kills_its_process_each_time_ends_the_run(
    at_start: bool, starts: int, ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(cluster, "_RETRIES", 1)
    source = UnitSource("tiles", range(2), TinyReader(TileGrid(SIDE, 2 * SIDE, SIDE)), ROW_BYTES)
    shares = share_out(ClusterConfig(gpu=False, actors=1))
    note = tmp_path / "note"

    @click.command()
    def command() -> None:
        shares.through_actors(read_units(source), 2, Dying, (at_start, note)).take_all()

    assert run_command(command, "run", []) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: a process of Ray died again and again")
    assert len(note.read_text().splitlines()) >= starts
