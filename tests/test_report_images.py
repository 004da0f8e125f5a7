"""The pictures of the report: which pixels and bands they show, and in which colours."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from matplotlib import colormaps
from PIL import Image

from pipeline.report_images import (
    Quicklook,
    classifier_curves,
    gradient,
    mixing_map,
    pretraining_curve,
    quicklook,
    scale_image,
    split_image,
)
from pipeline.scene import Scene, open_scene, write_scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Brightness rises with the column; the first row has no data; several chunks."""
    cube = np.arange(3.0)[:, None, None] + np.linspace(0, 1, 40) + np.zeros((24, 1))
    cube[:, 0] = np.nan
    write_scene(tmp_path / "scene", cube.astype(np.float32), chunk=16)
    return open_scene(str(tmp_path / "scene"))


def _png(uri: str) -> np.ndarray[Any, Any]:
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


@pytest.mark.parametrize("max_side", [40, 20, 13, 7])
def test_the_quicklook_takes_every_nth_pixel_across_chunks(scene: Scene, max_side: int) -> None:
    look = quicklook(scene, Path("absent"), max_side)
    step = look.step
    assert max(look.valid.shape) <= max_side
    assert look.rgb.shape == (-(-24 // step), -(-40 // step), 3)
    assert not look.valid[0].any()
    assert look.valid[1:].all()
    # Brightness rises with the column in every band, and is the same in every row.
    assert (np.diff(look.rgb[1].astype(int), axis=0) >= 0).all()
    assert (look.rgb[1:] == look.rgb[1]).all()


def test_bands_without_data_are_not_shown(tmp_path: Path) -> None:
    cube = np.random.default_rng(0).random((4, 8, 8), dtype=np.float32)
    cube[3] = np.nan
    wavelengths = [550.0, 650.0, 840.0, 860.0]
    write_scene(tmp_path / "s", cube, wavelength_nm=wavelengths)
    look = quicklook(open_scene(str(tmp_path / "s")), Path("absent"), 100)
    assert look.caption == "840 nm, 650 nm and 550 nm in red, green and blue"
    assert look.valid.all()


def test_a_large_scene_is_shown_by_its_components(
    tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.report_images._MAX_SCENE_BYTES", 100)
    group = zarr.create_group(tmp_path / "reduced.zarr")
    group.create_array("reduced", data=np.random.default_rng(0).random((2, 24, 40)))
    look = quicklook(scene, tmp_path / "reduced.zarr", 20)
    assert look.caption == "first 2 principal components in red, green and blue"
    assert look.rgb.shape == (12, 20, 3)
    assert look.rgb.std() > 20


def test_training_pixels_are_crosses_and_test_pixels_points() -> None:
    black = np.zeros((4, 6, 3), np.uint8)
    look = Quicklook(black, np.ones((4, 6), bool), 2, "")
    found = split_image(look, np.array([0, 6]), np.array([0, 8]), np.array([0, 1]))
    marked = found[..., :3].any(axis=-1)
    expected = np.zeros((4, 6), bool)
    expected[[0, 0, 1], [0, 1, 0]] = True  # the cross, cut by the corner
    expected[3, 4] = True
    np.testing.assert_array_equal(marked, expected)
    assert tuple(found[0, 0]) != tuple(found[3, 4])


def test_colour_scales() -> None:
    image = scale_image(np.array([[0.0, 1.0, 2.0, np.nan]]), 0.0, 1.0, "viridis")
    assert image[0, 0].tolist() == [68, 1, 84, 255]
    assert image[0, 1].tolist() == image[0, 2].tolist() == [253, 231, 37, 255]
    assert image[0, 3, 3] == 0
    assert gradient("viridis").startswith("linear-gradient(to right, rgb(68 1 84), ")


def test_curves_are_drawn_even_from_one_record_or_a_loss_of_zero() -> None:
    falling = [{"step": i, "images": 8 * i, "loss": 2.0 - i} for i in range(1, 4)]
    for uri in (
        pretraining_curve(falling),
        pretraining_curve(falling[:1]),
        classifier_curves([{"member": 0, "epoch": 1, "loss": 0.0, "train_accuracy": 1.0}]),
    ):
        picture = _png(uri)
        assert picture.shape[-1] == 4
        assert (picture[..., 3] > 0).sum() > 1000


def test_a_cell_for_each_timestep_and_stage() -> None:
    mixing = {"timesteps": [50, 300], "stages": [3], "weights": [[0.0], [1.0]]}
    image = _png(mixing_map(mixing))
    colors = [tuple(int(v) for v in color) for color in image.reshape(-1, 4)]
    dark, bright = (tuple(int(v) for v in colormaps["viridis"](end, bytes=True)) for end in (0.0, 1.0))
    assert colors.count(dark) > 10_000
    assert colors.count(bright) == pytest.approx(colors.count(dark), rel=0.05)
    columns = [np.flatnonzero((image == color).all(axis=2).any(axis=0)) for color in (dark, bright)]
    assert columns[0].max() <= columns[1].min() + 1  # the earlier timestep stands to the left
