"""Areas of a map: counted by hand, on plane and ellipsoid, and joined with the test pixels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import zarr

from pipeline.areas import count_areas, pixel_areas, read_areas, write_areas
from pipeline.artifacts import RunFolder
from pipeline.classes import ClassTable, to_attributes
from pipeline.scene import Scene, open_scene, write_scene

TABLE = ClassTable((2, 5, 9), ("grass", "roof", "water"), ("#00aa00", "#cc0000", "#0000ff"))


def make_scene(path: Path, crs: str | None, transform: Any, height: int = 20, width: int = 30) -> Scene:
    write_scene(path, np.ones((2, height, width), np.uint8), crs=crs, transform=transform)
    return open_scene(str(path))


def make_map(path: Path, codes: np.ndarray[Any, Any], table: ClassTable = TABLE) -> zarr.Group:
    group = zarr.create_group(path)
    group.create_array(
        "class", data=codes, chunks=(8, 16), dimension_names=("y", "x"), attributes=to_attributes(table)
    )
    return group


def codes_20_by_30() -> np.ndarray[Any, Any]:
    """100 pixels no data, 50 unknown to the table, 150 grass, 300 water."""
    codes = np.full(600, 9, np.uint8)
    codes[:100], codes[100:150], codes[150:300] = 0, 77, 2
    return codes.reshape(20, 30)


def test_pixels_are_counted_across_chunks(tmp_path: Path) -> None:
    group = make_map(tmp_path / "map", codes_20_by_30())
    weight = np.arange(20.0)
    pixels, area = count_areas(group, np.array(TABLE.codes), weight)
    assert pixels.tolist() == [150, 0, 300]
    expected = [(weight[:, None] * (codes_20_by_30() == code)).sum() for code in TABLE.codes]
    np.testing.assert_allclose(area, expected)


@pytest.mark.parametrize(
    ("crs", "transform", "hectares", "surface"),
    [
        ("EPSG:32615", (20.0, 0, 270000.0, 0, -10.0, 3290000.0), 0.02, "plane"),
        # 20 x 10 m, turned by 30 degrees.
        ("EPSG:32615", (17.320508, 5.0, 270000.0, 10.0, -8.660254, 3290000.0), 0.02, "plane"),
        # US survey feet: 100 ft squared are 929.03 m2.
        ("EPSG:2277", (100.0, 0, 3000000.0, 0, -100.0, 10000000.0), 0.0929034, "plane"),
        (None, (1.0, 0, 0.0, 0, -1.0, 0.0), 1.0, None),
        ("EPSG:32615", None, 1.0, None),
    ],
)
def test_area_of_a_pixel(
    tmp_path: Path, crs: str | None, transform: Any, hectares: float, surface: str | None
) -> None:
    found, where = pixel_areas(make_scene(tmp_path / "s", crs, transform))
    assert where == surface
    np.testing.assert_allclose(found, np.full(20, hectares), rtol=1e-5)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", (0.01, 0, 11.0, 0, -0.02, 60.0)),
        ("EPSG:3857", (2000.0, 0, 1.2e6, 0, -3000.0, 8.4e6)),
    ],
)
def test_degrees_and_distorted_planes_are_measured_on_the_ellipsoid(
    tmp_path: Path, crs: str, transform: tuple[float, ...]
) -> None:
    """Against the geodesic area of each pixel's outline, corner by corner."""
    found, where = pixel_areas(make_scene(tmp_path / "s", crs, transform))
    assert where == "ellipsoid"
    a, _, c, _, e, f = transform
    to_degrees = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    for row in (0, 10, 19):
        x0, y0 = c + 14.5 * a, f + row * e
        ring = [(x0 + a * i / 20, y0) for i in range(20)] + [(x0 + a, y0 + e * i / 20) for i in range(20)]
        ring += [(x0 + a - a * i / 20, y0 + e) for i in range(20)] + [
            (x0, y0 + e - e * i / 20) for i in range(20)
        ]
        area, _ = pyproj.Geod(ellps="WGS84").polygon_area_perimeter(
            *to_degrees.transform(*np.transpose(ring))
        )
        assert found[row] == pytest.approx(abs(area) / 1e4, rel=1e-5)


def folder_of(tmp_path: Path, confusion: list[list[int]] | None, tested: tuple[int, ...]) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    make_map(folder.map, codes_20_by_30())
    if confusion is not None:
        metrics = {"per_class": [{"code": code} for code in tested], "confusion": confusion}
        folder.metrics.write_text(json.dumps(metrics))
    return folder


def test_areas_of_a_run_by_hand(tmp_path: Path) -> None:
    """150 pixels of grass, 300 of water, 0.02 ha each; roof was neither mapped nor tested."""
    scene = make_scene(tmp_path / "s", "EPSG:32615", (20.0, 0, 270000.0, 0, -10.0, 3290000.0))
    folder = folder_of(tmp_path, [[8, 1], [2, 19]], tested=(2, 9))
    found = write_areas(folder, scene)
    assert found == read_areas(folder.path)
    assert (found["unit"], found["surface"], found["total"]) == ("ha", "plane", pytest.approx(9.0))
    grass, roof, water = found["classes"]
    assert (grass["name"], grass["pixels"], grass["share"]) == ("grass", 150, pytest.approx(1 / 3))
    assert (grass["mapped"], water["mapped"]) == (pytest.approx(3.0), pytest.approx(6.0))
    # 3 ha * 8/10 + 6 ha * 1/20; variance 9 * 0.16 / 9 + 36 * 0.0475 / 19.
    assert grass["adjusted"] == pytest.approx(2.7)
    assert grass["adjusted_ci95"] == pytest.approx(1.96 * (0.16 + 0.09) ** 0.5)
    assert water["adjusted"] == pytest.approx(6.3)
    assert "adjusted" not in roof
    assert found["overall_accuracy"] == pytest.approx((3 * 0.8 + 6 * 0.95) / 9)
    assert found["left_out"] == []
    metrics = json.loads(folder.metrics.read_text())
    folder.metrics.write_text(json.dumps(metrics | {"map_confusion": [[10, 0], [0, 20]]}))
    assert write_areas(folder, scene)["classes"][0]["adjusted"] == pytest.approx(
        3.0
    )  # of the map after a vote


def test_a_class_without_test_pixels_on_the_map_is_named(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "s", None, None)
    found = write_areas(folder_of(tmp_path, [[8, 1], [0, 0]], tested=(2, 9)), scene)
    assert (found["unit"], found["surface"]) == ("pixel", None)
    assert found["left_out"] == ["water"]
    assert found["classes"][2]["producers_accuracy"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_run_without_test_pixels_still_has_its_mapped_areas(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "s", None, None)
    found = write_areas(folder_of(tmp_path, None, ()), scene)
    assert [entry["mapped"] for entry in found["classes"]] == [150, 0, 300]
    assert "overall_accuracy" not in found


def test_a_run_without_areas(tmp_path: Path) -> None:
    assert read_areas(tmp_path) is None
