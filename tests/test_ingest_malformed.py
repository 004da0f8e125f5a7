"""Ingest: thirty and more malformed files, each ends with exit code 2 and one line that helps."""

import json
from collections.abc import Callable
from pathlib import Path

import geopandas
import h5py
import netCDF4
import numpy as np
import pytest
import rasterio
import scipy.io
import zarr
from pyproj import CRS
from shapely.geometry import Polygon, box

from tests.ingest_files import GRID, HEIGHT, WIDTH, cube, label_shapes, run, write_source

pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

ENVI = "ENVI\nsamples = {s}\nlines = 20\nbands = 6\ndata type = {t}\ninterleave = bil\nbyte order = 0\n"


def truncated(path: Path, kind: str, name: str) -> None:
    """Write a source and cut its file in half."""
    write_source(path, kind, "int16")
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[: len(data) // 2])


def envi(path: Path, samples: object = WIDTH, data_type: object = 12, size: int | None = None) -> None:
    (path / "c.hdr").write_text(ENVI.format(s=samples, t=data_type))
    data = cube().tobytes()
    (path / "c.img").write_bytes(data[:size] if size is not None else data)


def netcdf(path: Path, change: Callable[[netCDF4.Dataset], None]) -> None:
    write_source(path, "nc4")
    with netCDF4.Dataset(path / "c.nc", "a") as file:
        change(file)


def bare_netcdf(path: Path, dims: tuple[str, ...]) -> None:
    with netCDF4.Dataset(path / "c.nc", "w") as file:
        for i, name in enumerate(dims):
            file.createDimension(name, 3 + i)
        file.createVariable("a", "f4", dims)[:] = 0


def zarr_array(path: Path, metadata: str) -> None:
    zarr.create_array(path / "c.zarr", data=cube(), chunks=(6, 10, 11), zarr_format=3)
    (path / "c.zarr" / "zarr.json").write_text(metadata)


def tif_bands(path: Path, change: Callable[[rasterio.io.DatasetWriter], None]) -> None:
    write_source(path, "tif")
    with rasterio.open(path / "c.tif", "r+") as file:
        change(file)


def scales(file: rasterio.io.DatasetWriter) -> None:
    file.scales = [1, 1, 2, 1, 1, 1]


def h5(path: Path, **arrays: np.ndarray) -> None:
    with h5py.File(path / "c.h5", "w") as file:
        for name, values in arrays.items():
            file[name] = values


def missing_wave(file: netCDF4.Dataset) -> None:
    file["wavelength"][2] = np.nan


def wrong_crs(file: netCDF4.Dataset) -> None:
    file["crs"].crs_wkt = "PROJCS[nothing]"


def half_crs(file: netCDF4.Dataset) -> None:
    file["crs"].delncattr("crs_wkt")
    file["crs"].grid_mapping_name = "moon_projection"


SOURCES = {
    "an empty .tif": ("c.tif", lambda p: (p / "c.tif").touch(), "cannot read it as a raster"),
    "half a .tif": ("c.tif", lambda p: truncated(p, "tif", "c.tif"), "c.tif: cannot read it"),
    "a text called .tif": ("c.tif", lambda p: (p / "c.tif").write_text("x"), "cannot read it as a raster"),
    "a .tif with a scale per band": (
        "c.tif",
        lambda p: tif_bands(p, scales),
        "all bands must share one scale",
    ),
    "a complex .tif": (
        "c.tif",
        lambda p: rasterio.open(
            p / "c.tif", "w", height=4, width=4, count=2, dtype="complex64", **GRID
        ).close(),
        "must hold integers or real numbers",
    ),
    "half an ENVI file": ("c.hdr", lambda p: envi(p, size=2000), "expected 7920 bytes"),
    "an ENVI header without data": (
        "c.hdr",
        lambda p: (p / "c.hdr").write_text("ENVI"),
        "no data file beside",
    ),
    "an ENVI header of another format": (
        "c.hdr",
        lambda p: ((p / "c.img").touch(), (p / "c.hdr").write_text("hdr")),
        "cannot read it as a raster",
    ),
    "an ENVI header without samples": (
        "c.hdr",
        lambda p: envi(p, samples="many"),
        "cannot read it as a raster",
    ),
    "an unknown ENVI data type": ("c.hdr", lambda p: envi(p, data_type=99), "cannot read it as a raster"),
    "half a .npy": ("c.npy", lambda p: truncated(p, "npy", "c.npy"), "cannot read it as a NumPy array"),
    "a pickle called .npy": (
        "c.npy",
        lambda p: np.save(p / "c.npy", np.array([{}], object)),
        "cannot read it as a NumPy array",
    ),
    "a .npy of text": (
        "c.npy",
        lambda p: np.save(p / "c.npy", np.full((2, 2, 2), "a")),
        "must hold integers",
    ),
    "an empty .npy": (
        "c.npy",
        lambda p: np.save(p / "c.npy", np.ones((0, 3, 4))),
        "found float64 with shape (4, 0, 3)",
    ),
    "half a .mat": ("c.mat", lambda p: truncated(p, "mat5", "c.mat"), "cannot read"),
    "half a v7.3 .mat": (
        "c.mat",
        lambda p: truncated(p, "mat73", "c.mat"),
        "cannot read it as a MATLAB file",
    ),
    "a .mat of text": (
        "c.mat",
        lambda p: scipy.io.savemat(p / "c.mat", {"a": "text"}),
        "expected one 3-D array",
    ),
    "half a NetCDF 4": ("c.nc", lambda p: truncated(p, "nc4", "c.nc"), "cannot read it as NetCDF"),
    "half a NetCDF 3": ("c.nc", lambda p: truncated(p, "nc3", "c.nc"), "c.nc: cannot read"),
    "a text called .nc": ("c.nc", lambda p: (p / "c.nc").write_text("x"), "cannot read it as NetCDF"),
    "a NetCDF without an image": ("c.nc", lambda p: bare_netcdf(p, ("y", "x")), "found a (3, 4)"),
    "a NetCDF of unknown axes": (
        "c.nc",
        lambda p: bare_netcdf(p, ("p", "q", "r")),
        "dimension names p, q, r",
    ),
    "a NetCDF with a missing wavelength": ("c.nc", lambda p: netcdf(p, missing_wave), "found some missing"),
    "a NetCDF with a broken CRS": ("c.nc", lambda p: netcdf(p, wrong_crs), "cannot understand the CRS"),
    "a NetCDF with an unknown projection": ("c.nc", lambda p: netcdf(p, half_crs), "cannot build a CRS"),
    "an HDF5 without arrays": ("c.h5", h5, "found nothing"),
    "an HDF5 of 4 axes": ("c.h5", lambda p: h5(p, a=np.ones((2, 2, 2, 2))), "found a (2, 2, 2, 2)"),
    "an HDF5 of text": (
        "c.h5",
        lambda p: h5(p, a=np.full((2, 2, 2), b"a")),
        "expected one 3-D array of numbers",
    ),
    "a folder": ("c", lambda p: (p / "c").mkdir(), "found a folder without Zarr metadata"),
    "a Zarr with broken metadata": ("c.zarr", lambda p: zarr_array(p, "{"), "cannot read it as Zarr"),
    "a Zarr of an unknown codec": (
        "c.zarr",
        lambda p: zarr_array(
            p,
            json.dumps(
                {
                    "zarr_format": 3,
                    "node_type": "array",
                    "shape": [2, 2, 2],
                    "data_type": "uint8",
                    "fill_value": 0,
                    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 2, 2]}},
                    "attributes": {},
                    "chunk_key_encoding": {"name": "default"},
                    "codecs": [{"name": "nothing"}],
                }
            ),
        ),
        "cannot read it as Zarr",
    ),
    "an empty Zarr group": ("c.zarr", lambda p: zarr.create_group(p / "c.zarr"), "found nothing"),
    "polygons as an image": (
        "l.gpkg",
        lambda p: label_shapes().to_file(p / "l.gpkg"),
        "give it with --labels",
    ),
}


def moved(path: Path, name: str, **columns: object) -> None:
    shapes = label_shapes().head(3)
    for column, values in columns.items():
        shapes[column] = values
    shapes.to_file(path / name)


def geojson(path: Path, text: str) -> None:
    (path / "l.geojson").write_text(text)


FEATURE = (
    '{{"type": "FeatureCollection", "features": [{{"type": "Feature", "properties": {{"class": 1}}, {0}}}]}}'
)
RING = '"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}'


def outside(path: Path) -> None:
    shapes = geopandas.GeoDataFrame({"class": [1]}, geometry=[box(5, 50, 6, 51)], crs=4326)
    shapes.to_file(path / "l.gpkg")


def label_file(path: Path, dtype: str, count: int = 1) -> None:
    with rasterio.open(
        path / "l.tif", "w", count=count, dtype=dtype, height=HEIGHT, width=WIDTH, **GRID
    ) as file:
        file.write(np.full((count, HEIGHT, WIDTH), 70000 if dtype == "int32" else 1, dtype))


def no_shapes(path: Path) -> None:
    empty = geopandas.GeoDataFrame({"class": [1]}, geometry=[Polygon()], crs=26915)
    empty.to_file(path / "l.gpkg")


LABELS = {
    "an empty GeoPackage": ("l.gpkg", lambda p: (p / "l.gpkg").touch(), "cannot read it as a vector file"),
    "half a GeoPackage": (
        "l.gpkg",
        lambda p: (moved(p, "l.gpkg"), (p / "l.gpkg").write_bytes((p / "l.gpkg").read_bytes()[:5000])),
        "l.gpkg: cannot read",
    ),
    "a broken GeoJSON": (
        "l.geojson",
        lambda p: geojson(p, '{"type": "FeatureCollection", "features": ['),
        "cannot read it as a vector file",
    ),
    "a GeoJSON with half a ring": (
        "l.geojson",
        lambda p: geojson(p, FEATURE.format(RING)),
        "l.geojson: expected features inside",
    ),
    "a Shapefile without .shx and .dbf": (
        "l.shp",
        lambda p: (moved(p, "l.shp"), (p / "l.shx").unlink(), (p / "l.dbf").unlink()),
        "cannot read it as a vector file",
    ),
    "polygons without a class": (
        "l.gpkg",
        lambda p: label_shapes().drop(columns="class").to_file(p / "l.gpkg"),
        "expected a column with the classes, found none",
    ),
    "classes with a fraction": (
        "l.gpkg",
        lambda p: moved(p, "l.gpkg", **{"class": [1.0, 1.5, 2.0]}),
        "column class: labels must be whole numbers from 0 (unlabelled) upwards, found 1.5",
    ),
    "classes below 0": ("l.gpkg", lambda p: moved(p, "l.gpkg", **{"class": [1, -3, 2]}), "upwards, found -3"),
    "classes too large": (
        "l.gpkg",
        lambda p: moved(p, "l.gpkg", **{"class": [1, 70000, 2]}),
        "found 0 to 70000",
    ),
    "classes of dates": (
        "l.gpkg",
        lambda p: moved(p, "l.gpkg", **{"class": np.datetime64("2020-01-01", "ms")}),
        "expected classes as whole numbers or text, found datetime64",
    ),
    "polygons elsewhere": ("l.gpkg", outside, "expected features inside of the image"),
    "polygons without a shape": ("l.gpkg", no_shapes, "expected features inside of the image"),
    "labels of several bands": ("l.tif", lambda p: label_file(p, "uint8", 2), "must have one band, found 2"),
    "codes too large": (
        "l.tif",
        lambda p: label_file(p, "int32"),
        "class codes must lie in 0..65535, found 70000",
    ),
    "an image as labels": ("l.npy", lambda p: np.save(p / "l.npy", cube()), "must be a 2-D label map yx"),
    "labels as a text file": ("l.txt", lambda p: (p / "l.txt").write_text("1 2"), "unknown format"),
}


def refused(path: Path, capsys: pytest.CaptureFixture[str], said: str, *arguments: object) -> None:
    """Check that the command ends with 2 and one line, and leaves nothing behind."""
    assert run(*arguments) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert said in stderr
    assert not [one.name for one in path.iterdir() if one.name.startswith("s")]


@pytest.mark.parametrize("case", SOURCES)
def test_malformed_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    name, make, said = SOURCES[case]
    make(tmp_path)
    refused(tmp_path, capsys, said, tmp_path / name, tmp_path / "s")


@pytest.mark.parametrize("case", LABELS)
def test_malformed_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    name, make, said = LABELS[case]
    make(tmp_path)
    folder = tmp_path / "image"
    folder.mkdir()
    refused(tmp_path, capsys, said, write_source(folder, "tif"), tmp_path / "s", "--labels", tmp_path / name)


def test_polygons_need_a_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label_shapes().to_file(tmp_path / "l.gpkg")
    words = [write_source(tmp_path, "npy"), tmp_path / "s", "--labels", tmp_path / "l.gpkg"]
    refused(tmp_path, capsys, "need an image with a place on Earth, found none; give --crs", *words)


def test_there_are_thirty() -> None:
    assert len(SOURCES) + len(LABELS) >= 30
    assert CRS.from_epsg(26915).name  # the grid of the labels is a real one
