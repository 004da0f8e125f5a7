"""The synthetic city: written as a scene, the same each time, and neither trivial nor hopeless."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from pipeline.demo import make_demo_scene
from pipeline.demo_spectra import SURFACES, spectra
from pipeline.errors import UserError
from pipeline.scene import Scene, open_scene

WAVELENGTH_NM = np.linspace(400.0, 1000.0, 61)  # every 10 nm


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    path = tmp_path_factory.mktemp("demo") / "city.zarr"
    make_demo_scene(path)
    return open_scene(str(path))


def _at(name: str, nm: float) -> float:
    return float(spectra(WAVELENGTH_NM)[name][round((nm - 400) / 10)])


def test_every_surface_mixes_known_spectra_within_physical_limits() -> None:
    known = spectra(WAVELENGTH_NM)
    for surface in SURFACES.values():
        for name in (surface.first, surface.second):
            assert known[name].dtype == np.float32
            assert 0.0 < known[name].min() < known[name].max() < 0.7


@pytest.mark.parametrize("plant", ["leaf", "grass"])
def test_plants_are_green_with_a_red_edge_and_leaf_water(plant: str) -> None:
    assert _at(plant, 550) > 1.5 * _at(plant, 670)
    assert _at(plant, 550) > 1.5 * _at(plant, 450)
    assert _at(plant, 760) > 4 * _at(plant, 670)
    assert _at(plant, 970) < 0.97 * _at(plant, 910)


def test_tile_is_red_with_a_band_of_ferric_iron_and_water_is_dark_beyond_the_red() -> None:
    assert _at("tile", 650) > 2 * _at("tile", 500)
    assert _at("tile", 870) < 0.95 * _at("tile", 760)
    assert _at("water", 850) < 0.5 * _at("water", 500)


def test_scene_has_ten_classes_in_every_part_of_the_city(city: Scene) -> None:
    assert (city.bands, city.height, city.width) == (48, 256, 384)
    assert city.crs_wkt is not None
    assert "32615" in city.crs_wkt
    assert city.transform == (1.0, 0.0, 270000.0, 0.0, -1.0, 3290000.0)
    assert city.wavelength_nm is not None
    assert (city.wavelength_nm[0], city.wavelength_nm[-1]) == (400.0, 1000.0)
    assert city.classes is not None
    assert city.classes.codes == tuple(range(1, 11))
    y, x, code = city.labelled_pixels()
    assert 0.10 <= code.size / (256 * 384) <= 0.25
    assert np.bincount(code)[1:].min() >= 150
    for cls in city.classes.codes:
        blocks = np.unique((y // 64 * 6 + x // 64)[code == cls])
        assert blocks.size > 12, f"class {cls} is labelled in {blocks.size} of 24 blocks"


def test_reflectance_is_physical_and_without_gaps(city: Scene) -> None:
    cube = city.read(0, 256, 0, 384)
    assert np.isfinite(cube).all()
    assert cube.min() > 0.0
    assert np.quantile(cube, 0.99) < 0.8


def test_labels_lie_inside_objects(city: Scene) -> None:
    """The outline of the water is mixed; its labelled pixels are all dark in the infrared."""
    y, x, code = city.labelled_pixels()
    assert city.wavelength_nm is not None
    infrared = city.read(0, 256, 0, 384)[int(np.searchsorted(city.wavelength_nm, 850.0))]
    assert np.quantile(infrared[y, x][code == 9], 0.99) < 0.1
    assert np.median(infrared[y, x][code == 7]) > 0.25


def test_spectra_alone_do_clearly_worse_than_95_percent(city: Scene) -> None:
    y, x, code = city.labelled_pixels()
    pixels = city.read(0, 256, 0, 384)[:, y, x].T
    half = (y // 64 + x // 64) % 2
    rng = np.random.default_rng(0)
    train = np.concatenate(
        [rng.choice(np.flatnonzero((code == c) & (half == 0)), 30, False) for c in range(1, 11)]
    )
    model = make_pipeline(StandardScaler(), SVC(C=100.0)).fit(pixels[train], code[train])
    test = np.flatnonzero(half == 1)
    accuracy = float((model.predict(pixels[test]) == code[test]).mean())
    assert 0.70 < accuracy < 0.90


def test_the_seed_decides_and_nothing_else(tmp_path: Path) -> None:
    scenes = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_demo_scene(tmp_path / name, seed=seed, height=64, width=80, bands=8)
        scenes.append(open_scene(str(tmp_path / name)))
    cubes = [scene.read(0, 64, 0, 80) for scene in scenes]
    labels = [scene.read_labels(0, 64, 0, 80) for scene in scenes]
    np.testing.assert_array_equal(cubes[0], cubes[1])
    np.testing.assert_array_equal(labels[0], labels[1])
    assert (cubes[0] != cubes[2]).mean() > 0.9
    assert (labels[0] != labels[2]).any()


@pytest.mark.parametrize("size", [(48, 48), (49, 131), (200, 64)])
@pytest.mark.parametrize("seed", range(4))
def test_any_size_from_48_pixels_can_be_drawn(tmp_path: Path, seed: int, size: tuple[int, int]) -> None:
    make_demo_scene(tmp_path / "s", seed=seed, height=size[0], width=size[1], bands=8)
    scene = open_scene(str(tmp_path / "s"))
    assert (scene.height, scene.width) == size
    _, _, code = scene.labelled_pixels()
    assert np.unique(code).size >= 3


@pytest.mark.parametrize(("height", "width", "bands"), [(47, 64, 8), (64, 47, 8), (64, 64, 7)])
def test_too_small_a_scene_is_refused(tmp_path: Path, height: int, width: int, bands: int) -> None:
    with pytest.raises(ValueError, match="height and width >= 48 and bands >= 8"):
        make_demo_scene(tmp_path / "s", height=height, width=width, bands=bands)
    assert not (tmp_path / "s").exists()


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("mine")
    with pytest.raises(UserError):
        make_demo_scene(tmp_path / "s", height=48, width=48, bands=8)
    assert (tmp_path / "s").read_text() == "mine"
