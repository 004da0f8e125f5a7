"""Ingest: malformed labels, each ends with exit code 2 and one line that helps."""

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from shapely.geometry import Polygon, box

from tests.ingest_files import GRID, HEIGHT, WIDTH, cube, label_shapes, refused, write_source

pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")


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
