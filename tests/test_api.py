"""classify from Python, without Ray: what is written as a scene, what is asked for, what comes back."""

import json
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import rasterio
import rioxarray
import xarray as xr
from affine import Affine

from pipeline import api
from pipeline.api import classify, open_map
from pipeline.api_scene import put_scene
from pipeline.classes import table_of
from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.scene import open_scene, write_scene

HEIGHT, WIDTH = 12, 17
TRANSFORM = (2.0, 0.0, 272000.0, 0.0, -2.0, 3290000.0)
GRID = {
    "y": ("y", 3290000 - 2 * np.arange(HEIGHT) - 1.0),
    "x": ("x", 272000 + 2 * np.arange(WIDTH) + 1.0),
}


def cube() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.1, 0.5, (5, HEIGHT, WIDTH)).astype(np.float32)


def codes() -> np.ndarray:
    return np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) % 3


def dataset(**coords: Any) -> xr.Dataset:
    found = xr.Dataset({"reflectance": (("band", "y", "x"), cube())}, coords={**GRID, **coords})
    return found.rio.write_crs("EPSG:26915")


def put(source: Any, labels: Any, path: Path) -> Any:
    return open_scene(str(put_scene(source, labels, path)))


def test_a_dataset_becomes_a_scene_bit_for_bit(tmp_path: Path) -> None:
    labels = xr.DataArray(codes(), dims=("y", "x"), coords=GRID)
    labels.attrs = {
        "flag_values": np.array([1, 2]),
        "flag_meanings": "roof lawn",
        "flag_colors": "#ff0000 #00ff00",
    }
    microns = ("band", [0.4, 0.5, 0.6, 0.7, 0.8], {"units": "um"})
    given = dataset(wavelength=microns).transpose("y", "x", "band").assign(labels=labels.transpose("x", "y"))
    scene = put(given, None, tmp_path / "scene.zarr")
    np.testing.assert_array_equal(scene.read(0, HEIGHT, 0, WIDTH), cube())
    np.testing.assert_array_equal(scene.read_labels(0, HEIGHT, 0, WIDTH), codes())
    assert scene.wavelength_nm == pytest.approx((400, 500, 600, 700, 800))
    assert scene.transform == pytest.approx(TRANSFORM)
    assert "UTM zone 15N" in scene.crs_wkt
    assert (scene.classes.names, scene.classes.colors) == (("roof", "lawn"), ("#ff0000", "#00ff00"))


def test_wavelength_may_be_the_dimension_and_arrays_may_be_dask(tmp_path: Path) -> None:
    lazy = da.from_array(cube(), chunks=(5, 4, 17))
    given = xr.Dataset(
        {"reflectance": (("wavelength", "y", "x"), lazy)}, coords={"wavelength": np.arange(5) + 400}
    )
    scene = put(given, codes(), tmp_path / "scene.zarr")
    np.testing.assert_array_equal(scene.read(0, HEIGHT, 0, WIDTH), cube())
    np.testing.assert_array_equal(scene.read_labels(0, HEIGHT, 0, WIDTH), codes())
    assert scene.wavelength_nm == (400, 401, 402, 403, 404)
    assert (scene.transform, scene.crs_wkt) == (None, None)


def test_a_geotiff_opened_with_rioxarray_keeps_its_packing(tmp_path: Path) -> None:
    counts = np.round(cube() * 1e4).astype(np.uint16)
    counts[:, 0, 0] = 65535
    profile = {"count": 5, "height": HEIGHT, "width": WIDTH, "dtype": "uint16", "nodata": 65535}
    with rasterio.open(
        tmp_path / "c.tif", "w", driver="GTiff", crs="EPSG:26915", transform=Affine(*TRANSFORM), **profile
    ) as file:
        file.write(counts)
        file.scales = (1e-4,) * 5
    array = rioxarray.open_rasterio(tmp_path / "c.tif")
    scene = put(array.to_dataset(name="reflectance"), None, tmp_path / "scene.zarr")
    assert scene.dtype == np.uint16
    values = scene.read(0, HEIGHT, 0, WIDTH)
    assert np.isnan(values[:, 0, 0]).all()
    np.testing.assert_allclose(values[:, 1:], counts[:, 1:] * 1e-4, rtol=1e-6)
    assert scene.transform == pytest.approx(TRANSFORM)


def test_a_window_keeps_its_place(tmp_path: Path) -> None:
    stale = dataset().rio.write_transform(Affine(*TRANSFORM)).isel(y=slice(3, 9), x=slice(5, None))
    scene = put(stale, None, tmp_path / "scene.zarr")
    assert scene.transform == pytest.approx((2, 0, 272010, 0, -2, 3289994))


@pytest.mark.parametrize("x", [np.arange(WIDTH) ** 2.0, np.arange(WIDTH)])
def test_irregular_and_plain_coordinates_give_no_transform(x: np.ndarray, tmp_path: Path) -> None:
    scene = put(dataset().assign_coords(x=x), None, tmp_path / "scene.zarr")
    assert scene.transform is None


def test_a_rotated_grid_keeps_its_transform(tmp_path: Path) -> None:
    turned = Affine(1.5, 0.5, 272000, 0.5, -1.5, 3290000)
    given = dataset().drop_vars(["y", "x"]).rio.write_transform(turned)
    assert put(given, None, tmp_path / "scene.zarr").transform == pytest.approx(tuple(turned)[:6])


def test_a_scene_on_disk_gets_other_labels(tmp_path: Path) -> None:
    counts = np.round(cube() * 1e4).astype(np.uint16)
    about = {"wavelength_nm": [400, 500, 600, 700, 800], "crs": "EPSG:26915", "transform": TRANSFORM}
    write_scene(tmp_path / "own.zarr", counts, scale_factor=1e-4, fill_value=65535, labels=codes(), **about)
    other = np.where(codes() == 1, 9, 0).astype(np.uint8)
    scene = put(str(tmp_path / "own.zarr"), other, tmp_path / "run" / "scene.zarr")
    own = open_scene(str(tmp_path / "own.zarr"))
    np.testing.assert_array_equal(scene.read(0, HEIGHT, 0, WIDTH), own.read(0, HEIGHT, 0, WIDTH))
    np.testing.assert_array_equal(scene.read_labels(0, HEIGHT, 0, WIDTH), other)
    assert (scene.dtype, scene.wavelength_nm, scene.transform) == (
        own.dtype,
        own.wavelength_nm,
        own.transform,
    )
    assert own.classes.codes == (1, 2)


def test_the_same_again_is_left_alone_and_another_is_refused(tmp_path: Path) -> None:
    path = put_scene(dataset(), codes(), tmp_path / "run" / "scene.zarr")

    def state() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in path.parent.rglob("*") if p.is_file()}

    before = state()
    assert put_scene(dataset(), codes(), path) == path
    for source, labels in ((dataset() + 0.1, codes()), (dataset(), codes() * 2), (dataset(), None)):
        with pytest.raises(UserError, match="another scene or other labels; choose another folder"):
            put_scene(source.rio.write_crs("EPSG:26915"), labels, path)
    assert state() == before


SHIFTED = {"y": GRID["y"], "x": ("x", GRID["x"][1] + 1)}


@pytest.mark.parametrize(
    ("source", "labels", "words"),
    [
        (dataset().rename(reflectance="radiance"), None, ["reflectance", "found radiance"]),
        (dataset().rename(band="channel"), None, ["band, y, x", "found channel, y, x"]),
        (dataset(wavelength=("y", np.arange(12))), None, ["wavelength", "dimensions y"]),
        (dataset(wavelength=("band", np.arange(5), {"units": "GHz"})), None, ["wavelength", "GHz"]),
        (dataset(), xr.DataArray(codes(), dims=("y", "x"), coords=SHIFTED), ["labels", "reproject_match"]),
        (dataset(), codes()[:5], ["labels", "grid"]),
        (dataset(), codes()[0], ["labels", "dimensions y, x"]),
        (dataset(), codes().astype(float), ["labels", "integers", "float64"]),
        (dataset(), -codes().astype(int), ["class codes", "-2 to 0"]),
    ],
)
def test_what_is_no_scene_is_refused(source: Any, labels: Any, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        put_scene(source, labels, tmp_path / "scene.zarr")
    for word in words:
        assert word in str(caught.value)
    assert not list(tmp_path.iterdir())


FAKE = """
import json, shutil, sys
from pathlib import Path
arguments = sys.argv[1:]
out = Path(arguments[arguments.index("--out") + 1])
out.mkdir(parents=True, exist_ok=True)
shutil.copytree({prepared!r}, out, dirs_exist_ok=True)
Path({told!r}).write_text(json.dumps(arguments))
print("reduce     100%")
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command that leaves a prepared map and tells its arguments in the file that is returned."""
    prepared, told = tmp_path / "prepared", tmp_path / "told.json"
    layers = {"class": codes(), "confidence": cube()[0], "entropy": cube()[1]}
    axes = {name: (dims, values + 1e-9) for name, (dims, values) in GRID.items()}
    found = xr.Dataset({name: (("y", "x"), values) for name, values in layers.items()}, coords=axes)
    found.rio.write_crs("EPSG:26915").to_zarr(prepared / "map.zarr", zarr_format=2)
    scores = {"oa": 0.9, "aa": 0.8, "kappa": 0.7, "n_train": 20, "n_test": 30, "per_class": [{"code": 1}]}
    (prepared / "metrics.json").write_text(json.dumps(scores))
    (prepared / "run.json").write_text(json.dumps({"assumed": {"notes": ["bands taken", "in order"]}}))
    script = tmp_path / "fake.py"
    script.write_text(FAKE.format(prepared=str(prepared), told=str(told)))
    monkeypatch.setattr(api, "_COMMAND", script)
    return told


def test_the_map_comes_back_on_the_scenes_coordinates(told: Path, tmp_path: Path) -> None:
    given = dataset()
    result = classify(given, codes(), {"pretrain": {"steps": 7}}, folder=tmp_path / "run", quiet=True)
    run = str(tmp_path / "run")
    arguments = json.loads(told.read_text())
    assert arguments == [f"{run}/scene.zarr", "--out", run, "--set", "pretrain.steps=7"]
    np.testing.assert_array_equal(result["class"], codes())
    for axis in ("y", "x"):
        np.testing.assert_array_equal(result[axis], given[axis])
    xr.align(given, result, join="exact")
    assert result.rio.crs.to_epsg() == 26915
    assert {key: result.attrs[key] for key in ("oa", "aa", "kappa", "n_train", "n_test")} == {
        "oa": 0.9, "aa": 0.8, "kappa": 0.7, "n_train": 20, "n_test": 30,
    }  # fmt: skip
    assert json.loads(result.attrs["metrics"])["per_class"] == [{"code": 1}]
    assert result.attrs["assumed"] == "bands taken; in order"
    assert result.attrs["run_folder"] == run
    assert result["class"].chunks, "a kept folder is read lazily"
    again = open_map(run)
    assert again.attrs == result.attrs


def test_a_temporary_folder_is_gone(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = classify(dataset()["reflectance"], codes())
    folder = Path(json.loads(told.read_text())[2])
    assert not folder.exists()
    assert "run_folder" not in result.attrs
    assert result["class"].chunks is None
    np.testing.assert_array_equal(result["class"], codes())
    assert "reduce     100%" in capsys.readouterr().err


def test_a_scene_on_disk_and_a_model_are_passed_on(told: Path, tmp_path: Path) -> None:
    write_scene(tmp_path / "own.zarr", cube())
    run = tmp_path / "run"
    classify(tmp_path / "own.zarr", folder=run, model=tmp_path / "model", config={"map": {"tile": 32}})
    arguments = json.loads(told.read_text())
    assert arguments[:3] == [str(tmp_path / "own.zarr"), "--out", str(run)]
    assert arguments[3:] == ["--set", "map.tile=32", "--model", str(tmp_path / "model")]
    assert not (run / "scene.zarr").exists()
    with pytest.raises(UserError, match="labels: not used with a model"):
        classify(dataset(), codes(), model=tmp_path / "model")


def test_settings_of_every_kind_reach_the_command() -> None:
    wanted = {
        "seed": 3, "pretrain": {"learning_rate": 1e-5}, "features.stages": np.array([1, 3]),
        "split": {"protocol": "blocks", "train_per_class": None},
    }  # fmt: skip
    options = api._settings(wanted)
    assert options[0::2] == ["--set"] * 5
    loaded = load_config(None, options[1::2])
    assert (loaded.seed, loaded.pretrain.learning_rate, loaded.features.stages) == (3, 1e-5, (1, 3))
    assert (loaded.split.protocol, loaded.split.train_per_class) == ("blocks", None)
    again = api._settings(loaded)
    assert load_config(None, again[1::2]) == loaded
    assert api._settings(Config()) == []


def test_a_wrong_setting_is_refused_before_anything_is_written(told: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean pretrain\.steps"):
        classify(dataset(), codes(), {"pretrain": {"stepps": 3}}, folder=tmp_path / "run")
    with pytest.raises(UserError, match="cannot be read"):
        classify(dataset(), codes(), tmp_path / "no.yaml", folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not told.exists()


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        (
            "print('error: labels cannot train', file=sys.stderr); sys.exit(2)",
            UserError,
            "^labels cannot train$",
        ),
        ("print('cause'); sys.exit(1)", RuntimeError, "exit code 1:\ncause"),
        ("sys.exit(2)", RuntimeError, "exit code 2"),
    ],
)
def test_the_commands_errors_are_pythons(
    script: str, error: type, message: str, told: Path, tmp_path: Path
) -> None:
    api._COMMAND.write_text(f"import sys\n{script}\n")
    with pytest.raises(error, match=message):
        classify(dataset(), codes(), folder=tmp_path / "run", quiet=True)


def test_an_interrupt_ends_the_command(told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = tmp_path / "ended"
    api._COMMAND.write_text(
        "import signal, sys, time\nfrom pathlib import Path\n"
        f"def end(*_):\n    Path({str(ended)!r}).touch()\n    sys.exit(1)\n"
        "signal.signal(signal.SIGINT, end)\nprint('begun')\ntime.sleep(60)\n"
    )

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.print", interrupted)
    with pytest.raises(KeyboardInterrupt):
        classify(dataset(), codes(), folder=tmp_path / "run")
    assert ended.exists()


def test_a_folder_without_a_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a run folder with map\.zarr"):
        open_map(tmp_path)


def test_class_names_survive(tmp_path: Path) -> None:
    table = table_of([(1, "flat roof", "#102030"), (2, "lawn", "#405060")])
    write_scene(tmp_path / "own.zarr", cube(), labels=codes(), classes=table)
    opened = xr.open_zarr(tmp_path / "own.zarr", decode_coords="all")
    assert put(opened, None, tmp_path / "run" / "scene.zarr").classes == table
