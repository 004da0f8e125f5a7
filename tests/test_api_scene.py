"""A dataset as a scene: what is written, and what is refused."""

import shutil
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import rasterio
import rioxarray
import xarray as xr
import zarr
from affine import Affine

from pipeline.api_scene import put_scene
from pipeline.classes import table_of
from pipeline.errors import UserError
from pipeline.georeference import consolidate
from pipeline.scene import open_scene, write_scene
from tests.api_data import GRID, HEIGHT, TRANSFORM, WIDTH, codes, cube, dataset


def put(source: Any, labels: Any, path: Path) -> Any:
    return open_scene(str(put_scene(source, labels, path)))


def test_a_dataset_becomes_a_scene_bit_for_bit(tmp_path: Path) -> None:
    labels = xr.DataArray(codes(), dims=("y", "x"), coords=GRID)
    labels.attrs = {
        "flag_values": np.array([1, 2]),
        "flag_meanings": "roof lawn",
        "flag_colors": "#ff0000 #00ff00",
    }
    microns = ("band", [0.4, 0.5, 0.6, 0.7, 0.8], {"units": "um"})
    given = dataset(wavelength=microns).transpose("y", "x", "band").assign(labels=labels.transpose("x", "y"))
    scene = put(given, None, tmp_path / "scene.zarr")
    np.testing.assert_array_equal(scene.read(0, HEIGHT, 0, WIDTH), cube())
    np.testing.assert_array_equal(scene.read_labels(0, HEIGHT, 0, WIDTH), codes())
    assert scene.wavelength_nm == pytest.approx((400, 500, 600, 700, 800))
    assert scene.transform == pytest.approx(TRANSFORM)
    assert "UTM zone 15N" in scene.crs_wkt
    assert (scene.classes.names, scene.classes.colors) == (("roof", "lawn"), ("#ff0000", "#00ff00"))


def test_wavelength_may_be_the_dimension_and_arrays_may_be_dask(tmp_path: Path) -> None:
    lazy = da.from_array(cube(), chunks=(5, 4, 17))
    given = xr.Dataset(
        {"reflectance": (("wavelength", "y", "x"), lazy)}, coords={"wavelength": np.arange(5) + 400}
    )
    scene = put(given, codes(), tmp_path / "scene.zarr")
    np.testing.assert_array_equal(scene.read(0, HEIGHT, 0, WIDTH), cube())
    np.testing.assert_array_equal(scene.read_labels(0, HEIGHT, 0, WIDTH), codes())
    assert scene.wavelength_nm == (400, 401, 402, 403, 404)
    assert (scene.transform, scene.crs_wkt) == (None, None)


def test_a_geotiff_opened_with_rioxarray_keeps_its_packing(tmp_path: Path) -> None:
    counts = np.round(cube() * 1e4).astype(np.uint16)
    counts[:, 0, 0] = 65535
    profile = {"count": 5, "height": HEIGHT, "width": WIDTH, "dtype": "uint16", "nodata": 65535}
    with rasterio.open(
        tmp_path / "c.tif", "w", driver="GTiff", crs="EPSG:26915", transform=Affine(*TRANSFORM), **profile
    ) as file:
        file.write(counts)
        file.scales = (1e-4,) * 5
    array = rioxarray.open_rasterio(tmp_path / "c.tif")
    scene = put(array.to_dataset(name="reflectance"), None, tmp_path / "scene.zarr")
    assert scene.dtype == np.uint16
    values = scene.read(0, HEIGHT, 0, WIDTH)
    assert np.isnan(values[:, 0, 0]).all()
    np.testing.assert_allclose(values[:, 1:], counts[:, 1:] * 1e-4, rtol=1e-6)
    assert scene.transform == pytest.approx(TRANSFORM)


def test_a_window_keeps_its_place(tmp_path: Path) -> None:
    stale = dataset().rio.write_transform(Affine(*TRANSFORM)).isel(y=slice(3, 9), x=slice(5, None))
    scene = put(stale, None, tmp_path / "scene.zarr")
    assert scene.transform == pytest.approx((2, 0, 272010, 0, -2, 3289994))


@pytest.mark.parametrize("x", [np.arange(WIDTH) ** 2.0, np.arange(WIDTH)])
def test_irregular_and_plain_coordinates_give_no_transform(x: np.ndarray, tmp_path: Path) -> None:
    scene = put(dataset().assign_coords(x=x), None, tmp_path / "scene.zarr")
    assert scene.transform is None


def test_coordinates_that_only_count_pixels_leave_the_transform(tmp_path: Path) -> None:
    given = dataset().rio.write_transform(Affine(*TRANSFORM))
    given = given.assign_coords(y=np.arange(given.sizes["y"]), x=np.arange(WIDTH))
    assert put(given, None, tmp_path / "scene.zarr").transform == pytest.approx(TRANSFORM)


def test_a_rotated_grid_keeps_its_transform(tmp_path: Path) -> None:
    turned = Affine(1.5, 0.5, 272000, 0.5, -1.5, 3290000)
    given = dataset().drop_vars(["y", "x"]).rio.write_transform(turned)
    assert put(given, None, tmp_path / "scene.zarr").transform == pytest.approx(tuple(turned)[:6])


def test_a_scene_on_disk_gets_other_labels(tmp_path: Path) -> None:
    counts = np.round(cube() * 1e4).astype(np.uint16)
    about = {"wavelength_nm": [400, 500, 600, 700, 800], "crs": "EPSG:26915", "transform": TRANSFORM}
    write_scene(tmp_path / "own.zarr", counts, scale_factor=1e-4, fill_value=65535, labels=codes(), **about)
    other = np.where(codes() == 1, 9, 0).astype(np.uint8)
    scene = put(str(tmp_path / "own.zarr"), other, tmp_path / "run" / "scene.zarr")
    own = open_scene(str(tmp_path / "own.zarr"))
    np.testing.assert_array_equal(scene.read(0, HEIGHT, 0, WIDTH), own.read(0, HEIGHT, 0, WIDTH))
    np.testing.assert_array_equal(scene.read_labels(0, HEIGHT, 0, WIDTH), other)
    assert (scene.dtype, scene.wavelength_nm, scene.transform) == (
        own.dtype,
        own.wavelength_nm,
        own.transform,
    )
    assert own.classes.codes == (1, 2)


def test_the_same_again_is_left_alone_and_another_is_refused(tmp_path: Path) -> None:
    path = put_scene(dataset(), codes(), tmp_path / "run" / "scene.zarr")

    def state() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in path.parent.rglob("*") if p.is_file()}

    before = state()
    assert put_scene(dataset(), codes(), path) == path
    for source, labels in ((dataset() + 0.1, codes()), (dataset(), codes() * 2), (dataset(), None)):
        with pytest.raises(UserError, match="another scene or other labels; choose another folder"):
            put_scene(source.rio.write_crs("EPSG:26915"), labels, path)
    assert state() == before


SHIFTED = {"y": GRID["y"], "x": ("x", GRID["x"][1] + 1)}


@pytest.mark.parametrize(
    ("source", "labels", "words"),
    [
        (dataset().rename(reflectance="radiance"), None, ["reflectance", "found radiance"]),
        (dataset().rename(band="channel"), None, ["band, y, x", "found channel, y, x"]),
        (dataset(wavelength=("y", np.arange(12))), None, ["wavelength", "dimensions y"]),
        (dataset(wavelength=("band", np.arange(5), {"units": "GHz"})), None, ["wavelength", "GHz"]),
        (dataset(), xr.DataArray(codes(), dims=("y", "x"), coords=SHIFTED), ["labels", "reproject_match"]),
        (dataset(), codes()[:5], ["labels", "grid"]),
        (dataset(), codes()[0], ["labels", "dimensions y, x"]),
        (dataset(), codes() + 0.5, ["labels", "whole numbers from 0", "0.5"]),
        (dataset(), -codes().astype(int), ["labels", "whole numbers from 0", "found -"]),
    ],
)
def test_what_is_no_scene_is_refused(source: Any, labels: Any, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        put_scene(source, labels, tmp_path / "scene.zarr")
    for word in words:
        assert word in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("decoded", [False, True])
def test_no_data_of_a_label_raster_is_no_class(tmp_path: Path, decoded: bool) -> None:
    profile = {"count": 1, "dtype": "uint8", "height": HEIGHT, "width": WIDTH, "nodata": 255}
    with rasterio.open(
        tmp_path / "l.tif", "w", driver="GTiff", crs="EPSG:26915", transform=Affine(*TRANSFORM), **profile
    ) as file:
        file.write(np.where(codes() == 0, 255, codes()).astype(np.uint8), 1)
    labels = rioxarray.open_rasterio(tmp_path / "l.tif", masked=decoded)
    scene = put(dataset(), labels, tmp_path / "scene.zarr")
    assert scene.classes is not None
    assert scene.classes.codes == (1, 2)
    np.testing.assert_array_equal(scene.read_labels(0, HEIGHT, 0, WIDTH), codes())


def test_several_values_of_no_data_become_one(tmp_path: Path) -> None:
    counts = np.round(cube() * 1e4).astype(np.int16)
    counts[:, 0, 0], counts[:, 1, 1] = -9999, -1
    write_scene(tmp_path / "own.zarr", counts, labels=codes())
    group: Any = zarr.open_group(tmp_path / "own.zarr", mode="r+", use_consolidated=False)
    group["reflectance"].attrs.update(missing_value=[-9999, -1], scale_factor=[1e-4])
    consolidate(group)
    scene = put(str(tmp_path / "own.zarr"), codes(), tmp_path / "run" / "scene.zarr")
    own = open_scene(str(tmp_path / "own.zarr")).read(0, HEIGHT, 0, WIDTH)
    assert np.isnan(own[:, [0, 1], [0, 1]]).all()
    np.testing.assert_array_equal(scene.read(0, HEIGHT, 0, WIDTH), own)


@pytest.mark.parametrize("stated", [False, True])
def test_coordinates_that_were_rounded_keep_their_place(tmp_path: Path, stated: bool) -> None:
    grid = (3.7, 0.0, 272000.0, 0.0, -3.7, 3290000.0)
    given = dataset().rio.write_transform(Affine(*grid)) if stated else dataset()
    axes = {"y": 3290000 - 3.7 * (np.arange(HEIGHT) + 0.5), "x": 272000 + 3.7 * (np.arange(WIDTH) + 0.5)}
    given = given.assign_coords({name: values.astype(np.float32) for name, values in axes.items()})
    found = put(given, None, tmp_path / "scene.zarr").transform
    assert found == (grid if stated else pytest.approx(grid, abs=0.2))


def test_class_names_survive(tmp_path: Path) -> None:
    table = table_of([(1, "flat roof", "#102030"), (2, "lawn", "#405060")])
    write_scene(tmp_path / "own.zarr", cube(), labels=codes(), classes=table)
    opened = xr.open_zarr(tmp_path / "own.zarr", decode_coords="all")
    assert put(opened, None, tmp_path / "run" / "scene.zarr").classes == table


def test_a_change_that_no_sample_sees_is_another_scene(tmp_path: Path) -> None:
    rows, columns = np.arange(2304) * -2.0, np.arange(2304) * 2.0
    given = xr.Dataset(
        {"reflectance": (("band", "y", "x"), np.zeros((1, 2304, 2304), np.uint8))},
        coords={"y": rows, "x": columns},
    )  # 81 chunks
    scene = put(given, None, tmp_path / "scene.zarr")
    put(given, None, tmp_path / "scene.zarr")
    for chunk in range(81):
        changed = given.copy(deep=True)
        y, x = 256 * (chunk // 9), 256 * (chunk % 9)
        changed["reflectance"][0, y, x] = 1
        write_scene(tmp_path / "other.zarr", changed["reflectance"].values, transform=scene.transform)
        unseen = open_scene(str(tmp_path / "other.zarr")).fingerprint() == scene.fingerprint()
        shutil.rmtree(tmp_path / "other.zarr")
        if unseen:
            break
    assert unseen, "of 81 chunks 64 are sampled"
    with pytest.raises(UserError, match="another scene or other labels"):
        put(changed, None, tmp_path / "scene.zarr")


@pytest.mark.parametrize("turned", [False, True])
def test_a_dataset_as_xarray_opens_it_keeps_its_place(turned: bool, tmp_path: Path) -> None:
    """Without ``decode_coords="all"`` the grid mapping is a variable among the data."""
    transform = (2.0, 0.5, 100.0, 0.5, -2.0, 900.0) if turned else (2.0, 0.0, 5e5, 0.0, -2.0, 4e6)
    write_scene(tmp_path / "s.zarr", cube(), crs="EPSG:32615", transform=transform)
    opened = xr.open_zarr(tmp_path / "s.zarr", consolidated=False, mask_and_scale=False)
    assert "spatial_ref" in opened.data_vars
    scene = put(opened, None, tmp_path / "scene.zarr")
    assert scene.crs_wkt is not None
    assert rasterio.crs.CRS.from_wkt(scene.crs_wkt).to_epsg() == 32615
    assert scene.transform == pytest.approx(transform)
