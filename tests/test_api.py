"""classify from Python, without Ray: what is asked for, what comes back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from pipeline import api
from pipeline.api import classify, open_map
from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.scene import write_scene
from tests.api_data import GRID, codes, cube, dataset

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
    flat = dict(option.split("=", 1) for option in api._settings(Config())[1::2])
    assert flat["unet.channels"] == "64", "a whole configuration leaves nothing to the scene's rules"


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
