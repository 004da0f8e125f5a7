"""Ingest: flight lines on one grid."""

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from pyproj import CRS
from rasterio.warp import Resampling, calculate_default_transform, reproject
from rasterio.windows import Window

from pipeline.ingest_warp import Grid, Layer
from pipeline.scene import open_scene
from tests.ingest_files import run

pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

GRID = Affine(2, 0, 272000, 0, -2, 3290000)
FILL = 65535
HEIGHT, WIDTH = 60, 80


def ground(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray[Any, Any]:
    """Return (band, y, x) uint16 of a smooth ground."""
    y, x = np.mgrid[:height, :width]
    return np.stack([1000 + 10 * y + 3 * x, 3000 - 7 * y + 5 * x]).astype(np.uint16)


def write(
    path: Path, data: np.ndarray[Any, Any], grid: Affine, crs: str = "EPSG:26915", **changes: Any
) -> Path:
    profile = {"count": len(data), "dtype": data.dtype, "height": data.shape[1], "width": data.shape[2]}
    profile |= {"transform": grid, "crs": crs, "nodata": FILL, **changes}
    with rasterio.open(path, "w", driver="GTiff", **profile) as file:
        file.write(data)
        for band in range(1, len(data) + 1):
            file.set_band_description(band, f"{400 + 100 * band} nm")
    return path


def cut(path: Path, rows: slice, columns: slice, factor: float = 1.0) -> Path:
    """Write a window of the ground, brighter by a factor."""
    part = np.round(ground()[:, rows, columns] * factor).astype(np.uint16)
    return write(path, part, GRID * Affine.translation(columns.start, rows.start))


@pytest.mark.parametrize("chunk", [16, 50, 128])
def test_pieces_become_the_whole_again(tmp_path: Path, chunk: int) -> None:
    # The first piece is not the upper left one: the grid grows to all sides.
    pieces = [
        cut(tmp_path / "a.tif", slice(20, 60), slice(30, 80)),
        cut(tmp_path / "b.tif", slice(0, 30), slice(0, 80)),
        cut(tmp_path / "c.tif", slice(25, 60), slice(0, 40)),
    ]
    assert run(*pieces, tmp_path / "s", "--chunk", chunk) == 0
    scene = open_scene(str(tmp_path / "s"))
    assert scene.transform == tuple(GRID)[:6]
    np.testing.assert_array_equal(scene.read(0, HEIGHT, 0, WIDTH), ground())
    assert scene.wavelength_nm == (500, 600)
    attributes = xr.open_zarr(tmp_path / "s").attrs
    assert attributes["source"] == "a.tif, b.tif, c.tif"
    assert attributes["mosaic_resampling"] == [None, None, None]


def test_overlap_rules_by_hand(tmp_path: Path) -> None:
    one, other = np.full((2, 1, 4), 10, np.uint16), np.full((2, 1, 4), 21, np.uint16)
    one[0, 0, 3] = FILL  # one band missing: the pixel still is the first line's
    one[:, 0, 2] = FILL  # all missing: the second line shows
    a = write(tmp_path / "a.tif", one, GRID)
    b = write(tmp_path / "b.tif", other, GRID * Affine.translation(1, 0))
    n = np.nan
    expected = {
        "first": [[10, 10, 21, n, 21], [10, 10, 21, 10, 21]],
        "last": [[10, 21, 21, 21, 21], [10, 21, 21, 21, 21]],
        "mean": [[10, 16, 21, 21, 21], [10, 16, 21, 16, 21]],  # 15.5 goes to the even number
    }
    for rule, rows in expected.items():
        assert run(a, b, tmp_path / rule, "--overlap", rule) == 0
        found = open_scene(str(tmp_path / rule)).read(0, 1, 0, 5)
        np.testing.assert_array_equal(found[:, 0], rows, err_msg=rule)


def test_a_gap_stays_without_data(tmp_path: Path) -> None:
    a, b = (
        cut(tmp_path / "a.tif", slice(0, 10), slice(0, 10)),
        cut(tmp_path / "b.tif", slice(0, 10), slice(40, 50)),
    )
    assert run(a, b, tmp_path / "s", "--chunk", 16) == 0
    found = open_scene(str(tmp_path / "s")).read(0, 10, 0, 50)
    assert np.isnan(found[:, :, 10:40]).all()
    np.testing.assert_array_equal(found[:, :, 40:], ground()[:, :10, 40:50])


def test_a_line_in_another_crs_is_reprojected_as_gdal_does(tmp_path: Path) -> None:
    whole = ground()
    a = cut(tmp_path / "a.tif", slice(0, 60), slice(0, 30))
    bounds = rasterio.transform.array_bounds(HEIGHT, WIDTH, GRID)
    place, width, height = calculate_default_transform("EPSG:26915", "EPSG:32614", WIDTH, HEIGHT, *bounds)
    far = np.full((2, height, width), FILL, np.uint16)
    reproject(
        whole, far, src_transform=GRID, src_crs="EPSG:26915", dst_transform=place, dst_crs="EPSG:32614",
        src_nodata=FILL, dst_nodata=FILL, resampling=Resampling.bilinear,
    )  # fmt: skip
    b = write(tmp_path / "b.tif", far, place, "EPSG:32614")
    assert run(a, b, tmp_path / "s", "--chunk", 16) == 0
    scene = open_scene(str(tmp_path / "s"))
    found = scene.read(0, scene.height, 0, scene.width)
    # The whole at once, by GDAL's warper, onto the grid that ingest chose.
    expected = np.full(found.shape, FILL, np.uint16)
    reproject(
        far, expected, src_transform=place, src_crs="EPSG:32614", dst_transform=Affine(*scene.transform),
        dst_crs="EPSG:26915", src_nodata=FILL, dst_nodata=FILL, resampling=Resampling.nearest, tolerance=0,
    )  # fmt: skip
    shift = ~Affine(*scene.transform) * (GRID.c, GRID.f)
    column, row = (round(v) for v in shift)
    expected[:, row : row + 60, column : column + 30] = whole[:, :, :30]
    assert CRS.from_wkt(scene.crs_wkt).to_epsg() == 26915
    np.testing.assert_array_equal(np.where(np.isnan(found), FILL, found), expected)
    inside = found[:, row + 2 : row + 58, column + 2 : column + 78]
    # One band changes by at most 10 per pixel: nearest neighbours are half a pixel off.
    assert np.abs(inside - whole[:, 2:58, 2:78]).max() < 25


def test_bilinear_comes_closer_than_nearest(tmp_path: Path) -> None:
    whole = ground()
    a = cut(tmp_path / "a.tif", slice(0, 60), slice(0, 2))
    b = write(tmp_path / "b.tif", whole, GRID * Affine.translation(0.5, 0.5))
    worst = {}
    for way in ("nearest", "bilinear"):
        assert run(a, b, tmp_path / way, "--resampling", way, "--chunk", 32) == 0
        found = open_scene(str(tmp_path / way)).read(2, 58, 4, 78)
        y, x = np.mgrid[2:58, 4:78]
        truth = np.stack([1000 + 10 * (y - 0.5) + 3 * (x - 0.5), 3000 - 7 * (y - 0.5) + 5 * (x - 0.5)])
        worst[way] = np.abs(found - truth).max()
    assert worst["bilinear"] <= 0.5 < worst["nearest"]


def test_a_rotated_line(tmp_path: Path) -> None:
    """A line flown at 30 degrees, seen through a north-up grid."""
    turned = Affine.translation(272080, 3289900) * Affine.rotation(30) * Affine.scale(2, -2)
    y, x = np.mgrid[:50, :40] + 0.5
    east, north = turned * (x, y)
    line = np.stack([2 * (east - 272000), 2 * (3290000 - north)]).astype(np.float32)
    a = write(tmp_path / "a.tif", line, turned, nodata=-9999)
    b = write(tmp_path / "b.tif", line, turned, nodata=-9999)
    assert run(a, b, tmp_path / "s", "--chunk", 16) == 0
    scene = open_scene(str(tmp_path / "s"))
    found = scene.read(0, scene.height, 0, scene.width)
    rows, columns = np.nonzero(np.isfinite(found[0]))
    assert abs(len(rows) - 50 * 40) < 30
    east, north = Affine(*scene.transform) * (columns + 0.5, rows + 0.5)
    # The nearest neighbour lies within half a diagonal, 1.41 m, in each direction.
    assert np.abs(found[0, rows, columns] / 2 - (east - 272000)).max() < 1.42
    assert np.abs(found[1, rows, columns] / 2 - (3290000 - north)).max() < 1.42


def test_balance_finds_the_gains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        cut(tmp_path / "a.tif", slice(0, 60), slice(0, 30)),
        cut(tmp_path / "b.tif", slice(0, 60), slice(20, 55), 1.25),
        cut(tmp_path / "c.tif", slice(0, 60), slice(45, 80), 0.8),
    ]
    assert run(*lines, tmp_path / "s", "--balance", "--chunk", 16) == 0
    gains = xr.open_zarr(tmp_path / "s").attrs["mosaic_gains"]
    np.testing.assert_allclose(gains, [[1, 1], [0.8, 0.8], [1.25, 1.25]], rtol=1e-3)
    found = open_scene(str(tmp_path / "s")).read(0, HEIGHT, 0, WIDTH)
    assert np.abs(found / ground() - 1).max() < 2e-3
    assert "times 0.800 to 0.800" in capsys.readouterr().out


def test_a_line_alone_is_not_balanced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (
        cut(tmp_path / "a.tif", slice(0, 60), slice(0, 30)),
        cut(tmp_path / "b.tif", slice(0, 60), slice(40, 80), 2),
    )
    assert run(a, b, tmp_path / "s", "--balance") == 0
    assert "not balanced: flight line 2 shares no pixels with the others" in capsys.readouterr().out
    found = open_scene(str(tmp_path / "s")).read(0, HEIGHT, 40, WIDTH)
    np.testing.assert_array_equal(found, 2 * ground()[:, :, 40:])


def test_balanced_numbers_never_become_fill(tmp_path: Path) -> None:
    one = np.full((2, 20, 20), 60000, np.uint16)
    a = write(tmp_path / "a.tif", one, GRID)
    bright = np.concatenate([one // 2, one], axis=2)
    b = write(tmp_path / "b.tif", bright, GRID)
    assert run(a, b, tmp_path / "s", "--balance") == 0
    found = open_scene(str(tmp_path / "s")).read(0, 20, 0, 40)
    assert (found[:, :, 20:] == 65534).all()  # 120000 does not fit, 65535 means no data


def test_labels_lie_on_the_mosaic(tmp_path: Path) -> None:
    import geopandas
    from shapely.geometry import box

    a, b = (
        cut(tmp_path / "a.tif", slice(30, 60), slice(0, 80)),
        cut(tmp_path / "b.tif", slice(0, 40), slice(0, 80)),
    )
    field = box(272000 + 20, 3290000 - 90, 272000 + 40, 3290000 - 50)  # rows 25 to 44, columns 10 to 19
    geopandas.GeoDataFrame({"class": [5]}, geometry=[field], crs=26915).to_file(tmp_path / "l.gpkg")
    assert run(a, b, tmp_path / "s", "--labels", tmp_path / "l.gpkg") == 0
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[25:45, 10:20] = 5
    np.testing.assert_array_equal(open_scene(str(tmp_path / "s")).read_labels(0, HEIGHT, 0, WIDTH), expected)


def test_lines_that_do_not_fit_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = cut(tmp_path / "a.tif", slice(0, 60), slice(0, 30))
    refused = {
        "found 1": write(tmp_path / "b.tif", ground()[:1], GRID),
        "expected type uint16": write(tmp_path / "c.tif", ground().astype(np.int32), GRID, nodata=-1),
        "found none in this source; name it with --fill": write(
            tmp_path / "d.tif", ground(), GRID, nodata=None
        ),
        "expected an image with a place on Earth, found no CRS": write(
            tmp_path / "e.tif", ground(), GRID, crs=None
        ),
    }
    with rasterio.open(write(tmp_path / "f.tif", ground(), GRID), "r+") as file:
        file.set_band_description(1, "503 nm")
    refused["the same wavelengths, found some 3 nm apart"] = tmp_path / "f.tif"
    for said, other in refused.items():
        assert run(a, other, tmp_path / "s") == 2
        stderr = capsys.readouterr().err
        assert said in stderr
        assert str(other) in stderr
    b = cut(tmp_path / "g.tif", slice(0, 60), slice(0, 30))
    assert run(a, b, tmp_path / "s", "--pixel-size", "2", "--origin", "0,0") == 2
    assert "one place cannot fit several flight lines" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_read_window_matches_rasterio(tmp_path: Path) -> None:
    """The helper above cuts what rasterio cuts: windows by hand prove nothing if they are wrong."""
    whole = write(tmp_path / "w.tif", ground(), GRID)
    part = cut(tmp_path / "p.tif", slice(5, 9), slice(7, 20))
    with rasterio.open(whole) as one, rasterio.open(part) as other:
        window = Window(7, 5, 13, 4)
        np.testing.assert_array_equal(one.read(window=window), other.read())
        assert one.window_transform(window) == other.transform


@pytest.mark.parametrize(("dtype", "fill"), [("int16", -9999), ("uint16", FILL), ("uint8", 0)])
@pytest.mark.parametrize("resampling", ["nearest", "bilinear"])
def test_no_data_of_one_band_is_mixed_into_none(dtype: str, fill: int, resampling: str) -> None:
    data = np.full((4, 30, 40), 100, dtype)
    data[1], data[2, :, 20], data[3, 10:20] = fill, fill, fill
    own = Grid(CRS.from_epsg(26915).to_wkt(), tuple(GRID)[:6], 30, 40)  # type: ignore[arg-type]
    moved = tuple(GRID * Affine.translation(0.4, 0.3))[:6]
    target = Grid(own.crs_wkt, moved, 30, 40)  # type: ignore[arg-type]
    block = Layer(da.from_array(data), own, target, fill, resampling).read(0, 30, 0, 40)
    assert block is not None
    assert set(np.unique(block)) == {100, fill}
    assert (block[1] == fill).all()
    assert (block[0, :29, :39] == 100).all()
    assert (block[3, 12:18] == fill).all()


def test_numbers_that_are_another_lines_fill_stay_data(tmp_path: Path) -> None:
    data = np.full((2, 4, 4), 7, np.int16)
    data[1, 0, 0], data[1, 0, 1] = 0, -9999
    first = write(tmp_path / "a.tif", np.full((2, 4, 4), 5, np.int16), GRID, nodata=0)
    second = write(tmp_path / "b.tif", data, GRID * Affine.translation(4, 0), nodata=-9999)
    assert run(first, second, tmp_path / "s") == 0
    values = open_scene(str(tmp_path / "s")).read(0, 4, 4, 8)
    assert values[1, 0, 0] == -1, "beside the fill 0 of the first line"
    assert np.isnan(values[1, 0, 1])
    assert (values[0] == 7).all()


def test_labels_without_a_place_lie_as_the_mosaic_does(tmp_path: Path) -> None:
    """Also where its first line ran northwards, and was turned round."""
    south = xr.Dataset(
        {"reflectance": (("band", "y", "x"), np.ones((2, 3, 4), np.float32))},
        coords={"y": [100.0, 102.0, 104.0], "x": [10.0, 12.0, 14.0, 16.0]},
    ).rio.write_crs("EPSG:26915")
    south.to_netcdf(tmp_path / "a.nc")
    north = south.assign_coords(y=south.y + 6.0)
    north.to_netcdf(tmp_path / "b.nc")
    labels = np.arange(24, dtype=np.uint8).reshape(6, 4)
    np.save(tmp_path / "labels.npy", labels)
    found = run(tmp_path / "a.nc", tmp_path / "b.nc", tmp_path / "s", "--labels", tmp_path / "labels.npy")
    assert found == 0
    np.testing.assert_array_equal(open_scene(str(tmp_path / "s")).read_labels(0, 6, 0, 4), labels)
