"""Readers against plain slicing of the whole padded cube."""

from pathlib import Path

import numpy as np
import pytest
import ray.cloudpickle as cloudpickle
import zarr

from mtmsd.split import HiddenBlocks
from mtmsd.steps import PretrainConfig, draw_patches, turned
from mtmsd.windows import PatchConfig, windows_of_tile
from pipeline import readers
from pipeline.readers import PatchReader, Reduced, TileReader, WindowReader
from pipeline.units import TileGrid, UnitSource

HEIGHT, WIDTH = 21, 26


@pytest.fixture
def cube() -> np.ndarray:
    values = np.random.default_rng(0).standard_normal((3, HEIGHT, WIDTH)).astype(np.float32)
    values[:, 5:7, 8] = np.nan
    return values


@pytest.fixture
def reduced(cube: np.ndarray, tmp_path: Path) -> Reduced:
    group = zarr.open_group(tmp_path / "reduced.zarr", mode="w")
    array = group.create_array("reduced", shape=cube.shape, chunks=(3, 8, 8), dtype="f4")
    array[...] = cube
    return Reduced(str(tmp_path / "reduced.zarr"))


def test_reads_across_chunks(cube: np.ndarray, reduced: Reduced) -> None:
    for y0, y1, x0, x1 in [(0, HEIGHT, 0, WIDTH), (7, 9, 7, 9), (16, 21, 24, 26), (3, 4, 3, 4)]:
        np.testing.assert_array_equal(reduced.read(y0, y1, x0, x1), cube[:, y0:y1, x0:x1])


@pytest.mark.parametrize(("kept", "decoded"), [(2, 2), (1, 4), (0, 4)])
def test_as_many_chunks_stay_decoded_as_the_bytes_hold(
    kept: int, decoded: int, reduced: Reduced, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    plain = readers.read_region
    monkeypatch.setattr(readers, "KEPT_BYTES", kept * 3 * 8 * 8 * 4)
    monkeypatch.setattr(readers, "read_region", lambda *args: reads.append(args) or plain(*args))
    for _ in range(2):
        reduced.read(0, 8, 4, 12)
    assert len(reads) == decoded


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_tile_and_group_see_the_same_windows(
    padding: str, stride: int, cube: np.ndarray, reduced: Reduced
) -> None:
    patches = PatchConfig(size=8, stride=stride, padding=padding)
    grid = TileGrid(HEIGHT, WIDTH, 8)
    before, after = patches.before, patches.after + 8
    mode = {"mode": "reflect"} if padding == "reflect" else {"mode": "constant", "constant_values": np.nan}
    whole = np.pad(cube, ((0, 0), (before, after), (before, after)), **mode)
    tiles = TileReader(reduced, grid, patches)
    y, x = (a.ravel() for a in np.mgrid[:HEIGHT, :WIDTH])
    order = np.lexsort((x, y, x // stride, y // stride))
    place = np.argsort(order)
    reader = WindowReader.plan(reduced, patches, y[order], x[order])
    groups = [reader(unit) for unit in range(len(reader))]
    for tile in range(len(grid)):
        y0, y1, x0, x1 = grid.bounds(tile)
        row = tiles(tile)
        side = 8 + patches.size - stride
        np.testing.assert_array_equal(row["cube"], whole[:, y0 : y0 + side, x0 : x0 + side])
        assert row["pixels"] == (y1 - y0) * (x1 - x0)
        windows = windows_of_tile(row["cube"], patches)
        for py, px in [(y0, x0), (y1 - 1, x1 - 1)]:
            pixel = int(place[py * WIDTH + px])
            unit = int(np.searchsorted(reader.starts, pixel, side="right")) - 1
            group, pixel = groups[unit], pixel - int(reader.starts[unit])
            of_tile = windows[(py - y0) // stride, (px - x0) // stride]
            np.testing.assert_array_equal(group["windows"][group["window"][pixel]], of_tile)
            at = divmod(int(group["offset"][pixel]), stride)
            value = of_tile[:, before + at[0], before + at[1]]
            np.testing.assert_array_equal(value, cube[:, py, px])


def test_hidden_blocks_are_no_data_also_where_the_scene_is_reflected(
    cube: np.ndarray, reduced: Reduced
) -> None:
    hidden = HiddenBlocks(5, frozenset({(0, 0), (1, 2), (4, 5)}))
    blind, plain = Reduced(reduced.path, hidden), cube.copy()
    plain[:, :5, :5] = plain[:, 5:10, 10:15] = plain[:, 20:, 25:] = np.nan
    np.testing.assert_array_equal(blind.read(0, HEIGHT, 0, WIDTH), plain)
    patches, pretrain = PatchConfig(size=8), PretrainConfig(batch=40)
    whole = np.pad(plain, ((0, 0), (8, 8), (8, 8)), mode="reflect")
    row = PatchReader(blind, patches, pretrain, 3, slice(0, 40))(0)["patches"]
    draw = draw_patches(3, 0, pretrain, HEIGHT, WIDTH, 4)
    for patch, y, x, turn in zip(row, draw.y, draw.x, draw.turn, strict=True):
        expected = whole[:, y + 8 : y + 16, x + 8 : x + 16]
        np.testing.assert_array_equal(patch, turned(expected, int(turn)))
    assert not np.isnan(reduced.read(0, 5, 0, 5)).any(), "decoded chunks are shared and must stay whole"


def test_units_hold_whole_chunks_and_few_windows(reduced: Reduced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.readers.GROUP", 4)
    monkeypatch.setattr("pipeline.readers._UNIT_PIXELS", 0)  # at most 8 windows once a unit has a chunk
    patches = PatchConfig(size=8, stride=4)
    y, x = np.repeat(np.arange(0, 44, 4), 2), np.tile([0, 3], 11)  # 11 windows, two pixels each
    reader = WindowReader.plan(reduced, patches, y, x)
    assert reader.starts.tolist() == [0, 16, 22]
    assert reader.most == (16, 8)
    row = reader(1)
    assert (row["pixels"], row["count"]) == (6, 3)
    assert row["windows"].shape == (8, 3, 8, 8)
    assert row["window"].tolist() == [0, 0, 1, 1, 2, 2] + [-1] * 10
    assert row["offset"].tolist() == [0, 3] * 3 + [-1] * 10
    assert reader.row_bytes >= row["windows"].nbytes


def test_a_task_carries_its_own_pixels_alone(reduced: Reduced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.readers._UNIT_PIXELS", 0)
    patches, rng = PatchConfig(size=8, stride=1), np.random.default_rng(0)
    y, x = (rng.integers(0, limit, 60_000) for limit in (HEIGHT, WIDTH))
    order = np.lexsort((x, y))
    reader = WindowReader.plan(reduced, patches, y[order], x[order])
    done = {3, 4, 17, len(reader) - 1}
    todo = [unit for unit in range(len(reader)) if unit not in done]
    tasks = UnitSource("pixels", todo, reader, reader.row_bytes).get_read_tasks(30)
    sizes = [len(cloudpickle.dumps(task)) for task in tasks]
    assert len(sizes) == 30
    assert sum(sizes) < 1.3 * len(cloudpickle.dumps(reader))
    few = todo[7:21]
    for unit in few:
        mine, whole = reader.part(few)(unit), reader(unit)
        assert mine.keys() == whole.keys()
        for name in whole:
            np.testing.assert_array_equal(mine[name], whole[name])


def test_shares_of_a_step_make_up_the_step(cube: np.ndarray, reduced: Reduced) -> None:
    patches, training = PatchConfig(size=8), PretrainConfig(batch=6)
    whole = PatchReader(reduced, patches, training, 5, slice(0, 6))(3)["patches"]
    parts = [PatchReader(reduced, patches, training, 5, slice(i, i + 2))(3)["patches"] for i in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    draw = draw_patches(5, 3, training, HEIGHT, WIDTH, 4)
    padded = np.pad(cube, ((0, 0), (8, 8), (8, 8)), mode="reflect")
    y, x = draw.y[0] + 8, draw.x[0] + 8
    np.testing.assert_array_equal(whole[0], turned(padded[:, y : y + 8, x : x + 8], int(draw.turn[0])))


def test_a_cube_that_was_made_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "reduced.zarr"
    for number, components in enumerate((3, 5)):
        group = zarr.open_group(path, mode="w")
        cube = np.full((components, 8, 8), number, np.float32)
        group.create_array("reduced", data=cube, chunks=(components, 8, 8))
        np.testing.assert_array_equal(Reduced(str(path)).read(0, 8, 0, 8), cube)
