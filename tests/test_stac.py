"""The STAC item: the core schema that pystac ships, the fields of the extensions, and its links."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import zarr
from jsonschema import Draft7Validator
from pystac.validation.local_validator import get_local_schema_cache
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

from pipeline.artifacts import RunFolder
from pipeline.classes import ClassTable, to_attributes
from pipeline.export import write_cogs
from pipeline.scene import Scene, open_scene, write_scene
from pipeline.stac import _over_antimeridian, write_item

TABLE = ClassTable((2, 5), ("dry grass", "w\u00e4ter"), ("#aabb00", "#0000ff"))
ROTATED = (3.0, 4.0, 500000.0, 4.0, -3.0, 4000000.0)


def make_run(tmp_path: Path, scene_options: dict[str, Any]) -> tuple[RunFolder, Scene]:
    write_scene(tmp_path / "old town.zarr", np.ones((1, 20, 30), np.uint8), **scene_options)
    scene = open_scene(str(tmp_path / "old town.zarr"))
    folder = RunFolder(tmp_path / "run_7")
    folder.path.mkdir()
    group = zarr.create_group(folder.map)
    codes = np.full((20, 30), 2, np.uint8)
    group.create_array("class", data=codes, dimension_names=("y", "x"), attributes=to_attributes(TABLE))
    group.create_array("confidence", data=codes.astype(np.float32), dimension_names=("y", "x"))
    write_cogs(folder.map, scene, folder.path)
    for name in ("report.html", "map_preview.png"):
        (folder.path / name).write_text("")
    folder.stages.write_text(json.dumps({"map": {"finished": "2026-05-04T10:00:00+0200"}}))
    return folder, scene


def item_of(tmp_path: Path, **scene_options: Any) -> dict[str, Any]:
    folder, scene = make_run(tmp_path, scene_options)
    path = write_item(folder, scene, TABLE)
    assert path == folder.path / "stac.json"
    found = json.loads(path.read_text())
    check_core(found)
    return dict(found)


def check_core(item: dict[str, Any]) -> None:
    """Against STAC 1.1 and GeoJSON as pystac ships them: no network."""
    schemas = get_local_schema_cache()
    contents = {uri: Resource(schema, DRAFT7) for uri, schema in schemas.items()}
    registry: Registry[Any] = Registry().with_resources(contents.items())
    uri = f"https://schemas.stacspec.org/v{item['stac_version']}/item-spec/json-schema/item.json"
    Draft7Validator(schemas[uri], registry=registry).validate(item)


def test_an_item_on_a_grid(tmp_path: Path) -> None:
    north_up = (2.0, 0.0, 500000.0, 0.0, -2.0, 4000000.0)
    item = item_of(tmp_path, crs="EPSG:32615", transform=north_up)
    assert (item["id"], item["stac_version"]) == ("run_7", "1.1.0")
    properties = item["properties"]
    assert properties["proj:code"] == "EPSG:32615"
    assert properties["proj:shape"] == [20, 30]
    assert properties["proj:transform"] == list(north_up)
    assert properties["gsd"] == 2.0
    assert properties["datetime"] == properties["created"] == "2026-05-04T08:00:00Z"
    assert "datetime is when the map was made" in properties["description"]
    # Zone 15 has its middle at 93 degrees west: the western edge lies there.
    west, south, east, north = item["bbox"]
    assert west == pytest.approx(-93.0, abs=1e-7)
    assert north - south == pytest.approx(40 / 110_950, rel=1e-3)  # metres in a degree of latitude at 36
    assert (east - west) == pytest.approx(60 / (111_320 * 0.8087), rel=5e-3)
    ring = np.array(item["geometry"]["coordinates"][0])
    assert (ring[0] == ring[-1]).all()
    x, y = ring.T
    assert (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0  # anticlockwise


def test_extensions_are_declared_and_their_fields_are_right(tmp_path: Path) -> None:
    item = item_of(tmp_path, crs="EPSG:32615", transform=(2.0, 0.0, 5e5, 0.0, -2.0, 4e6))
    declared = {re.sub(r".*/(\w+)/v(\d).*", r"\1 \2", uri) for uri in item["stac_extensions"]}
    assert declared == {"projection 2", "raster 2", "classification 2"}
    classes = item["assets"]["map"]["classification:classes"]
    assert [entry["value"] for entry in classes] == [0, 2, 5]
    assert classes[0]["nodata"] is True
    assert classes[1] == {"value": 2, "name": "dry_grass", "title": "dry grass", "color_hint": "AABB00"}
    assert all(re.fullmatch("[0-9A-Za-z_-]+", entry["name"]) for entry in classes)
    assert classes[2]["title"] == "w\u00e4ter"
    for name, kind, nothing in (("map", "uint8", 0), ("confidence", "float32", "nan")):
        asset = item["assets"][name]
        assert (asset["data_type"], asset["nodata"]) == (kind, nothing)
        assert (asset["raster:sampling"], asset["raster:spatial_resolution"]) == ("area", 2.0)
        assert asset["type"] == "image/tiff; application=geotiff; profile=cloud-optimized"


def test_links_are_relative_and_lead_somewhere(tmp_path: Path) -> None:
    item = item_of(tmp_path, crs="EPSG:32615", transform=(2.0, 0.0, 5e5, 0.0, -2.0, 4e6))
    assert set(item["assets"]) == {"map", "confidence", "zarr", "thumbnail", "report"}
    for asset in item["assets"].values():
        assert asset["href"].startswith("./")
        assert (tmp_path / "run_7" / asset["href"]).exists()
    assert item["links"] == []
    opened = pystac.Item.from_file(str(tmp_path / "run_7" / "stac.json"))
    assert opened.assets["map"].get_absolute_href() == str(tmp_path / "run_7" / "map.tif")


def test_a_rotated_grid_has_its_own_outline(tmp_path: Path) -> None:
    item = item_of(tmp_path, crs="EPSG:32615", transform=ROTATED)
    assert item["properties"]["gsd"] == 5.0
    ring = np.array(item["geometry"]["coordinates"][0])
    assert len(ring) == 33
    middle = ring[:-1].mean(axis=0)
    assert not np.isclose(ring, item["bbox"][:2], rtol=0, atol=1e-7).all(axis=1).any()
    assert item["bbox"][0] < middle[0] < item["bbox"][2]


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:32760", (1000.0, 0.0, 800_000.0, 0.0, -1000.0, 8_000_000.0)),  # zone 60 ends at x = 817 km
        ("EPSG:4326", (0.01, 0.0, 179.9, 0.0, -0.01, -18.0)),
    ],
)
def test_a_scene_on_the_antimeridian_has_two_parts(
    crs: str, transform: tuple[float, ...], tmp_path: Path
) -> None:
    item = item_of(tmp_path, crs=crs, transform=transform)
    west, south, east, north = item["bbox"]
    assert 179 < west < 180
    assert -180 < east < -179
    assert -20 < south < north < -17
    parts = [np.array(part[0]) for part in item["geometry"]["coordinates"]]
    assert item["geometry"]["type"] == "MultiPolygon"
    assert sorted(np.sign(part[:, 0].mean()) for part in parts) == [-1, 1]
    for part in parts:
        assert (np.abs(part[:, 0]) >= 179).all()
        x, y = part[:, 0], part[:, 1]
        assert (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0, "anticlockwise"


def test_a_scene_without_a_place_gives_an_item_without_one(tmp_path: Path) -> None:
    item = item_of(tmp_path)
    assert item["geometry"] is None
    assert "bbox" not in item
    assert "proj:code" not in item["properties"]


def test_a_crs_without_a_code_is_told_as_wkt(tmp_path: Path) -> None:
    crs = "+proj=aeqd +lat_0=52 +lon_0=9 +datum=WGS84 +units=m"
    item = item_of(tmp_path, crs=crs, transform=(2.0, 0.0, 0.0, 0.0, -2.0, 0.0))
    assert item["properties"]["proj:code"] is None
    assert "Azimuthal Equidistant" in item["properties"]["proj:wkt2"]
    assert item["bbox"][0] == pytest.approx(9.0)


def test_the_time_that_the_scene_tells(tmp_path: Path) -> None:
    times = {"time_coverage_start": "2020-06-01T10:00:00Z", "time_coverage_end": "2020-06-01T10:05:00Z"}
    properties = item_of(tmp_path, attributes=times)["properties"]
    assert properties["datetime"] is None
    assert properties["start_datetime"] == times["time_coverage_start"]
    assert properties["end_datetime"] == times["time_coverage_end"]
    assert "datetime is when" not in properties["description"]


def test_a_moment_or_nonsense_as_time(tmp_path: Path) -> None:
    moment = item_of(tmp_path, attributes={"time_coverage_start": "2020-06-01"})["properties"]
    assert datetime.fromisoformat(moment["datetime"]).year == 2020
    (tmp_path / "other").mkdir()
    nonsense = item_of(tmp_path / "other", attributes={"time_coverage_start": "summer"})["properties"]
    assert "datetime is when" in nonsense["description"]


def test_a_grid_of_no_place_on_earth_has_no_outline(tmp_path: Path) -> None:
    datum = 'DATUM["Mars",SPHEROID["Mars",3396190,169.9]]'
    mars = f'GEOGCS["Mars",{datum},PRIMEM["Reference",0],UNIT["degree",0.0174532925]]'
    for number, crs in enumerate(('LOCAL_CS["Arbitrary",UNIT["metre",1]]', mars)):
        place = tmp_path / str(number)
        place.mkdir()
        folder, scene = make_run(place, {"crs": crs, "transform": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)})
        item = json.loads(write_item(folder, scene, TABLE).read_text())
        assert item["geometry"] is None


@pytest.mark.parametrize("crs", ["EPSG:3413", "EPSG:3031"])
def test_a_scene_round_a_pole_has_no_outline(crs: str, tmp_path: Path) -> None:
    item = item_of(tmp_path, crs=crs, transform=(30.0, 0.0, -450.0, 0.0, -30.0, 300.0))
    assert item["geometry"] is None
    assert "bbox" not in item


def test_an_outline_that_the_antimeridian_cuts_into_three() -> None:
    """A U that lies on its side: both arms reach over 180 degrees."""
    corners = [(170, 0), (190, 0), (190, 1), (175, 1), (175, 2), (190, 2), (190, 3), (170, 3), (170, 0)]
    found = _over_antimeridian(np.array(corners, float))
    assert found["type"] == "MultiPolygon"
    rings = [np.array(part[0]) for part in found["coordinates"]]
    extents = sorted((*ring.min(axis=0), *ring.max(axis=0)) for ring in rings)
    assert extents == [(-180, 0, -170, 1), (-180, 2, -170, 3), (170, 0, 180, 3)]
