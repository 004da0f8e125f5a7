"""Ingest: formats, interleaves, types, CRS and kinds of labels all give the same scene, to the bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import scipy.io
import zarr
from pyproj import CRS

from pipeline.classes import plain_table
from pipeline.scene import open_scene, write_scene
from tests.ingest_files import (
    FILLS,
    HEIGHT,
    PLACES,
    SOURCES,
    WAVES,
    WIDTH,
    bare_options,
    cube,
    label_map,
    label_shapes,
    run,
    write_source,
)

# rioxarray 0.19 multiplies affine transforms in a way that affine 3 announces to drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

CRSES = tuple(PLACES)
DTYPES = ("uint16", "int16", "int32", "float32", "float64")
# Each format with each type; the CRS changes along, so that each format meets several.
CASES = [
    (kind, dtype, CRSES[(i + j) % len(CRSES)])
    for i, kind in enumerate(SOURCES)
    for j, dtype in enumerate(DTYPES)
    if not (kind == "nc3" and dtype == "uint16")  # NetCDF 3 has no unsigned numbers
]


def reference(path: Path, dtype: str, crs: str) -> tuple[str, str | None]:
    """Return the fingerprints of the scene that every source should become."""
    grid = PLACES[crs]
    write_scene(
        path, cube(dtype), wavelength_nm=WAVES, crs=crs, fill_value=FILLS[dtype], chunk=16,
        transform=(grid.a, grid.b, grid.c, grid.d, grid.e, grid.f),
        labels=label_map().astype(int), classes=plain_table([1, 2]),
    )  # fmt: skip
    scene = open_scene(str(path))
    return scene.fingerprint(), scene.label_fingerprint()


@pytest.mark.parametrize(("kind", "dtype", "crs"), CASES)
def test_sources(tmp_path: Path, kind: str, dtype: str, crs: str) -> None:
    expected = reference(tmp_path / "expected", dtype, crs)
    # Labels without a place lie as the image does in its own file; NetCDF's rows run northwards.
    np.save(tmp_path / "l.npy", label_map()[:: -1 if kind.startswith("nc") else 1])
    source = write_source(tmp_path, kind, dtype, crs)
    options = bare_options(kind, dtype, crs)
    assert run(source, tmp_path / "s", "--chunk", 16, "--labels", tmp_path / "l.npy", *options) == 0
    scene = open_scene(str(tmp_path / "s"))
    stored = zarr.open_group(tmp_path / "s", mode="r")["reflectance"]
    np.testing.assert_array_equal(stored[:], cube(dtype))
    assert stored.dtype == dtype
    assert scene.crs_wkt == CRS(crs).to_wkt()
    assert (scene.fingerprint(), scene.label_fingerprint()) == expected


def write_labels(path: Path, kind: str, crs: str) -> list[Any]:
    """Write the labels in a format and return the options that name them."""
    codes = label_map()
    profile = {"count": 1, "dtype": "uint8", "crs": crs, "transform": PLACES[crs]}
    match kind:
        case "npy":
            np.save(path / "l.npy", codes)
            return ["--labels", path / "l.npy"]
        case "mat":
            scipy.io.savemat(path / "l.mat", {"gt": codes.T})
            return ["--labels", path / "l.mat", "--labels-axes", "xy"]
        case "tif" | "envi":
            target, driver = (path / "l.tif", "GTiff") if kind == "tif" else (path / "l.img", "ENVI")
            with rasterio.open(target, "w", driver=driver, height=HEIGHT, width=WIDTH, **profile) as file:
                file.write(codes, 1)
            return ["--labels", target]
        case "finer":
            profile["transform"] = PLACES[crs] * rasterio.Affine.scale(1 / 3)
            target = path / "l.tif"
            with rasterio.open(target, "w", height=3 * HEIGHT, width=3 * WIDTH, **profile) as file:
                file.write(label_map(3), 1)
            return ["--labels", target]
        case "zarr":
            group = zarr.create_group(path / "l.zarr")
            group.create_array("gt", data=codes, dimension_names=("y", "x"))
            return ["--labels", path / "l.zarr"]
        case "gpkg" | "points.gpkg" | "shp" | "fgb":
            label_shapes(crs, "points" in kind).to_file(path / f"l.{kind}")
            return ["--labels", path / f"l.{kind}"]
        case "geojson" | "points.geojson":
            # As everybody exports them: in degrees.
            label_shapes(crs, "points" in kind).to_crs(4326).to_file(path / f"l.{kind}")
            return ["--labels", path / f"l.{kind}"]
        case _:
            away = "EPSG:3035" if crs == "EPSG:25832" else "EPSG:5070"
            label_shapes(crs).to_crs(away).to_file(path / "l.shp")
            return ["--labels", path / "l.shp"]


@pytest.mark.parametrize("crs", CRSES)
@pytest.mark.parametrize(
    "kind",
    ["npy", "mat", "tif", "envi", "finer", "zarr", "gpkg", "points.gpkg", "geojson", "points.geojson",
     "shp", "fgb", "shp in another CRS"],
)  # fmt: skip
def test_labels(tmp_path: Path, kind: str, crs: str) -> None:
    expected = reference(tmp_path / "expected", "uint16", crs)
    source = write_source(tmp_path, "tif", "uint16", crs)
    assert run(source, tmp_path / "s", "--chunk", 16, *write_labels(tmp_path, kind, crs)) == 0
    scene = open_scene(str(tmp_path / "s"))
    np.testing.assert_array_equal(scene.read_labels(0, HEIGHT, 0, WIDTH), label_map())
    assert (scene.fingerprint(), scene.label_fingerprint()) == expected
