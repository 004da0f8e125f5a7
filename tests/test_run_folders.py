"""Where a run lies, and what it keeps of it: never in the scene, never over a run of something else."""

from pathlib import Path

import numpy as np
import pytest

from pipeline import run
from pipeline.artifacts import RunFolder, read_json, write_json
from pipeline.config import load_config
from pipeline.defaults import Settled
from pipeline.errors import UserError
from pipeline.fingerprints import fingerprints
from pipeline.plan import Plan, make_plan
from pipeline.scene import open_scene, write_scene
from tests.conftest import TINY, refused


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    labels = np.zeros((40, 48), np.uint8)
    labels[:10, :10], labels[20:30, 20:30] = 1, 2
    write_scene(tmp_path / "s.zarr", np.random.default_rng(0).random((6, 40, 48), np.float32), labels=labels)
    return tmp_path / "s.zarr"


@pytest.mark.parametrize("out", [".", "run", "reflectance/run"])
def test_a_run_folder_in_the_scene_is_refused(
    scene: Path, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(scene.rglob("*"))
    for named in (str(scene), scene.resolve().as_uri()):
        refused(capsys, [named, "--config", str(TINY), "--out", str(scene / out)], "lies in the scene")
    assert sorted(scene.rglob("*")) == before


def test_the_name_of_a_run_is_the_scenes(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"s3://bucket/city.zarr/": "city", "a/line.1": "line.1", "a/line.2.zarr": "line.2"}
    assert {given: run._name(given) for given in named} == named
    monkeypatch.chdir(scene)
    assert run._name(".") == "s"
    (scene.parent / "b.zarr").symlink_to(scene)
    assert run._name("../b.zarr") == "b"


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_file_is_no_run_folder(
    dry: list[str], scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    out = str(tmp_path / "notes.txt")
    refused(capsys, [str(scene), "--out", out, *dry], f"--out {out}: expected a folder, found a file")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_demo_leaves_a_run_of_another_scene_alone(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    write_json(folder.run, {"scene": {"url": str(scene)}})
    refused(capsys, ["--demo", "--out", str(folder.path)], "holds a run of another scene")
    assert [path.name for path in folder.path.iterdir()] == ["run.json"]


def test_the_demo_makes_its_scene_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, made = RunFolder(tmp_path / "run"), list[Path]()
    folder.path.mkdir()
    write_json(folder.run, {"scene": {"url": str(folder.path / "scene.zarr")}})
    monkeypatch.setattr("pipeline.demo.make_demo_scene", made.append)
    assert made == [Path(run._demo_scene(folder))]


def test_a_scene_that_a_job_did_not_take_along_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    refused(capsys, ["scene.zarr", "--out", str(tmp_path / "out")], "no such file", "an absolute path")


def test_damaged_metrics_are_no_reason_to_keep_half_a_map(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.map.mkdir(parents=True)
    folder.metrics.write_text('{"oa": 0.')
    folder.forget("map")
    assert not folder.map.exists()
    folder.forget("classify")
    assert not folder.metrics.exists()


def test_the_from_that_an_error_advises_begins_anew(scene: Path, tmp_path: Path) -> None:
    """A member that is gone when ``map`` begins: --from classify must not go on with what is there."""
    config, folder = load_config(TINY), RunFolder(tmp_path / "run")
    folder.path.mkdir()
    plan = Plan("print", {"map": "print"}, ("reduce", "pretrain", "extract", "classify"), ("map",), (), None)
    with pytest.raises(UserError, match=r"missing or damaged.* --from"):
        run._execute(Settled(config, {}), folder, open_scene(str(scene)), plan, "classify")
    assert folder.begun_from() is None
    assert read_json(folder.run)["command"]


def test_what_goes_without_being_made_again_is_told(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(scene), "--config", str(TINY), "--out", str(tmp_path / "run")]
    config, opened = load_config(TINY), open_scene(str(scene))
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    inputs = {"reduce": opened.fingerprint(), "extract": opened.label_fingerprint() or ""}
    records = {stage: {"fingerprint": value, "status": "done"}
               for stage, value in fingerprints(config, inputs).items()}  # fmt: skip
    write_json(folder.stages, records)
    write_json(folder.run, {"scene": {"url": str(scene), "fingerprint": opened.fingerprint()}})
    plan = make_plan(config, folder, opened, "classify", "classify", None)
    assert (plan.todo, plan.forget) == (("classify",), ("classify", "map", "report"))
    lines = plan.table().splitlines()
    assert [line.split(maxsplit=1)[1].strip() for line in lines] == [
        "done", "done", "done", "to do again", "removed", "removed"
    ]  # fmt: skip
    assert run.cli([*arguments, "--from", "classify", "--until", "classify", "--dry-run"]) in (0, 2)
    assert "would remove the results of map, report" in capsys.readouterr().err


def test_edited_labels_are_named_not_the_share_that_follows_from_them(scene: Path, tmp_path: Path) -> None:
    folder, opened = RunFolder(tmp_path / "run"), open_scene(str(scene))
    folder.path.mkdir()
    before, now = (load_config(TINY, [f"split.train_fraction={share}"]) for share in (0.08, 0.05))
    prints = fingerprints(before, {"reduce": opened.fingerprint(), "extract": "other labels"})
    write_json(folder.stages, {stage: {"fingerprint": value, "status": "done"}
                               for stage, value in prints.items()})  # fmt: skip
    about = {"scene": {"url": str(scene), "fingerprint": opened.fingerprint()}, "model": None,
             "config": before.model_dump(mode="json"), "command": "run.py"}  # fmt: skip
    for chosen, words in (
        ({"split.train_fraction": 0.08}, "made from other labels"),
        ({}, "made with split.train_fraction = 0.08, the command asks for 0.05"),
    ):
        write_json(folder.run, about | {"chosen": chosen})
        with pytest.raises(UserError, match=words):
            make_plan(now, folder, opened, None, None, None, {"split.train_fraction": 0.05})


def test_files_that_others_leave_among_markers_are_no_units(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.markers("map").mkdir(parents=True)
    for name in ("3", ".nfs0001", "12"):
        (folder.markers("map") / name).touch()
    assert folder.done_units("map") == {3, 12}
