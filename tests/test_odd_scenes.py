"""Scenes that are unlike the usual: they either become a map or are refused with one line."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import zarr

from pipeline.artifacts import read_json
from pipeline.run import cli
from pipeline.scene import write_scene
from tests.conftest import TINY

pytestmark = pytest.mark.cluster
ROTATED = (1.8, 0.9, 270000.0, 0.9, -2.4, 3290000.0)
SHORT = ["--set", "cluster.train_workers=1", "--set", "pretrain.steps=2", "--set", "classifier.epochs=2"]


def run(scene: Path, out: Path, *settings: str) -> int:
    return cli([str(scene), "--config", str(TINY), "--out", str(out), *SHORT, *settings])


@pytest.mark.long
def test_one_band_rotated_smaller_than_a_patch_without_wavelengths(
    ray_cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Pixels are not square, one class has one pixel, one lies in a single block, some have no data."""
    cube = np.random.default_rng(0).random((1, 11, 13), np.float32)
    labels = np.zeros((11, 13), np.uint8)
    labels[:5, :4], labels[6:, 7:], labels[0, 12] = 1, 2, 3
    cube[:, 0, 0] = np.nan
    write_scene(tmp_path / "s.zarr", cube, labels=labels, crs="EPSG:32615", transform=ROTATED)
    out = tmp_path / "out"
    given = ("reduce.components=1", "polygons.min_px=2", "split.protocol=blocks", "split.block=6")
    settings = [word for value in (*given, "split.untested=keep") for word in ("--set", value)]
    assert run(tmp_path / "s.zarr", out, *settings) == 0
    said = capfd.readouterr().err
    assert "left out: 1 labelled pixels without data" in said
    assert "split.min_class = 10 labelled pixels: {3: 1}" in said
    assert "not scored: no test pixel is left for class [1]" in said
    first, second = read_json(out / "metrics.json")["per_class"]
    assert (first["code"], first["n_test"], first["accuracy"]) == (1, 0, None)
    assert second["code"] == 2
    assert second["accuracy"] is not None
    codes = np.asarray(zarr.open_group(out / "map.zarr", mode="r")["class"][:])
    assert (codes == 0).sum() == 1
    assert codes[0, 0] == 0
    with rasterio.open(out / "map.tif") as file:
        assert tuple(file.transform)[:6] == pytest.approx(ROTATED)
        np.testing.assert_array_equal(file.read(1), codes)
    assert (out / "report.html").exists()
    assert (out / "map.gpkg").exists()


@pytest.mark.parametrize(
    ("value", "said"), [(np.nan, "found no data anywhere"), (1.0, "exceeds the rank of the spectra, 0")]
)
def test_nothing_to_learn_from(
    ray_cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str], value: float, said: str
) -> None:
    labels = np.repeat(np.array([1, 2], np.uint8), 10 * 24).reshape(20, 24)
    write_scene(tmp_path / "s.zarr", np.full((6, 20, 24), value, np.float32), labels=labels)
    assert run(tmp_path / "s.zarr", tmp_path / "out") == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
