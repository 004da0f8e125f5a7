"""The grid of a scene: how it is read, and how outputs and overviews inherit it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rioxarray  # noqa: F401  (gives xarray its .rio)
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

from pipeline.georeference import coarser, consolidate, pixel_centres, settled_transform
from pipeline.scene import Scene, open_scene, write_georeference, write_scene

# rioxarray 0.19 multiplies affine transforms in a way that affine 3 announces to drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

TRANSFORM = (2.0, 0.0, 1000.0, 0.0, -2.0, 5000.0)
CUBE = np.ones((2, 21, 34), np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A scene of 21 x 34 pixels with a CRS and a transform."""
    write_scene(tmp_path / "scene.zarr", CUBE, crs="EPSG:26915", transform=TRANSFORM)
    return tmp_path / "scene.zarr"


def replaced(path: Path, name: str, value: Any, attributes: dict[str, Any] | None = None) -> None:
    """Replace a coordinate, or the attributes of spatial_ref."""
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    dims = (name,) if np.ndim(value) else None
    group.create_array(
        name,
        data=np.asarray(value),
        dimension_names=dims,
        attributes=attributes or {},
        overwrite=True,
    )
    consolidate(group)


def output(path: Path, scene: Scene, step: int = 1) -> xr.Dataset:
    """Write an output group on the grid of the scene and open it as a user would."""
    group = zarr.create_group(path, overwrite=True)
    size = (-(-scene.height // step), -(-scene.width // step))
    group.create_array("class", shape=size, dtype="u1", dimension_names=("y", "x"))
    write_georeference(group, scene, step=step)
    write_georeference(group, scene, step=step)  # a stage may be run twice
    consolidate(group)
    opened: xr.Dataset = xr.open_zarr(path, decode_coords="all")
    return opened


def test_outputs_lie_where_the_scene_lies(path: Path, tmp_path: Path) -> None:
    scene = open_scene(str(path))
    found = output(tmp_path / "o.zarr", scene)["class"]
    assert found.rio.crs.to_epsg() == 26915
    assert tuple(found.rio.transform(recalc=True))[:6] == TRANSFORM
    assert found["y"].values[:2].tolist() == [4999, 4997]
    assert found["x"].attrs["standard_name"] == "projection_x_coordinate"
    coarse = output(tmp_path / "o.zarr", scene, step=4)["class"]
    assert coarse.shape == (6, 9)
    assert tuple(coarse.rio.transform())[:6] == (8, 0, 1000, 0, -8, 5000)
    assert coarse["x"].values[0] == 1004


def test_outputs_without_a_place(tmp_path: Path) -> None:
    write_scene(tmp_path / "s", CUBE)
    found = output(tmp_path / "o.zarr", open_scene(str(tmp_path / "s")))
    assert set(found.variables) == {"class"}
    assert "grid_mapping" not in found["class"].attrs


def test_irregular_coordinates_are_carried(path: Path, tmp_path: Path) -> None:
    rows = np.arange(21.0) ** 2
    replaced(path, "y", rows)
    replaced(path, "spatial_ref", 0)
    scene = open_scene(str(path))
    assert scene.transform is None
    found = output(tmp_path / "o.zarr", scene)
    np.testing.assert_array_equal(found["y"], rows)
    coarse = output(tmp_path / "o.zarr", scene, step=3)
    assert coarse["y"].values[:2].tolist() == [1, 16]


def test_coordinates_of_a_cut_out_beat_its_stale_geotransform(path: Path, tmp_path: Path) -> None:
    opened = xr.open_zarr(path, decode_coords="all", chunks=None).isel(y=slice(5, 15), x=slice(4, 9))
    for variable in opened.variables.values():
        variable.encoding.clear()
    opened["reflectance"].attrs["grid_mapping"] = "spatial_ref"
    opened.reset_coords("spatial_ref").to_zarr(tmp_path / "cut.zarr", consolidated=False)
    assert open_scene(str(tmp_path / "cut.zarr")).transform == (2, 0, 1008, 0, -2, 4990)


def test_index_coordinates_do_not_beat_a_geotransform(path: Path) -> None:
    replaced(path, "y", np.arange(21))
    replaced(path, "x", np.arange(34))
    assert open_scene(str(path)).transform == TRANSFORM
    replaced(path, "spatial_ref", 0)
    assert open_scene(str(path)).transform is None


def test_rotated_grid(tmp_path: Path) -> None:
    rotated = (2.0, 0.5, 100.0, 0.5, -2.0, 900.0)
    write_scene(tmp_path / "s", CUBE, transform=rotated, crs="EPSG:32633")
    scene = open_scene(str(tmp_path / "s"))
    assert scene.transform == rotated
    found = output(tmp_path / "o.zarr", scene)
    assert set(found.coords) == {"spatial_ref"}
    assert found["spatial_ref"].attrs["GeoTransform"] == "100.0 2.0 0.5 900.0 0.5 -2.0"


@given(
    st.tuples(st.floats(0.1, 100), st.floats(-1e6, 1e6), st.floats(-100, -0.1), st.floats(0, 1e7)),
    st.integers(1, 8),
)
def test_overview_pixels_lie_over_their_own(grid: tuple[float, ...], step: int) -> None:
    a, c, e, f = grid
    fine = (a, 0.0, c, 0.0, e, f)
    rows, columns = pixel_centres(fine, 8 * step, 8 * step) or (np.empty(0), np.empty(0))
    coarse = pixel_centres(coarser(fine, step), 8, 8)
    assert coarse is not None
    np.testing.assert_allclose(coarse[0], rows.reshape(8, step).mean(1), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(coarse[1], columns.reshape(8, step).mean(1), rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("size", [0.3, 0.5, 0.7, 1.0, 1.1, 2.0])
def test_coordinates_of_corners_do_not_beat_a_geotransform(size: float, tmp_path: Path) -> None:
    """Half a pixel off, whatever rounding makes of it; a cut-out is off by a pixel at least."""
    for start in np.arange(20) * 13.7 + 272000:
        stated = (size, 0.0, start, 0.0, -size, 3290000.0)
        corners = 3290000.0 - size * np.arange(21), start + size * np.arange(34)
        assert settled_transform(stated, *corners) == stated
        cut = corners[0] - 1.5 * size, corners[1] + 1.5 * size
        assert settled_transform(stated, *cut) != stated
