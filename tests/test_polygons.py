"""Polygons of a map: patches and their merging by hand and by a plain loop; the GeoPackage itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import shapely
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio.features import rasterize
from rasterio.transform import Affine

from pipeline.classes import ClassTable, to_attributes
from pipeline.patches import Patches, find_patches
from pipeline.polygons import write_polygons
from pipeline.scene import Scene, open_scene, write_scene

TABLE = ClassTable((1, 2, 7), ("grass", "roof & wall", "water"), ("#00aa00", "#cc0000", "#0000ff"))
GRID = (2.0, 0.0, 500000.0, 0.0, -2.0, 4000000.0)
MAPS = hnp.arrays(np.uint8, (9, 7), elements=st.sampled_from([0, 1, 1, 2, 7]))


def patches_of(codes: np.ndarray[Any, Any], rows: int, min_px: int) -> Patches:
    return find_patches(lambda y0, y1: codes[y0:y1], len(codes), rows, np.ones(len(codes)), min_px)


def picture(codes: np.ndarray[Any, Any], rows: int, min_px: int) -> np.ndarray[Any, Any]:
    """The patch of each pixel."""
    found = patches_of(codes, rows, min_px)
    parts = [found.in_strip(i, codes[y : y + rows]) for i, y in enumerate(range(0, len(codes), rows))]
    return np.concatenate(parts)


def flood(codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Patches by a plain flood fill, counted from 1 in the order of their first pixel."""
    found = np.zeros(codes.shape, int)
    for start in np.ndindex(codes.shape):
        if codes[start] and not found[start]:
            number, todo = found.max() + 1, [start]
            while todo:
                y, x = todo.pop()
                inside = 0 <= y < codes.shape[0] and 0 <= x < codes.shape[1]
                if inside and not found[y, x] and codes[y, x] == codes[start]:
                    found[y, x] = number
                    todo += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return found


@given(MAPS)
def test_patches_are_those_of_a_flood_fill(codes: np.ndarray[Any, Any]) -> None:
    expected = flood(codes)
    np.testing.assert_array_equal(picture(codes, 4, 1), expected)
    found = patches_of(codes, 4, 1)
    assert found.pixels_P.tolist() == np.bincount(expected.ravel())[1:].tolist()


@given(MAPS, st.integers(2, 9))
def test_the_height_of_strips_changes_nothing(codes: np.ndarray[Any, Any], min_px: int) -> None:
    whole = picture(codes, 9, min_px)
    for rows in (1, 2, 5):
        np.testing.assert_array_equal(picture(codes, rows, min_px), whole)


@given(MAPS, st.integers(2, 9))
def test_no_small_patch_has_a_neighbour(codes: np.ndarray[Any, Any], min_px: int) -> None:
    merged = picture(codes, 9, min_px)
    found = patches_of(codes, 9, min_px)
    assert ((merged > 0) == (codes > 0)).all()
    assert found.pixels_P.tolist() == np.bincount(merged.ravel())[1:].tolist()
    for one, other in ((merged[:, :-1], merged[:, 1:]), (merged[:-1], merged[1:])):
        apart = (one != other) & (one > 0) & (other > 0)
        for pair in zip(one[apart] - 1, other[apart] - 1, strict=True):
            assert min(found.pixels_P[list(pair)]) >= min_px


def test_merging_by_hand() -> None:
    """The 7 joins the larger roof; the lone 2 in no data has no neighbour; areas add up."""
    codes = np.array(
        [
            [1, 1, 7, 2, 2, 2],
            [1, 1, 2, 2, 2, 2],
            [0, 0, 0, 0, 0, 0],
            [0, 2, 0, 1, 1, 1],
        ]
    )
    found = patches_of(codes, 2, 2)
    assert found.code_P.tolist() == [1, 2, 2, 1]
    assert found.pixels_P.tolist() == [4, 8, 1, 3]
    weighted = find_patches(lambda y0, y1: codes[y0:y1], 4, 2, np.array([1.0, 10, 0, 5]), 2)
    assert weighted.area_P.tolist() == [22.0, 44.0, 5.0, 15.0]
    assert found.last_strip_P.tolist() == [0, 0, 1, 1]


def test_a_chain_of_small_patches_takes_the_class_of_the_largest() -> None:
    """1 and 2 join 7 at once: each is too small, and the larger neighbour wins."""
    found = patches_of(np.array([[1, 2, 2, 7, 7, 7]]), 1, 3)
    assert (found.code_P.tolist(), found.pixels_P.tolist()) == ([7], [6])


def make_map(tmp_path: Path, codes: np.ndarray[Any, Any], **grid: Any) -> tuple[Path, Scene]:
    write_scene(tmp_path / "scene", np.ones((1, *codes.shape), np.uint8), **grid)
    group = zarr.create_group(tmp_path / "map.zarr")
    group.create_array(
        "class", data=codes, chunks=(4, 4), dimension_names=("y", "x"), attributes=to_attributes(TABLE)
    )
    return tmp_path / "map.zarr", open_scene(str(tmp_path / "scene"))


@settings(max_examples=10, deadline=None)
@given(MAPS, st.sampled_from([1, 3]))
def test_polygons_burned_again_give_the_map(
    tmp_path_factory: pytest.TempPathFactory, codes: np.ndarray[Any, Any], min_px: int
) -> None:
    folder = tmp_path_factory.mktemp("polygons")
    path, scene = make_map(folder, codes, crs="EPSG:32615", transform=GRID)
    counts = write_polygons(path, scene, folder / "map.gpkg", min_px, rows=4)
    meta, _, geometry, fields = pyogrio.raw.read(folder / "map.gpkg")
    outlines = shapely.from_wkb(geometry)
    assert len(outlines) == counts["polygons"]
    assert shapely.is_valid(outlines).all()
    code, _, _, pixels, hectares = fields
    np.testing.assert_allclose(shapely.area(outlines), 4.0 * pixels)
    np.testing.assert_allclose(hectares, 4.0 * pixels / 1e4)
    assert counts["left_out_pixels"] == (codes > 0).sum() - pixels.sum()
    burned = np.zeros(codes.shape, np.uint8)
    if len(outlines):
        assert pixels.min() >= min_px
        rasterize(zip(outlines, code, strict=True), out=burned, transform=Affine(*GRID))
    merged, found = picture(codes, 9, min_px), patches_of(codes, 9, min_px)
    large = np.concatenate([[0], np.where(found.pixels_P >= min_px, found.code_P, 0)])
    np.testing.assert_array_equal(burned, large[merged])
    assert meta["crs"] == "EPSG:32615"


def test_the_geopackage_by_hand(tmp_path: Path) -> None:
    codes = np.full((6, 8), 1, np.uint8)
    codes[2:4, 3:5], codes[5, 7], codes[0, 0] = 2, 7, 0
    path, scene = make_map(tmp_path, codes, crs="EPSG:32615", transform=GRID)
    out = tmp_path / "map.gpkg"
    assert write_polygons(path, scene, out, 2) == {"polygons": 2, "left_out": 0, "left_out_pixels": 0}
    assert pyogrio.list_layers(out).tolist() == [["map", "Polygon"]]
    info = pyogrio.read_info(out)
    assert info["crs"] == "EPSG:32615"
    assert info["fields"].tolist() == ["code", "name", "color", "pixels", "hectares"]
    _, _, geometry, fields = pyogrio.raw.read(out)
    roof = shapely.from_wkb(geometry)[1]
    assert roof.bounds == (500006.0, 3999992.0, 500010.0, 3999996.0)
    assert [column[1] for column in fields] == [2, "roof & wall", "#cc0000", 4, pytest.approx(0.0016)]
    assert fields[3][0] == 43
    assert not [entry for entry in tmp_path.iterdir() if "partial" in entry.name]


def test_a_map_without_grid_or_data(tmp_path: Path) -> None:
    path, scene = make_map(tmp_path, np.zeros((5, 5), np.uint8))
    assert write_polygons(path, scene, tmp_path / "map.gpkg", 1)["polygons"] == 0
    info = pyogrio.read_info(tmp_path / "map.gpkg")
    assert (info["features"], info["crs"]) == (0, None)
    assert "hectares" not in info["fields"].tolist()


def test_rows_count_downwards_without_a_grid(tmp_path: Path) -> None:
    path, scene = make_map(tmp_path, np.ones((5, 3), np.uint8))
    write_polygons(path, scene, tmp_path / "map.gpkg", 1)
    assert pyogrio.read_bounds(tmp_path / "map.gpkg")[1].ravel().tolist() == [0.0, -5.0, 3.0, 0.0]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, scene = make_map(tmp_path, np.ones((5, 3), np.uint8))
    out = tmp_path / "map.gpkg"
    write_polygons(path, scene, out, 1)
    before = out.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.polygons.pyogrio.raw.write", fail)
    with pytest.raises(KeyboardInterrupt):
        write_polygons(path, scene, out, 1)
    assert out.read_bytes() == before
    assert not [entry for entry in tmp_path.iterdir() if "partial" in entry.name]
