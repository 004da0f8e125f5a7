"""Ingest: polygons and points become labels, on the right pixels and under the right names."""

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import yaml
from shapely.geometry import LineString, Point, Polygon, box

from pipeline.errors import UserError
from pipeline.scene import open_scene
from pipeline.sources import vector
from tests.ingest_files import HEIGHT, WIDTH, label_shapes, run, write_source

pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

X, Y = 272000.0, 3290000.0  # the outer corner of the first pixel; pixels are 2 m


def pixels(y0: float, y1: float, x0: float, x1: float) -> Any:
    """Return the rectangle from row y0 to y1 and column x0 to x1, as pixel corners."""
    return box(X + 2 * x0, Y - 2 * y1, X + 2 * x1, Y - 2 * y0)


def frame(rows: list[tuple[Any, Any]], column: str = "class", crs: Any = 26915) -> geopandas.GeoDataFrame:
    return geopandas.GeoDataFrame({column: [r[1] for r in rows]}, geometry=[r[0] for r in rows], crs=crs)


def made(tmp_path: Path, shapes: geopandas.GeoDataFrame, *options: Any) -> Any:
    """Return the scene that the cube and these shapes give."""
    shapes.to_file(tmp_path / "l.gpkg")
    source = write_source(tmp_path, "tif")
    assert run(source, tmp_path / "s", "--labels", tmp_path / "l.gpkg", *options) == 0
    return open_scene(str(tmp_path / "s"))


def labels(scene: Any) -> np.ndarray[Any, Any]:
    return scene.read_labels(0, HEIGHT, 0, WIDTH)


def test_centres_decide_by_hand(tmp_path: Path) -> None:
    # Rows 2.4 to 4.6 hold the centres of rows 2 (2.5), 3 and 4 (4.5); columns 5.6 to 7.4 those of 6.
    scene = made(tmp_path, frame([(pixels(2.4, 4.6, 5.6, 7.4), 3), (Point(X + 2 * 10.9, Y - 0.1), 7)]))
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[2:5, 6] = 3
    expected[0, 10] = 7
    np.testing.assert_array_equal(labels(scene), expected)


def test_all_touched(tmp_path: Path) -> None:
    scene = made(tmp_path, frame([(pixels(2.4, 4.6, 5.6, 7.4), 3)]), "--all-touched")
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[2:5, 5:8] = 3
    np.testing.assert_array_equal(labels(scene), expected)


def test_contested_pixels_stay_unlabelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        (pixels(0, 4, 0, 4), 1),
        (pixels(2, 6, 0, 4), 2),
        (pixels(5, 7, 0, 4), 2),
        (pixels(0, 1, 0, 1), 0),
    ]
    scene = made(tmp_path, frame(rows))
    assert labels(scene)[:8, 0].tolist() == [1, 1, 0, 0, 2, 2, 2, 0]
    assert "left out: 8 pixels where features of different classes meet" in capsys.readouterr().out


def test_text_classes_are_named(tmp_path: Path) -> None:
    rows = [
        (pixels(0, 1, 0, 9), "Wasser"),
        (pixels(1, 2, 0, 9), "Dach, rot"),
        (pixels(2, 3, 0, 9), " Wasser "),
    ]
    scene = made(tmp_path, frame(rows, "lc_class"))
    assert (scene.classes.codes, scene.classes.names) == ((1, 2), ("Dach, rot", "Wasser"))
    assert labels(scene)[:4, 0].tolist() == [2, 1, 2, 0]


def test_a_text_has_the_same_code_in_every_image(tmp_path: Path) -> None:
    """Of the layer's three classes this image holds the last; another's numbers would look like codes."""
    far = 10 * WIDTH
    rows = [
        (pixels(0, 1, far, far + 9), "grass"),
        (pixels(0, 1, far, far + 9), "7"),
        (pixels(1, 2, 0, 9), "road"),
    ]
    scene = made(tmp_path, frame(rows))
    assert (scene.classes.codes, scene.classes.names) == ((1, 2, 3), ("7", "grass", "road"))
    assert labels(scene)[:3, 0].tolist() == [0, 3, 0]
    numbers = [(pixels(0, 1, far, far + 9), "grass"), (pixels(1, 2, 0, 9), "7")]
    (tmp_path / "other").mkdir()
    assert labels(made(tmp_path / "other", frame(numbers)))[1, 0] == 1


def test_shapes_that_hold_no_pixel_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame([(pixels(0.1, 0.3, 0, 9), 3)]).to_file(tmp_path / "l.gpkg")
    source = write_source(tmp_path, "tif")
    assert run(source, tmp_path / "s", "--labels", tmp_path / "l.gpkg") == 2
    assert "1 features inside of the image: expected labels, found 0" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_class_file_names_text_and_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(pixels(0, 1, 0, 9), "water"), (pixels(1, 2, 0, 9), "roof"), (pixels(2, 3, 0, 9), "haze")]
    listed = [{"code": 9, "name": "Roof", "source": "roof"}, {"code": 4, "name": "water"}]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(listed))
    scene = made(tmp_path, frame(rows), "--classes", tmp_path / "c.yaml", "--drop-unlisted")
    assert (scene.classes.codes, scene.classes.names) == ((4, 9), ("water", "Roof"))
    assert labels(scene)[:4, 0].tolist() == [4, 9, 0, 0]
    assert "left out: 1 features whose class the class file does not list" in capsys.readouterr().out
    again = [
        tmp_path / "c.tif",
        tmp_path / "s2",
        "--labels",
        tmp_path / "l.gpkg",
        "--classes",
        tmp_path / "c.yaml",
    ]
    assert run(*again) == 2
    assert "column class: the class file does not list ['haze']; add them" in capsys.readouterr().err


def test_numbers_written_as_text_are_codes(tmp_path: Path) -> None:
    scene = made(tmp_path, frame([(pixels(0, 1, 0, 9), "10"), (pixels(1, 2, 0, 9), "2")]))
    assert scene.classes.codes == (2, 10)
    assert labels(scene)[:2, 0].tolist() == [10, 2]


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(pixels(0, 1, 0, 9), 1), (pixels(1, 2, 0, 9), None), (Polygon(), 1), (pixels(900, 901, 0, 9), 1)]
    scene = made(tmp_path, frame(rows))
    said = capsys.readouterr().out
    assert "labels: 1 features of l.gpkg, classes from column class" in said
    assert "left out: 2 features outside of the image or without a shape" in said
    assert "left out: 1 features without a class" in said
    assert labels(scene).sum() == 9


def test_a_column_is_found_by_its_name_or_alone(tmp_path: Path) -> None:
    shapes = frame([(pixels(0, 1, 0, 9), 5)], "Land_Cover")
    shapes["surveyor"] = "A"
    assert labels(made(tmp_path, shapes)).max() == 5
    other = tmp_path / "other"
    other.mkdir()
    shapes = frame([(pixels(0, 1, 0, 9), 6)], "odd name")
    shapes["OBJECTID"] = 77
    assert labels(made(other, shapes)).max() == 6


def test_layers_and_columns_are_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for code, layer in ((1, "train"), (2, "test")):
        shapes = frame([(pixels(0, 1, 0, 9), code)], "a").assign(b=code + 10)
        shapes.to_file(tmp_path / "l.gpkg", layer=layer)
    words = [write_source(tmp_path, "tif"), tmp_path / "s", "--labels", tmp_path / "l.gpkg"]
    assert run(*words) == 2
    assert (
        "expected one layer with shapes, found train (1 features), test (1 features)"
        in capsys.readouterr().err
    )
    assert run(*words, "--labels-layer", "test") == 2
    assert "expected a column with the classes, found a (int64), b (int64)" in capsys.readouterr().err
    assert run(*words, "--labels-layer", "test", "--labels-column", "b") == 0
    assert labels(open_scene(str(tmp_path / "s"))).max() == 12


def test_a_shapefile_without_prj_needs_its_crs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label_shapes().to_crs(4326).to_file(tmp_path / "l.shp")
    (tmp_path / "l.prj").unlink()
    words = [write_source(tmp_path, "tif"), tmp_path / "s", "--labels", tmp_path / "l.shp"]
    assert run(*words) == 2
    assert (
        "states no CRS (a Shapefile has it in its .prj); name it with --labels-crs" in capsys.readouterr().err
    )
    assert run(*words, "--labels-crs", "EPSG:4326") == 0


def test_labels_of_another_grid_are_carried_over(tmp_path: Path) -> None:
    """A label raster in degrees, ten times finer: the nearest label of every pixel centre."""
    import rasterio
    from rasterio.warp import calculate_default_transform, reproject

    from tests.ingest_files import GRID, label_map

    fine = label_map(10)
    grid = GRID["transform"] * rasterio.Affine.scale(0.1)
    height, width = fine.shape
    bounds = rasterio.transform.array_bounds(height, width, grid)
    place, w, h = calculate_default_transform(GRID["crs"], "EPSG:4326", width, height, *bounds)
    degrees = np.zeros((h, w), np.uint8)
    reproject(
        fine, degrees, src_transform=grid, src_crs=GRID["crs"], dst_transform=place, dst_crs="EPSG:4326"
    )
    profile = {"height": h, "width": w, "count": 1, "dtype": "uint8", "crs": "EPSG:4326", "transform": place}
    with rasterio.open(tmp_path / "l.tif", "w", **profile) as file:
        file.write(degrees, 1)
    source = write_source(tmp_path, "tif")
    assert run(source, tmp_path / "s", "--labels", tmp_path / "l.tif", "--warp-labels") == 0
    np.testing.assert_array_equal(labels(open_scene(str(tmp_path / "s"))), label_map())


def test_lines_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame([(LineString([(X, Y), (X + 9, Y - 9)]), 1)]).to_file(tmp_path / "l.gpkg")
    assert run(write_source(tmp_path, "tif"), tmp_path / "s", "--labels", tmp_path / "l.gpkg") == 2
    assert "expected polygons or points, found LineString" in capsys.readouterr().err


def test_a_crs_without_a_way_to_the_scenes_is_told(tmp_path: Path) -> None:
    label_shapes().to_file(tmp_path / "l.gpkg")
    plain = 'LOCAL_CS["Arbitrary",UNIT["metre",1]]'
    layer = vector.choose_layer(tmp_path / "l.gpkg", None)
    with pytest.raises(UserError, match=r"NAD83 / UTM zone 15N, .*Arbitrary.* no way into each other"):
        vector.read_features(tmp_path / "l.gpkg", layer, "class", None, plain, (0, 0, 9, 9))
