"""Bad input: exit code 2, one line that says what, where, expected and found; nothing overwritten."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.artifacts import RunFolder, read_json, write_json
from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.fingerprints import fingerprints
from pipeline.plan import Plan, make_plan
from pipeline.run import cli
from pipeline.scene import open_scene, write_scene
from tests.conftest import ROOT, TINY, refused

MULTISTAGE = ("--set", "unet.kind=multistage")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["SCENE"]),
        (["nowhere.zarr"], ["nowhere.zarr"]),
        (["nowhere.zarr", "--demo"], ["--demo"]),
        (["nowhere.zarr", "--from", "mapp"], ["--from mapp", "reduce", "report"]),
        (["nowhere.zarr", "--until", "x"], ["--until x"]),
        (["nowhere.zarr", "--config", "missing.yaml"], ["missing.yaml", "cannot be read"]),
        (["nowhere.zarr", "--bogus"], ["--bogus"]),
        (["nowhere.zarr", "--set", "unet.chanels=64"], ["unet.chanels", "did you mean unet.channels"]),
        (["nowhere.zarr", "--set", "unett.channels=64"], ["unett", "did you mean unet"]),
        (["nowhere.zarr", "--set", "unet.channels=many"], ["unet.channels", "integer", "many"]),
        (["nowhere.zarr", "--from", "map", "--until", "extract"], ["--until extract", "before --from map"]),
        (["nowhere.zarr", "--set", "features.stages=[3,5"], ["features.stages=[3,5", "not valid YAML"]),
        (["--demo", "--dry-run", "--out", "nowhere"], ["--dry-run changes nothing"]),
        (["nowhere.zarr", "--set", "unet.channels"], ["expected section.key=value"]),
        (["nowhere.zarr", "--set", "unet.channels=40"], ["unet.channels", "32", "40"]),
        (
            ["nowhere.zarr", *MULTISTAGE, "--set", "unet.decoders=[[1,2,2],[1,2,2],[1,1,2]]"],
            ["features.stages: stage 3 is [128, 128, 64] channels wide", "one width at all timesteps"],
        ),
        (
            ["nowhere.zarr", *MULTISTAGE, "--set", "unet.cuts=[400,1000]"],
            ["unet.cuts must be below diffusion.steps (1000), found 1000"],
        ),
        (["nowhere.zarr", "--set", "unet.kind=twofold"], ["unet.kind", "or 'multistage'", "twofold"]),
        (["nowhere.zarr", "--set", "patches.size=50"], ["patches.size", "multiple of 4", "50"]),
        (["nowhere.zarr", "--set", "features.stages=[1,9]"], ["features.stages", "below 9"]),
        (["nowhere.zarr", "--set", "features.timesteps=[50,1000]"], ["features.timesteps", "1000"]),
        (["no.zarr", "--set", "patches.stride=5", "--set", "map.tile=64"], ["map.tile", "multiple", "5"]),
        (["no.zarr", "--set", "pretrain.batch=15", "--set", "cluster.train_workers=2"], ["pretrain.batch"]),
        (["nowhere.zarr", "--set", "split.train_fraction=1.5"], ["split.train_fraction", "1.5"]),
    ],
)  # fmt: skip
def test_wrong_commands(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, arguments, *words)


def _scene(path: Path, labels: np.ndarray | None = None, bands: int = 6) -> str:
    cube = np.random.default_rng(0).random((bands, 40, 48), np.float32)
    write_scene(path, cube, labels=labels)
    return str(path)


def _blobs() -> np.ndarray:
    labels = np.zeros((40, 48), np.uint8)
    labels[:10, :10], labels[20:30, 20:30] = 1, 2
    return labels


def _dots() -> np.ndarray:
    labels = np.zeros((40, 48), np.uint8)
    labels[:2, :2], labels[10:12, :2], labels[20:22, :2] = 1, 2, 3
    return labels


def test_more_components_than_bands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = _scene(tmp_path / "s.zarr", _blobs(), bands=3)
    out = tmp_path / "out"
    refused(capsys, [scene, "--config", str(TINY), "--out", str(out)], "reduce.components", "3 bands", "4")
    assert not out.exists()


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, ["labelled pixels", "none"]),
        (np.zeros((40, 48), np.uint8), ["labelled pixels", "none"]),
        (np.where(_blobs() == 1, 1, 0).astype(np.uint8), ["two classes", "{1: 100}"]),
        (_dots(), ["{1: 4, 2: 4, 3: 4}", "label more pixels, or lower split.min_class"]),
    ],
)
def test_labels_that_cannot_train(
    labels: np.ndarray | None, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = _scene(tmp_path / "s.zarr", labels)
    refused(capsys, [scene, "--config", str(TINY), "--out", str(tmp_path / "out")], *words)
    assert not (tmp_path / "out").exists(), "found out before any work"


def test_scene_without_reflectance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zarr.open_group(tmp_path / "s.zarr", mode="w").create_array("radiance", shape=(3, 4, 5), dtype="f4")
    refused(capsys, [str(tmp_path / "s.zarr")], "reflectance", "radiance")


def test_folder_with_other_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = _scene(tmp_path / "s.zarr", _blobs())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    refused(capsys, [scene, "--config", str(TINY), "--out", str(tmp_path / "out")], "expected a new folder")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.tex"]


@pytest.fixture
def begun(tmp_path: Path) -> tuple[str, RunFolder, Config]:
    """A run folder in which reduce and pretrain are done, as far as its records say."""
    scene = _scene(tmp_path / "s.zarr", _blobs())
    folder, config, opened = RunFolder(tmp_path / "out"), load_config(TINY), open_scene(scene)
    folder.path.mkdir()
    about = {
        "config": config.model_dump(mode="json"),
        "scene": {"url": scene, "fingerprint": opened.fingerprint()},
        "command": "python pipeline/run.py s.zarr --config configs/tiny.yaml",
        "model": None,
    }
    write_json(folder.run, about)
    prints = fingerprints(
        config, {"reduce": opened.fingerprint(), "extract": opened.label_fingerprint() or ""}
    )
    for stage in ("reduce", "pretrain"):
        folder.begin(stage, prints[stage])
        folder.finish(stage, wall_s=1.0, pixels=1)
    return scene, folder, config


def test_folder_of_another_scene_is_refused(
    begun: tuple[str, RunFolder, Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.zarr"
    write_scene(other, np.random.default_rng(1).random((6, 40, 48), np.float32), labels=_blobs())
    before = begun[1].run.read_text()
    refused(
        capsys, [str(other), "--config", str(TINY), "--out", str(begun[1].path)], "another scene", "s.zarr"
    )
    assert begun[1].run.read_text() == before


def test_folder_of_another_configuration_is_refused(
    begun: tuple[str, RunFolder, Config], capsys: pytest.CaptureFixture[str]
) -> None:
    scene, folder, _ = begun
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    arguments = [scene, "--config", str(TINY), "--out", str(folder.path), "--set", "pretrain.steps=7"]
    refused(
        capsys, arguments, "stage pretrain", "pretrain.steps = 6", "asks for 7", "--from pretrain",
        "s.zarr --config configs/tiny.yaml",
    )  # fmt: skip
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


def test_folder_of_another_kind_of_network_is_refused(
    begun: tuple[str, RunFolder, Config], capsys: pytest.CaptureFixture[str]
) -> None:
    scene, folder, _ = begun
    arguments = [scene, "--config", str(TINY), "--out", str(folder.path), *MULTISTAGE]
    refused(capsys, arguments, "pretrain was made with unet.kind = single", "asks for multistage")


def test_settings_of_the_other_kind_change_no_fingerprint() -> None:
    plain, told = (load_config(TINY, options) for options in ((), ("unet.cut_window=4",)))
    assert fingerprints(plain, {}) == fingerprints(told, {})
    three = [load_config(TINY, ["unet.kind=multistage", *o]) for o in ((), ("unet.cut_window=4",))]
    assert len({fingerprints(config, {})["pretrain"] for config in (plain, *three)}) == 3


def test_a_later_setting_keeps_earlier_stages(begun: tuple[str, RunFolder, Config]) -> None:
    scene, folder, config = begun
    changed = load_config(None, ["classifier.members=3", "split.train_fraction=0.2", "map.tile=32"], config)
    plan = make_plan(changed, folder, open_scene(scene), None, None, None)
    assert plan.done == ("reduce", "pretrain")
    assert plan.todo == ("extract", "classify", "map", "report")


def test_from_and_until(begun: tuple[str, RunFolder, Config]) -> None:
    scene, folder, config = begun
    changed = load_config(None, ["pretrain.steps=7"], config)
    plan = make_plan(changed, folder, open_scene(scene), "pretrain", "extract", None)
    assert (plan.done, plan.todo, plan.forget) == (("reduce",), ("pretrain", "extract"), ("pretrain",))
    only = make_plan(config, folder, open_scene(scene), None, "reduce", None)
    assert (only.done, only.todo) == (("reduce",), ())
    with pytest.raises(UserError, match="--from map: stage extract is not done"):
        make_plan(config, folder, open_scene(scene), "map", None, None)


def test_a_run_folder_that_ray_will_remove_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1" / "runs" / "s"
    assert cli(["nowhere.zarr", "--out", str(copy)]) == 2
    assert "give an absolute --out" in capsys.readouterr().err
    assert cli(["nowhere.zarr", "--out", str(tmp_path / "runs")]) == 2
    assert "absolute" not in capsys.readouterr().err


def test_until_does_not_excuse_what_later_stages_were_made_with(
    begun: tuple[str, RunFolder, Config], capsys: pytest.CaptureFixture[str]
) -> None:
    scene, folder, _ = begun
    before = folder.run.read_text()
    arguments = [scene, "--config", str(TINY), "--out", str(folder.path), "--until", "reduce"]
    refused(capsys, [*arguments, "--set", "pretrain.steps=7"], "pretrain.steps = 6", "asks for 7")
    assert folder.run.read_text() == before, "it says what the stages were made with"


def test_from_goes_on_after_an_interruption(begun: tuple[str, RunFolder, Config]) -> None:
    scene, folder, config = begun

    def plan() -> Plan:
        return make_plan(config, folder, open_scene(scene), "reduce", None, None)

    folder.begin("extract", fingerprint := plan().fingerprints["extract"])
    assert plan().forget == ("reduce", "pretrain", "extract")
    write_json(folder.run, read_json(folder.run) | {"from": "pretrain"})
    assert plan().forget == ("reduce", "pretrain", "extract"), "another command"
    write_json(folder.run, read_json(folder.run) | {"from": "reduce"})
    assert folder.records()["extract"] == {"status": "running", "fingerprint": fingerprint}
    assert (plan().done, plan().forget) == (("reduce", "pretrain"), ())
    assert plan().todo == ("extract", "classify", "map", "report")
    other = load_config(None, ["pretrain.steps=7"], config)
    again = make_plan(other, folder, open_scene(scene), "reduce", None, None)
    assert (again.done, again.forget) == (("reduce",), ("pretrain", "extract"))


def test_windows_of_maps_leave_the_pretraining(begun: tuple[str, RunFolder, Config]) -> None:
    scene, folder, config = begun
    wider = load_config(None, ["patches.window=32", "patches.stride=16", "map.tile=32"], config)
    assert make_plan(wider, folder, open_scene(scene), None, None, None).done == ("reduce", "pretrain")


def test_a_run_folder_of_another_version_is_refused(
    begun: tuple[str, RunFolder, Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder, _ = begun
    about = read_json(folder.run)
    about["config"]["unet"]["depth"] = 3
    write_json(folder.run, about)
    with pytest.raises(UserError, match=r"run\.json: unknown key unet\.depth"):
        folder.config()


def test_a_configuration_that_is_no_text_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_bytes(b"unet: \xff\xfe")
    refused(capsys, ["nowhere.zarr", "--config", str(tmp_path / "c.yaml")], "c.yaml", "not valid YAML")


def test_dry_run_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = _scene(tmp_path / "s.zarr", _blobs())
    assert cli([scene, "--config", str(TINY), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "channels: 32" in output
    assert "extract   to do" in output
    assert not (tmp_path / "out").exists()


def test_model_must_be_one_and_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = _scene(tmp_path / "s.zarr")
    (tmp_path / "empty").mkdir()
    refused(capsys, [scene, "--model", str(tmp_path / "empty")], "--model", "spectral.json is missing")


def test_run_as_a_script(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "pipeline" / "run.py"), "missing.zarr"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_configurations_that_are_shipped_are_valid() -> None:
    files = sorted((ROOT / "configs").glob("*.yaml"))
    assert len(files) >= 4
    for file in files:
        assert json.dumps(load_config(file).model_dump(mode="json"))


def test_a_folder_of_an_earlier_version_is_told_what_differs(
    begun: tuple[str, RunFolder, Config],
) -> None:
    scene, folder, config = begun
    about = read_json(folder.run)
    del about["config"]["features"]["profiles"]
    write_json(folder.run, about)
    assert folder.config().features.profiles == ()
    earlier = folder.config()
    write_json(folder.stages, {
        stage: {"status": "done", "fingerprint": value}
        for stage, value in fingerprints(earlier, {
            "reduce": open_scene(scene).fingerprint(), "extract": str(open_scene(scene).label_fingerprint()),
        }).items()
    })  # fmt: skip
    with pytest.raises(UserError, match=r"extract was made with features\.profiles = \[\], .* asks for \[1"):
        make_plan(config, folder, open_scene(scene), "classify", None, None)
