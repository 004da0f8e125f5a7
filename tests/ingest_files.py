"""Small files of every source format, for the tests of ingest."""

import json
from pathlib import Path
from typing import Any

import geopandas
import h5py
import netCDF4
import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.shutil
import rioxarray  # noqa: F401  (the rio accessor)
import scipy.io
import xarray as xr
from affine import Affine
from rasterio.features import shapes
from shapely.geometry import shape

from pipeline import ingest

ROOT = Path(__file__).resolve().parent.parent
BANDS, HEIGHT, WIDTH = 6, 20, 33
WAVES = [400.0, 500.0, 600.0, 700.0, 800.0, 900.0]
FILLS = {"uint16": 65535, "int16": -32768, "int32": -9999, "float32": -9999, "float64": -9999}
# Numbers that binary fractions hold exactly, so that no format can round them differently.
PLACES = {
    "EPSG:26915": Affine(2, 0, 272000, 0, -2, 3290000),
    "EPSG:25832": Affine(5, 0, 690000, 0, -5, 5334000),
    "EPSG:2154": Affine(4, 0, 700000, 0, -4, 6600000),
    "EPSG:4326": Affine(2**-13, 0, -95.375, 0, -(2**-13), 29.75),
}
GRID: dict[str, Any] = {"crs": "EPSG:26915", "transform": PLACES["EPSG:26915"]}
PLACE = ["--crs", "EPSG:26915", "--pixel-size", "2", "--origin", "272000,3290000"]
# Formats that cannot say where the image lies, which wavelengths it has, or what is no data.
BARE = ("mat5", "mat73", "npy", "h5")
ENVI = ("bsq", "bil", "bip")
SOURCES = (*BARE, *ENVI, "tif", "tif-pixel", "cog", "nc4", "nc3", "zarr2", "zarr3")


def cube(dtype: str = "uint16") -> np.ndarray[Any, Any]:
    """Return (band, y, x) counts that differ everywhere."""
    return np.arange(1, BANDS * HEIGHT * WIDTH + 1, dtype=dtype).reshape(BANDS, HEIGHT, WIDTH)


def label_map(k: int = 1) -> np.ndarray[Any, Any]:
    """Return (y, x) uint8 labels, k label pixels to a side of a pixel."""
    codes = (np.arange(HEIGHT)[:, None] + np.arange(WIDTH)) % 3
    return codes.astype(np.uint8).repeat(k, 0).repeat(k, 1)


def place(crs: str) -> list[str]:
    """Return the options that say where a bare cube lies."""
    grid = PLACES[crs]
    return ["--crs", crs, "--pixel-size", repr(grid.a), "--origin", f"{grid.c!r},{grid.f!r}"]


def bare_options(kind: str, dtype: str, crs: str) -> list[str]:
    """Return the options that tell of a bare format what others say themselves."""
    if kind not in BARE:
        return []
    axes = ["--axes", "yxb"] if kind == "h5" else []
    return [*place(crs), *axes, "--wavelengths", "400:900", "--fill", str(FILLS[dtype])]


def write_source(path: Path, kind: str, dtype: str = "uint16", crs: str = "EPSG:26915") -> Path:
    """Write the cube in a format and return the path to give to ingest."""
    data = cube(dtype)
    if kind in BARE:
        return _write_bare(path, kind, data)
    if kind in ("nc4", "nc3"):
        return write_netcdf(path / "c.nc", data, crs, "NETCDF4" if kind == "nc4" else "NETCDF3_64BIT_OFFSET")
    if kind in ("zarr2", "zarr3"):
        return _write_zarr(path / "c.zarr", data, crs, int(kind[-1]))
    profile = {"count": BANDS, "dtype": dtype, "height": HEIGHT, "width": WIDTH}
    profile |= {"crs": crs, "transform": PLACES[crs]}
    if kind in ENVI:
        with rasterio.open(path / "c.img", "w", driver="ENVI", INTERLEAVE=kind, **profile) as file:
            file.write(data)
        with (path / "c.hdr").open("a") as header:
            header.write("\nwavelength units = Micrometers\nwavelength = {0.4,0.5,0.6,0.7,0.8,0.9}\n")
            header.write(f"data ignore value = {FILLS[dtype]}\n")
        return path / ("c.hdr" if kind == "bil" else "c.img")
    layout = (
        {"interleave": "pixel", "tiled": True, "blockxsize": 16, "blockysize": 16} if kind != "tif" else {}
    )
    plain = path / ("c.tif" if kind != "cog" else "plain.tif")
    with rasterio.open(plain, "w", driver="GTiff", nodata=FILLS[dtype], **layout, **profile) as file:
        file.write(data)
        for band, nm in enumerate(WAVES, 1):
            if kind == "cog":
                file.set_band_description(band, f"Band {band} ({nm / 1000} um)")
            else:
                file.update_tags(band, wavelength=nm, wavelength_units="Nanometers")
    if kind == "cog":
        rasterio.shutil.copy(plain, path / "c.tif", driver="COG", compress="deflate", blocksize=128)
    return path / "c.tif"


def centres(crs: str, rows: int = HEIGHT, columns: int = WIDTH) -> tuple[Any, Any]:
    """Return the y (rows,) and x (columns,) pixel centres of a place."""
    grid = PLACES[crs]
    return grid.f + grid.e * (np.arange(rows) + 0.5), grid.c + grid.a * (np.arange(columns) + 0.5)


def write_netcdf(path: Path, data: np.ndarray[Any, Any], crs: str, form: str) -> Path:
    """Write a CF file (y, x, wavelength), its rows running northwards."""
    with netCDF4.Dataset(path, "w", format=form) as file:
        y, x = centres(crs, *data.shape[1:])
        for name, values in (("wavelength", np.array(WAVES) / 1000), ("y", y[::-1]), ("x", x)):
            file.createDimension(name, len(values))
            file.createVariable(name, "f8", (name,))[:] = values
        file["wavelength"].units = "um"
        file.createVariable("crs", "i4", ()).setncatts(
            {k: v for k, v in pyproj.CRS(crs).to_cf().items() if isinstance(v, str | float)}
        )
        stored = file.createVariable(
            "reflectance", data.dtype, ("y", "x", "wavelength"), fill_value=FILLS[str(data.dtype)]
        )
        stored.set_auto_maskandscale(False)
        stored.grid_mapping = "crs"
        stored[:] = data[:, ::-1].transpose(1, 2, 0)
    return path


def run(*arguments: Any) -> int:
    """Run the command line in this process."""
    return ingest.main([str(argument) for argument in arguments])


def label_tif(path: Path, labels: np.ndarray[Any, Any], **changes: Any) -> Path:
    """Write a label GeoTIFF on the grid of the cube, with names and a palette."""
    profile = {"height": labels.shape[0], "width": labels.shape[1], **GRID, **changes}
    with rasterio.open(path, "w", driver="GTiff", count=1, dtype="uint8", **profile) as file:
        file.write(labels, 1)
        file.write_colormap(1, {1: (255, 0, 0, 255), 2: (0, 0, 255, 255)})
        file.update_tags(1, class_names=json.dumps(["none", "Red roof", "Water"]))
    return path


def label_shapes(crs: str = "EPSG:26915", points: bool = False) -> geopandas.GeoDataFrame:
    """Return the labelled pixels as polygons, or as points in their centres, with a column class."""
    codes = label_map()
    if points:
        y, x = centres(crs)
        rows, columns = np.nonzero(codes)
        geometry = geopandas.points_from_xy(x[columns], y[rows])
        return geopandas.GeoDataFrame({"class": codes[rows, columns].astype(int)}, geometry=geometry, crs=crs)
    found = [(shape(one), int(code)) for one, code in shapes(codes, transform=PLACES[crs]) if code]
    geometry, classes = zip(*found, strict=True)
    return geopandas.GeoDataFrame({"class": list(classes)}, geometry=list(geometry), crs=crs)


def _write_bare(path: Path, kind: str, data: np.ndarray[Any, Any]) -> Path:
    if kind == "mat5":
        scipy.io.savemat(path / "c.mat", {"cube": data.transpose(1, 2, 0), "rgb": data[:3].T})
        return path / "c.mat"
    if kind == "mat73":
        with h5py.File(path / "c.mat", "w", userblock_size=512) as file:
            # MATLAB's (y, x, b) array stands in HDF5 with its axes backwards: (b, x, y).
            file.create_dataset("cube", data=data.transpose(0, 2, 1), chunks=(6, 8, 8))
            file["rgb"] = data[:3]
        return path / "c.mat"
    if kind == "h5":
        with h5py.File(path / "c.h5", "w") as file:
            file.create_dataset(
                "group/cube", data=data.transpose(1, 2, 0), chunks=(7, 9, 6), compression="gzip"
            )
            file["rgb"] = data[:3].transpose(1, 2, 0)
        return path / "c.h5"
    np.save(path / "c.npy", data.transpose(1, 2, 0).astype(data.dtype.newbyteorder(">")))
    return path / "c.npy"


def _write_zarr(path: Path, data: np.ndarray[Any, Any], crs: str, version: int) -> Path:
    """Write with xarray and rioxarray, as others would."""
    y, x = centres(crs)
    array = xr.DataArray(
        data.transpose(1, 0, 2), dims=("y", "wavelength", "x"), coords={"wavelength": WAVES, "y": y, "x": x}
    )
    array["wavelength"].attrs["units"] = "nm"
    made = array.to_dataset(name="counts").rio.write_crs(crs)
    fill = np.asarray(FILLS[str(data.dtype)], data.dtype).item()
    encoding = {"counts": {"_FillValue": fill, "chunks": (9, 2, 10)}}
    made.to_zarr(path, zarr_format=version, encoding=encoding, consolidated=version == 2)
    return path


def refused(path: Path, capsys: pytest.CaptureFixture[str], said: str, *arguments: object) -> None:
    """Check that the command ends with 2 and one line, and leaves nothing behind."""
    assert run(*arguments) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert said in stderr
    assert not [one.name for one in path.iterdir() if one.name.startswith("s")]
