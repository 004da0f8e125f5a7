"""map.zarr for others: the conventions of GeoZarr, xarray with rioxarray, and GDAL."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401  (adds .rio to xarray)
import xarray as xr
import zarr

from pipeline.artifacts import RunFolder, write_json
from pipeline.classes import ClassTable
from pipeline.map import create
from pipeline.overviews import layer, write_overviews
from pipeline.scene import Scene, open_scene, write_scene
from pipeline.units import TileGrid

TABLE = ClassTable((2, 5), ("grass", "water"), ("#00aa00", "#0000ff"))
NORTH_UP = (2.0, 0.0, 1000.0, 0.0, -2.0, 9000.0)
NO_AUTHORITY = "+proj=aeqd +lat_0=52 +lon_0=9 +datum=WGS84 +units=m"


def make_map(tmp_path: Path, height: int, width: int, **grid: Any) -> tuple[Path, Scene]:
    """A map of random classes on a scene's grid, as the map stage writes it."""
    write_scene(tmp_path / "scene", np.ones((2, height, width), np.uint8), **grid)
    scene = open_scene(str(tmp_path / "scene"))
    folder = RunFolder(tmp_path)
    folder.classifier.mkdir()
    rows = list(zip(TABLE.codes, TABLE.names, TABLE.colors, strict=True))
    write_json(folder.selection, {"classes": rows})
    create(folder, scene, TileGrid(height, width, 64))
    codes = np.random.default_rng(0).choice([0, 2, 5], (height, width)).astype(np.uint8)
    codes[:64, :64] = 0  # a chunk that is not stored
    group = zarr.open_group(folder.map, mode="r+", use_consolidated=False)
    for name in ("class", "confidence", "entropy"):
        layer(group, name)[:] = codes if name == "class" else codes.astype(np.float32) / 5
    write_overviews(folder.map, scene)
    return folder.map, scene


def attributes(path: Path) -> dict[str, Any]:
    """From the file itself, not through a library that may add to it."""
    assert json.loads((path / ".zgroup").read_text()) == {"zarr_format": 2}
    return dict(json.loads((path / ".zattrs").read_text()))


def check_conventions(found: dict[str, Any], names: set[str]) -> None:
    for convention in found["zarr_conventions"]:
        name = convention["name"]
        assert set(convention) == {"name", "uuid", "schema_url", "spec_url", "description"}
        assert f"/{name}/" in convention["schema_url"]
        assert f"/{name}/" in convention["spec_url"]
    assert {convention["name"] for convention in found["zarr_conventions"]} == names


def test_every_group_says_where_it_lies(tmp_path: Path) -> None:
    path, _ = make_map(tmp_path, 301, 530, crs="EPSG:32615", transform=NORTH_UP)
    root, coarse = attributes(path), attributes(path / "overview_2")
    check_conventions(root, {"multiscales", "spatial", "proj"})
    check_conventions(coarse, {"spatial", "proj"})
    for found in (root, coarse):
        assert found["proj:code"] == "EPSG:32615"
        assert found["spatial:dimensions"] == ["y", "x"]
    assert root["spatial:shape"] == [301, 530]
    assert root["spatial:transform"] == list(NORTH_UP)
    assert root["spatial:bbox"] == [1000.0, 9000.0 - 602, 1000.0 + 1060, 9000.0]
    assert coarse["spatial:shape"] == [151, 265]
    assert coarse["spatial:transform"] == [4.0, 0.0, 1000.0, 0.0, -4.0, 9000.0]
    # 301 rows are halved to 151 of twice the size: the last one reaches beyond the map.
    assert coarse["spatial:bbox"] == [1000.0, 9000.0 - 604, 2060.0, 9000.0]


def test_the_layout_names_levels_that_are_there(tmp_path: Path) -> None:
    path, _ = make_map(tmp_path, 40, 1100, crs="EPSG:32615", transform=NORTH_UP)
    layout = attributes(path)["multiscales"]["layout"]
    assert [level["asset"] for level in layout] == ["class", "overview_2", "overview_4"]
    assert [level.get("derived_from") for level in layout] == [None, "class", "overview_2"]
    assert [level["transform"]["scale"] for level in layout] == [[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]
    for level in layout:
        node = zarr.open(path / level["asset"], mode="r")
        array = node if isinstance(node, zarr.Array) else layer(node, "class")
        assert list(array.shape) == level["spatial:shape"]
        assert level["spatial:transform"][2] == 1000.0


def test_a_map_without_a_grid_says_only_its_shape(tmp_path: Path) -> None:
    path, _ = make_map(tmp_path, 20, 30)
    found = attributes(path)
    check_conventions(found, {"spatial", "multiscales"})
    assert found["spatial:shape"] == [20, 30]
    assert not {"proj:code", "spatial:transform", "spatial:bbox"} & set(found)


def test_rotated_grids_and_crs_without_a_code(tmp_path: Path) -> None:
    path, _ = make_map(tmp_path, 10, 20, crs=NO_AUTHORITY, transform=(3.0, 4.0, 100.0, 4.0, -3.0, 500.0))
    found = attributes(path)
    assert "proj:code" not in found
    assert "Azimuthal Equidistant" in found["proj:wkt2"]
    # Corners: (100, 500), (160, 580), (140, 470), (200, 550).
    assert found["spatial:bbox"] == [100.0, 470.0, 200.0, 580.0]


# rioxarray multiplies affine transforms in a way that affine will give up.
@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")
def test_xarray_and_rioxarray_find_every_level_in_its_place(tmp_path: Path) -> None:
    path, _ = make_map(tmp_path, 300, 530, crs="EPSG:32615", transform=NORTH_UP)
    for group, pixel in ((None, 2.0), ("overview_2", 4.0)):
        with xr.open_zarr(path, group=group, decode_coords="all") as opened:
            assert opened.rio.crs.to_epsg() == 32615
            assert opened.rio.resolution() == (pixel, -pixel)
            assert opened.rio.bounds() == (1000.0, 8400.0, 2060.0, 9000.0)
            assert set(opened.data_vars) == {"class", "confidence", "entropy"}
            assert opened["class"].dtype == np.uint8, "xarray took 0, no data, for missing"


@pytest.mark.parametrize(("inside", "pixel"), [("", 2.0), ("overview_2/", 4.0)])
def test_a_recent_gdal_opens_it_with_crs_and_coordinates(tmp_path: Path, inside: str, pixel: float) -> None:
    path, _ = make_map(tmp_path, 120, 300, crs="EPSG:32615", transform=NORTH_UP)
    reader = Path(__file__).with_name("gdal_zarr.py")
    library, proj = recent_gdal()
    command = [sys.executable, str(reader), library, f'ZARR:"{path}":/{inside}class']
    environment = os.environ | {"PROJ_DATA": proj}
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["crs"] == "32615"
    assert found["transform"] == [1000.0, pixel, 0.0, 9000.0, 0.0, -pixel]
    expected = np.asarray(layer(zarr.open_group(path, mode="r"), f"{inside}class")[:])
    assert found["shape"] == list(expected.shape)
    np.testing.assert_array_equal(found["values"], expected.ravel())


@pytest.mark.parametrize(("inside", "pixel"), [("", 2.0), ("overview_2/", 4.0)])
def test_rasterios_gdal_opens_it_with_crs_and_coordinates(tmp_path: Path, inside: str, pixel: float) -> None:
    """GDAL before 3.11 reads no final Zarr v3."""
    path, _ = make_map(tmp_path, 120, 300, crs="EPSG:32615", transform=NORTH_UP)
    for name in ("class", "confidence", "entropy"):
        with rasterio.open(f'ZARR:"{path}":/{inside}{name}') as file:
            assert file.crs.to_epsg() == 32615
            assert tuple(file.transform)[:6] == (pixel, 0.0, 1000.0, 0.0, -pixel, 9000.0)
            expected = np.asarray(layer(zarr.open_group(path, mode="r"), f"{inside}{name}")[:])
            np.testing.assert_array_equal(file.read(1), expected)


def recent_gdal() -> tuple[str, str]:
    """The GDAL library inside pyogrio's wheel, which reads Zarr v3 since 3.12, and the data of its PROJ."""
    package = importlib.util.find_spec("pyogrio")
    if package is None or package.origin is None:
        pytest.skip("pyogrio is not installed")
    found = [*Path(package.origin).parent.parent.glob("pyogrio.libs/libgdal*")]
    if not found:
        pytest.skip("this pyogrio brings no GDAL library of its own")
    version = importlib.import_module("pyogrio").__gdal_version__
    if version < (3, 12):
        pytest.skip(f"GDAL {version} is older than 3.12")
    return str(found[0]), str(Path(package.origin).parent / "proj_data")
