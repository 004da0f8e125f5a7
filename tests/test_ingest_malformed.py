"""Ingest: malformed images, each ends with exit code 2 and one line that helps."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import netCDF4
import numpy as np
import pytest
import rasterio
import scipy.io
import zarr

from tests.ingest_files import GRID, WIDTH, cube, label_shapes, refused, write_source

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


@pytest.mark.parametrize("case", SOURCES)
def test_malformed_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    name, make, said = SOURCES[case]
    make(tmp_path)
    refused(tmp_path, capsys, said, tmp_path / name, tmp_path / "s")


def test_there_are_thirty() -> None:
    assert len(SOURCES) >= 30
