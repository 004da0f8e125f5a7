"""Overviews, cloud-optimised GeoTIFFs and the preview of a map."""

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import rasterio.env
import rasterio.shutil
import rioxarray  # noqa: F401  (adds .rio to xarray)
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rio_cogeo.cogeo import cog_validate

from pipeline.classes import ClassTable, to_attributes
from pipeline.export import class_image, class_table, preview, write_cogs, write_overviews
from pipeline.georeference import consolidate
from pipeline.overviews import layer, majority, mean, overview_steps, thumbnail
from pipeline.scene import Scene, open_scene, write_georeference, write_scene

TABLE = ClassTable((2, 5, 9), ("dry grass", "roof & wall", "water"), ("#aabb00", "#cc0000", "#0000ff"))
WIDE = ClassTable((3, 700), ("low", "high"), ("#102030", "#405060"))


def make_scene(path: Path, height: int, width: int, crs: str | None = "EPSG:32615") -> Scene:
    write_scene(
        path,
        np.ones((2, height, width), np.uint8),
        crs=crs,
        transform=(2.0, 0.0, 1000.0, 0.0, -2.0, 9000.0) if crs else None,
    )
    return open_scene(str(path))


def make_map(path: Path, scene: Scene, table: ClassTable = TABLE, tile: int = 96) -> zarr.Group:
    """A map of vertical stripes, with a no-data corner of 10 x 10 pixels."""
    shape = (scene.height, scene.width)
    stripe = np.arange(scene.width) // 7 % len(table.codes)
    codes = np.broadcast_to(np.array(table.codes)[stripe], shape).copy()
    certain = np.linspace(0.2, 1.0, scene.height * scene.width, dtype=np.float32).reshape(shape)
    codes[:10, :10], certain[:10, :10] = 0, np.nan
    group = zarr.create_group(path)
    layers: Any = (
        ("class", codes.astype(np.min_scalar_type(max(table.codes))), to_attributes(table)),
        ("confidence", certain, {}),
        ("entropy", 2 * certain, {"units": "nat"}),
    )
    for name, values, attributes in layers:
        group.create_array(
            name,
            data=values,
            chunks=(min(tile, shape[0]), min(tile, shape[1])),
            dimension_names=("y", "x"),
            attributes=attributes,
            fill_value=0 if name == "class" else np.nan,
        )
    write_georeference(group, scene)
    consolidate(group)
    return group


@pytest.mark.parametrize(
    ("height", "width", "steps"),
    [
        (1, 1, ()),
        (1, 2, (2,)),
        (64, 48, (2,)),
        (511, 300, (2,)),
        (512, 300, (2,)),
        (300, 1023, (2, 4)),
        (601, 2384, (2, 4, 8)),
        (2048, 1, (2, 4, 8)),
    ],
)
def test_levels_end_below_512_pixels_and_there_is_one(
    height: int, width: int, steps: tuple[int, ...]
) -> None:
    assert overview_steps(height, width) == steps


def test_majority_by_hand() -> None:
    codes = np.array([[3, 3, 7, 4, 0, 0, 0, 9], [3, 1, 4, 7, 0, 0, 0, 0]], np.uint8)
    np.testing.assert_array_equal(majority(codes), [[3, 4, 0, 9]])


@given(hnp.arrays(np.uint16, (2, 6), elements=st.sampled_from([0, 1, 2, 65535])))
def test_majority_counts_like_a_plain_loop(codes: np.ndarray[Any, Any]) -> None:
    expected = []
    for x in range(0, 6, 2):
        square = [int(v) for v in codes[:, x : x + 2].ravel() if v]
        expected.append(min(square, key=lambda v: (-square.count(v), v)) if square else 0)
    np.testing.assert_array_equal(majority(codes), [expected])


def test_mean_leaves_no_data_out() -> None:
    nan = math.nan
    values = np.array([[1, 2, nan, 4, nan, nan], [3, 6, nan, nan, nan, nan]], np.float32)
    found = mean(values)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[3, 4, nan]])


# rioxarray multiplies affine transforms in a way that affine will give up.
@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")
def test_overviews_halve_the_map_and_keep_its_place(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "scene", 301, 1101)
    group = make_map(tmp_path / "map", scene)
    write_overviews(tmp_path / "map", scene)
    full = {name: np.asarray(layer(group, name)[:]) for name in ("class", "confidence", "entropy")}
    for name, reduce, empty in (("class", majority, 0), ("entropy", mean, np.nan)):
        padded = np.pad(full[name], ((0, 1), (0, 1)), constant_values=empty)
        coarse = zarr.open_group(tmp_path / "map/overview_2", mode="r")
        assert layer(coarse, name).chunks == (96, 96)
        np.testing.assert_array_equal(layer(coarse, name)[:], reduce(padded))
    with xr.open_zarr(tmp_path / "map", decode_coords="all") as opened:
        assert set(opened.data_vars) == {"class", "confidence", "entropy"}
        assert opened["class"].dtype == np.uint8
    with xr.open_zarr(tmp_path / "map", group="overview_4", decode_coords="all") as opened:
        assert opened.sizes == {"y": 76, "x": 276}
        assert opened.rio.crs.to_epsg() == 32615
        assert tuple(opened.rio.transform())[:6] == (8, 0, 1000, 0, -8, 9000)
        assert opened["class"].attrs["flag_values"] == [2, 5, 9]
        assert float(opened["x"][0]) == 1004.0
        assert np.isnan(opened["confidence"].values[0, 0])
    with xr.open_zarr(tmp_path / "map/overview_2", decode_coords="all") as opened:
        assert opened.sizes == {"y": 151, "x": 551}


def test_overviews_can_be_made_again(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "scene", 270, 40)
    group = make_map(tmp_path / "map", scene)
    write_overviews(tmp_path / "map", scene)
    layer(group, "class")[:] = 9
    write_overviews(tmp_path / "map", scene)
    again = zarr.open_group(tmp_path / "map", mode="r")
    assert sorted(name for name, _ in again.groups()) == ["overview_2"]
    assert (np.asarray(layer(again, "overview_2/class")) == 9).all()


def test_a_map_of_one_pixel_needs_no_overview(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "scene", 1, 1, crs=None)
    make_map(tmp_path / "map", scene)
    write_overviews(tmp_path / "map", scene)
    group = zarr.open_group(tmp_path / "map", mode="r")
    assert list(group.groups()) == []


def test_gdal_keeps_little_of_a_map_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, copy, caches = make_scene(tmp_path / "scene", 64, 64), rasterio.shutil.copy, list[int]()

    def note(*arguments: Any, **options: Any) -> None:
        caches.append(rasterio.env.get_gdal_config("GDAL_CACHEMAX"))
        copy(*arguments, **options)

    monkeypatch.setattr("pipeline.export.rasterio.shutil.copy", note)
    make_map(tmp_path / "map", scene)
    before = rasterio.env.get_gdal_config("GDAL_CACHEMAX")
    write_cogs(tmp_path / "map", scene, tmp_path)
    assert caches == [32 << 20] * 2
    assert rasterio.env.get_gdal_config("GDAL_CACHEMAX") == before, "others keep theirs"


def test_geotiffs_are_valid_and_complete(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "scene", 601, 1203)
    group = make_map(tmp_path / "map", scene)
    paths = write_cogs(tmp_path / "map", scene, tmp_path)
    assert paths == (tmp_path / "map.tif", tmp_path / "confidence.tif")
    for path in paths:
        valid, errors, warnings = cog_validate(path, quiet=True)
        assert (valid, errors, warnings) == (True, [], [])
    with rasterio.open(paths[0]) as found:
        assert found.crs.to_epsg() == 32615
        assert tuple(found.transform)[:6] == scene.transform
        assert (found.dtypes, found.nodata) == (("uint8",), 0)
        assert found.overviews(1)
        np.testing.assert_array_equal(found.read(1), layer(group, "class")[:])
        assert found.colormap(1)[5] == (204, 0, 0, 255)
        assert json.loads(found.tags(1)["class_names"]) == {
            "2": "dry grass", "5": "roof & wall", "9": "water"
        }  # fmt: skip
        coarse = found.read(1, out_shape=(301, 602))
        assert set(np.unique(coarse)) <= {0, 2, 5, 9}
    with rasterio.open(paths[1]) as found:
        assert found.dtypes == ("float32",)
        assert math.isnan(found.nodata)
        np.testing.assert_array_equal(found.read(1), layer(group, "confidence")[:])
        assert np.nanmax(found.read(1, out_shape=(301, 602))) <= 1.0
    root = ElementTree.parse(tmp_path / "map.tif.aux.xml").getroot()
    names = [category.text or "" for category in root.iter("Category")]
    assert names == ["", "", "dry grass", "", "", "roof & wall", "", "", "", "water"]
    kept = {"scene", "map", "map.tif", "map.tif.aux.xml", "confidence.tif"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_large_codes_keep_their_values_and_names(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "scene", 30, 50)
    group = make_map(tmp_path / "map", scene, WIDE)
    path, _ = write_cogs(tmp_path / "map", scene, tmp_path)
    with rasterio.open(path) as found:
        assert found.dtypes == ("uint16",)
        np.testing.assert_array_equal(found.read(1), layer(group, "class")[:])
        assert json.loads(found.tags(1)["class_names"]) == {"3": "low", "700": "high"}
        colors = found.colormap(1)
        assert [colors[code] for code in (0, 3, 700)] == [
            (0, 0, 0, 0), *((*bytes.fromhex(color[1:]), 255) for color in WIDE.colors)
        ]  # fmt: skip


def test_without_a_crs_the_geotiff_has_none(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "scene", 30, 50, crs=None)
    make_map(tmp_path / "map", scene)
    path, _ = write_cogs(tmp_path / "map", scene, tmp_path)
    with pytest.warns(NotGeoreferencedWarning), rasterio.open(path) as found:
        assert found.crs is None


def test_an_interrupted_export_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(tmp_path / "scene", 30, 50)
    make_map(tmp_path / "map", scene)
    path, _ = write_cogs(tmp_path / "map", scene, tmp_path)
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.export.rasterio.shutil.copy", fail)
    with pytest.raises(KeyboardInterrupt):
        write_cogs(tmp_path / "map", scene, tmp_path)
    assert path.read_bytes() == before
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_class_colours_and_no_data() -> None:
    image = class_image(np.array([[0, 5, 9], [2, 4, 255]], np.uint8), TABLE)
    assert image.shape == (2, 3, 4)
    assert image[0].tolist() == [[0, 0, 0, 0], [204, 0, 0, 255], [0, 0, 255, 255]]
    assert image[1].tolist() == [[170, 187, 0, 255], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_a_map_must_name_its_classes(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "map")
    group.create_array("class", shape=(2, 2), dtype="u1")
    with pytest.raises(ValueError, match="flag_values"):
        class_table(group)


def test_thumbnails_come_from_the_overview_that_is_large_enough(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "scene", 100, 1030)
    group = make_map(tmp_path / "map", scene)
    plain, step = thumbnail(group, "class", 400)
    assert (plain.shape, step) == ((34, 344), 3)
    np.testing.assert_array_equal(plain, layer(group, "class")[::3, ::3])
    write_overviews(tmp_path / "map", scene)
    coarse, step = thumbnail(group, "confidence", 400)
    assert (coarse.shape, step) == ((25, 258), 4)
    np.testing.assert_array_equal(coarse, layer(group, "overview_2/confidence")[::2, ::2])


@pytest.mark.parametrize(("height", "width"), [(80, 300), (300, 80), (8, 8)])
def test_preview_shows_map_and_legend(tmp_path: Path, height: int, width: int) -> None:
    scene = make_scene(tmp_path / "scene", height, width)
    make_map(tmp_path / "map", scene)
    preview(tmp_path / "map", tmp_path / "map_preview.png", max_side=300)
    with Image.open(tmp_path / "map_preview.png") as picture:
        assert 250 <= max(picture.size) <= 650
        colors = set(map(tuple, np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()))
    assert {(170, 187, 0), (204, 0, 0), (0, 0, 255)} <= colors
    assert not list(tmp_path.glob("*partial*"))
