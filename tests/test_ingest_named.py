"""Ingest: NetCDF, HDF5 and Zarr as sensors' producers and other people write them."""

from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr
import zarr
from pyproj import CRS

from pipeline.scene import open_scene
from tests.ingest_files import run

ROWS, COLUMNS = 5, 4
BANDS = np.array([381.0, 402.5, 1377.0], np.float32)


def swath() -> np.ndarray[Any, Any]:
    """Return (row, column, band) float32 numbers that differ everywhere."""
    return np.arange(1, ROWS * COLUMNS * 3 + 1, dtype=np.float32).reshape(ROWS, COLUMNS, 3)


def write_emit(path: Path, **changes: Any) -> None:
    """Write a file laid out like EMIT L2A: sensor geometry, groups, and a lookup table for the map."""
    # A map of 3 x 6 pixels that shows the swath's rows turned round, and nothing in its corners.
    rows = np.array([[0, 5, 5, 5, 5, 0], [3, 3, 3, 3, 3, 3], [0, 1, 1, 1, 1, 0]])
    columns = np.array([[0, 1, 2, 3, 4, 0], [-1, 1, 2, 3, 4, -4], [0, 1, 2, 3, 4, 0]])
    with netCDF4.Dataset(path, "w") as file:
        file.geotransform = changes.get("geotransform", np.array([-118.5, 0.25, 0, 35.75, 0, -0.25]))
        file.spatial_ref = CRS.from_epsg(4326).to_wkt("WKT1_GDAL")
        for name, size in (
            ("downtrack", ROWS),
            ("crosstrack", COLUMNS),
            ("bands", 3),
            ("ortho_y", 3),
            ("ortho_x", 6),
        ):
            file.createDimension(name, size)
        cube = file.createVariable(
            "reflectance", "f4", ("downtrack", "crosstrack", "bands"), fill_value=-9999
        )
        cube[:] = swath()
        place, bands = file.createGroup("location"), file.createGroup("sensor_band_parameters")
        for name, values in (("glt_x", columns), ("glt_y", changes.get("rows", rows))):
            place.createVariable(name, "i4", ("ortho_y", "ortho_x"), fill_value=0)[:] = values
        place.createVariable("elev", "f8", ("downtrack", "crosstrack"))[:] = 0
        waves = bands.createVariable("wavelengths", "f4", ("bands",), fill_value=-9999)
        waves.units = "nm"
        waves[:] = BANDS
        bands.createVariable("fwhm", "f4", ("bands",))[:] = 8
        bands.createVariable("good_wavelengths", "u1", ("bands",))[:] = [1, 1, 0]


@pytest.mark.parametrize("kind", ["netcdf", "zarr"])
def test_every_value_of_no_data_is_one(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """_FillValue where nothing was written, missing_value where the sensor saw nothing."""
    values, expected = swath().transpose(2, 0, 1).copy(), swath().transpose(2, 0, 1).copy()
    values[:, 1, 2], values[:, 3, 0] = -9999, -8888
    expected[:, 1, 2] = expected[:, 3, 0] = np.nan
    labels = np.array([[1, 2, 9, 8]] * ROWS, np.int32)
    if kind == "netcdf":
        with netCDF4.Dataset(tmp_path / "two.nc", "w") as file:
            for name, size in (("band", 3), ("y", ROWS), ("x", COLUMNS)):
                file.createDimension(name, size)
            cube = file.createVariable("reflectance", "f4", ("band", "y", "x"), fill_value=-9999)
            seen = file.createVariable("labels", "i4", ("y", "x"), fill_value=9)
            cube.missing_value, seen.missing_value = np.float32(-8888), np.array([8], np.int32)
            for stored, content in ((cube, values), (seen, labels)):
                stored.set_auto_mask(False)
                stored[:] = content
    else:
        group = zarr.open_group(tmp_path / "two.zarr", mode="w", zarr_format=2)
        for name, data, fill, other in (("reflectance", values, -9999, -8888), ("labels", labels, 9, 8)):
            array = group.create_array(name, shape=data.shape, dtype=data.dtype, fill_value=fill)
            array[...] = data
            array.attrs.update(missing_value=other, _ARRAY_DIMENSIONS=["band", "y", "x"][-data.ndim :])
    source = tmp_path / ("two.nc" if kind == "netcdf" else "two.zarr")
    assert run(source, tmp_path / "s", "--labels", source) == 0
    assert "left behind" not in capsys.readouterr().out
    scene = open_scene(str(tmp_path / "s"))
    np.testing.assert_array_equal(scene.read(0, ROWS, 0, COLUMNS), expected)
    y, _, codes = scene.labelled_pixels()
    assert (len(y), set(codes.tolist())) == (2 * ROWS, {1, 2})
    assert run(source, tmp_path / "bare") == 0
    assert f"its labels are left behind; --labels {source} takes them along" in capsys.readouterr().out


def test_emit_is_placed_by_its_lookup_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_emit(tmp_path / "emit.nc")
    assert run(tmp_path / "emit.nc", tmp_path / "s", "--chunk", 2) == 0
    said = capsys.readouterr().out
    assert "emit.nc: sensor geometry was placed on Earth with glt_x and glt_y" in said
    assert "left out: bands 2, 1 of 3 (the source's list of bad bands)" in said
    scene = open_scene(str(tmp_path / "s"))
    assert (scene.bands, scene.height, scene.width) == (2, 3, 6)
    assert scene.wavelength_nm == (381.0, 402.5)
    assert scene.transform == (0.25, 0, -118.5, 0, -0.25, 35.75)
    assert scene.crs_wkt == CRS.from_epsg(4326).to_wkt()
    nan, first = np.nan, swath()[..., 0]
    expected = [[nan, *first[4], nan], [first[2, 0], *first[2], first[2, 3]], [nan, *first[0], nan]]
    np.testing.assert_array_equal(scene.read(0, 3, 0, 6)[0], np.array(expected, np.float32))


def test_bad_bands_are_kept_on_request(tmp_path: Path) -> None:
    write_emit(tmp_path / "emit.nc")
    assert run(tmp_path / "emit.nc", tmp_path / "s", "--keep-bad-bands") == 0
    assert open_scene(str(tmp_path / "s")).wavelength_nm == (381.0, 402.5, 1377.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": np.full((3, 6), 9)}, "expected places inside of (5, 4) (rows, columns), found (9, 4)"),
        ({"geotransform": np.ones(5)}, "expected the attribute geotransform of six numbers"),
    ],
)
def test_a_wrong_lookup_table_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    write_emit(tmp_path / "emit.nc", **changes)
    assert run(tmp_path / "emit.nc", tmp_path / "s") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_pace_on_a_map_grid(tmp_path: Path) -> None:
    """Laid out like PACE OCI L3M: packed integers over (lat, lon, wavelength), no grid mapping."""
    packed = np.arange(24, dtype=np.int16).reshape(2, 4, 3)
    with netCDF4.Dataset(tmp_path / "pace.nc", "w") as file:
        for name, values in (
            ("lat", [40.75, 40.25]),
            ("lon", [5.25, 5.75, 6.25, 6.75]),
            ("wavelength", BANDS),
        ):
            file.createDimension(name, len(values))
            file.createVariable(name, "f4", (name,))[:] = values
        rrs = file.createVariable("Rrs", "i2", ("lat", "lon", "wavelength"), fill_value=-32767)
        rrs.set_auto_maskandscale(False)
        rrs.scale_factor, rrs.add_offset = 2e-6, 0.05
        rrs[:] = packed
        file.createVariable("palette", "u1", ("lat", "wavelength"))[:] = 0
    assert run(tmp_path / "pace.nc", tmp_path / "s") == 0
    scene = open_scene(str(tmp_path / "s"))
    assert scene.dtype == np.int16
    assert scene.transform == (0.5, 0, 5.0, 0, -0.5, 41.0)
    assert scene.crs_wkt == CRS.from_epsg(4326).to_wkt()
    np.testing.assert_allclose(scene.read(0, 2, 0, 4), packed.transpose(2, 0, 1) * 2e-6 + 0.05, rtol=1e-6)


def test_pace_in_sensor_geometry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Laid out like PACE OCI L2 SFREFL: groups, latitude and longitude of every pixel."""
    with netCDF4.Dataset(tmp_path / "pace.nc", "w") as file:
        for name, size in (("number_of_lines", ROWS), ("pixels_per_line", COLUMNS), ("wavelength_3d", 3)):
            file.createDimension(name, size)
        lines = ("number_of_lines", "pixels_per_line")
        data, place = file.createGroup("geophysical_data"), file.createGroup("navigation_data")
        data.createVariable("rhos", "f4", (*lines, "wavelength_3d"), fill_value=-32767)[:] = swath()
        for name in ("latitude", "longitude"):
            place.createVariable(name, "f4", lines)[:] = 1
        file.createGroup("sensor_band_parameters").createVariable("wavelength_3d", "f4", ("wavelength_3d",))[
            :
        ] = BANDS
    assert run(tmp_path / "pace.nc", tmp_path / "s") == 0
    assert "kept in sensor geometry, no CRS" in capsys.readouterr().out
    scene = open_scene(str(tmp_path / "s"))
    np.testing.assert_array_equal(scene.read(0, ROWS, 0, COLUMNS), swath().transpose(2, 0, 1))
    assert scene.wavelength_nm == tuple(BANDS)
    assert scene.crs_wkt is None


def test_hdf5_axes_are_told_by_the_wavelengths_or_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["cube"] = swath()
    assert run(tmp_path / "c.h5", tmp_path / "s") == 2
    assert "cannot tell its axes apart: shape (5, 4, 3), dimension names none" in capsys.readouterr().err
    with h5py.File(tmp_path / "c.h5", "a") as file:
        file["wavelength"] = BANDS / 1000
    assert run(tmp_path / "c.h5", tmp_path / "s") == 0
    scene = open_scene(str(tmp_path / "s"))
    assert (scene.bands, scene.height, scene.width) == (3, ROWS, COLUMNS)
    assert scene.wavelength_nm == pytest.approx(BANDS, abs=1e-3)


def test_reflectance_goes_before_its_uncertainty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = {
        name: (("y", "x", "band"), swath() + i) for i, name in enumerate(("reflectance", "reflectance_std"))
    }
    xr.Dataset(arrays).to_netcdf(tmp_path / "c.nc", engine="h5netcdf")
    assert run(tmp_path / "c.nc", tmp_path / "s") == 0
    assert open_scene(str(tmp_path / "s")).read(0, 1, 0, 1)[0].item() == 1
    xr.Dataset({"a": arrays["reflectance"], "b": arrays["reflectance_std"]}).to_netcdf(
        tmp_path / "d.nc", engine="h5netcdf"
    )
    assert run(tmp_path / "d.nc", tmp_path / "t") == 2
    assert "found a (5, 4, 3), b (5, 4, 3); choose one with --variable" in capsys.readouterr().err
    assert run(tmp_path / "d.nc", tmp_path / "t", "--variable", "b") == 0
    assert open_scene(str(tmp_path / "t")).read(0, 1, 0, 1)[0].item() == 2


@pytest.mark.parametrize("version", [2, 3])
def test_a_bare_zarr_array(tmp_path: Path, version: int) -> None:
    zarr.create_array(tmp_path / "c.zarr", data=swath(), chunks=(2, 2, 1), zarr_format=version)
    assert run(tmp_path / "c.zarr", tmp_path / "s", "--axes", "yxb") == 0
    np.testing.assert_array_equal(
        open_scene(str(tmp_path / "s")).read(0, ROWS, 0, COLUMNS), swath().transpose(2, 0, 1)
    )


def test_geozarr_attributes_place_a_zarr(tmp_path: Path) -> None:
    attributes = {"proj:code": "EPSG:32633", "spatial:transform": [10.0, 0, 500000, 0, -10.0, 5000000]}
    group = zarr.create_group(tmp_path / "c.zarr", attributes=attributes)
    group.create_array("data", data=swath(), dimension_names=("y", "x", "band"))
    assert run(tmp_path / "c.zarr", tmp_path / "s") == 0
    scene = open_scene(str(tmp_path / "s"))
    assert scene.transform == (10, 0, 500000, 0, -10, 5000000)
    assert CRS.from_wkt(scene.crs_wkt).to_epsg() == 32633


def test_our_own_scene_is_a_source(tmp_path: Path) -> None:
    attributes = {"flag_values": [1, 4], "flag_meanings": "roof water"}
    group = zarr.create_group(tmp_path / "c.zarr")
    group.create_array("reflectance", data=swath().transpose(2, 0, 1), dimension_names=("band", "y", "x"))
    codes = np.array([[4] * COLUMNS] * ROWS, np.uint8)
    group.create_array("labels", data=codes, dimension_names=("y", "x"), attributes=attributes)
    assert run(tmp_path / "c.zarr", tmp_path / "s", "--labels", tmp_path / "c.zarr") == 0
    scene = open_scene(str(tmp_path / "s"))
    assert scene.classes.names == ("roof", "water")
    np.testing.assert_array_equal(scene.read_labels(0, ROWS, 0, COLUMNS), codes)


@pytest.mark.parametrize("wanted", ["fine", "coarse"])
def test_of_several_groups_the_variable_s_own_place_counts(tmp_path: Path, wanted: str) -> None:
    root = zarr.create_group(tmp_path / "c.zarr", zarr_format=3)
    sizes = {"coarse": (4, 5, 20.0), "fine": (8, 10, 10.0)}
    for name, (height, width, side) in sizes.items():
        group = root.create_group(name)
        cube = np.random.default_rng(0).random((3, height, width), np.float32)
        group.create_array("img", data=cube, dimension_names=("band", "y", "x"))
        centres = {"y": 9000 - side * (np.arange(height) + 0.5), "x": 500 + side * (np.arange(width) + 0.5)}
        for axis, values in centres.items():
            group.create_array(axis, data=values, dimension_names=(axis,))
    height, width, side = sizes[wanted]
    assert run(tmp_path / "c.zarr", tmp_path / "s", "--variable", f"{wanted}/img", "--crs", "EPSG:26915") == 0
    scene = open_scene(str(tmp_path / "s"))
    assert (scene.height, scene.width) == (height, width)
    assert scene.transform == (side, 0, 500, 0, -side, 9000)


def test_a_coordinate_of_another_length_is_not_the_image_s(tmp_path: Path) -> None:
    root = zarr.create_group(tmp_path / "c.zarr", zarr_format=3)
    cube = np.random.default_rng(0).random((3, 8, 10), np.float32)
    root.create_array("img", data=cube, dimension_names=("band", "y", "x"))
    for axis in "yx":
        root.create_group("coarse", overwrite=False) if "coarse" not in root else None
        root["coarse"].create_array(axis, data=20.0 * np.arange(1, 5), dimension_names=(axis,))  # type: ignore[union-attr]
    assert run(tmp_path / "c.zarr", tmp_path / "s") == 0
    assert open_scene(str(tmp_path / "s")).transform is None


def test_fill_joins_the_files_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the lookup table leaves empty has the file's value, and does not become data."""
    write_emit(tmp_path / "e.nc")
    assert run(tmp_path / "e.nc", tmp_path / "plain") == 0
    assert run(tmp_path / "e.nc", tmp_path / "s", "--fill", "7", "--keep-bad-bands") == 0
    assert "no data: --fill 7, as the source's own -9999" in capsys.readouterr().out
    plain, scene = (open_scene(str(tmp_path / name)) for name in ("plain", "s"))
    outside = np.isnan(plain.read(0, 3, 0, 6)).all(axis=0)
    found = scene.read(0, 3, 0, 6)
    assert np.isnan(found[:, outside]).all()
    assert np.nanmin(found) >= 1
    assert not (found == 7).any()
    assert np.isnan(found[:, ~outside]).sum() == 1, "the one 7 of the swath"


def test_a_full_name_comes_before_a_short_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group = zarr.create_group(tmp_path / "m.zarr")
    for name, size in (("reflectance", 8), ("overview_2/reflectance", 4), ("fine/img", 6), ("coarse/img", 3)):
        group.create_array(
            name, data=np.ones((5, size, size + 1), np.uint16), dimension_names=("band", "y", "x")
        )
    assert run(tmp_path / "m.zarr", tmp_path / "s", "--variable", "reflectance") == 0
    assert open_scene(str(tmp_path / "s")).height == 8
    assert run(tmp_path / "m.zarr", tmp_path / "t", "--variable", "img") == 2
    assert "found coarse/img and fine/img; name the group too" in capsys.readouterr().err
    assert run(tmp_path / "m.zarr", tmp_path / "t", "--variable", "fine/img") == 0
    assert open_scene(str(tmp_path / "t")).height == 6


@pytest.mark.parametrize("unsigned", ["true", None])
def test_what_netcdf_3_keeps_as_signed_is_unsigned(unsigned: str | None, tmp_path: Path) -> None:
    values = np.linspace(60, 59940, 60).round().astype(np.uint16).reshape(3, 5, 4)
    values[:, 0, 0] = 65535
    with netCDF4.Dataset(tmp_path / "u.nc", "w", format="NETCDF3_CLASSIC") as file:
        for name, size in (("band", 3), ("y", 5), ("x", 4)):
            file.createDimension(name, size)
        image = file.createVariable("reflectance", "i2", ("band", "y", "x"), fill_value=-1)
        image.set_auto_maskandscale(False)
        if unsigned:
            image.setncattr("_Unsigned", unsigned)
        image[:] = values.view(np.int16)
    assert run(tmp_path / "u.nc", tmp_path / "s") == 0
    found = open_scene(str(tmp_path / "s")).read(0, 5, 0, 4)
    expected = (values if unsigned else values.view(np.int16)).astype(np.float32)
    expected[:, 0, 0] = np.nan
    np.testing.assert_array_equal(found, expected)
