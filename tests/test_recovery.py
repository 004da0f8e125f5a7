"""What a killed run, a bad disk or a careless hand leaves behind: swept, made again, or said in one line."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
import torch
import zarr
from ray.exceptions import RayTaskError
from safetensors.torch import save_file

from pipeline import run, units
from pipeline.artifacts import RunFolder, read_json, write_json
from pipeline.checkpoints import checkpoints, drop_damaged, load_checkpoint, save_checkpoint
from pipeline.config import Config, load_config
from pipeline.defaults import Settled
from pipeline.errors import UserError, run_command
from pipeline.interrupt import interruptible
from pipeline.plan import make_plan
from pipeline.readers import Reduced
from pipeline.scene import open_scene
from pipeline.trained import check_trained, is_trained, is_whole
from pipeline.units import UnitSource
from tests.conftest import ROOT, TINY, refused

STRAYS = {
    "reduce": ["reduced.zarr.partial/zarr.json", "reduced.zarr/reduced/c/0/0/0.ab12.partial"],
    "pretrain": ["pretrain/step-00000003.partial", "pretrain/unet.partial"],
    "extract": ["features.zarr.partial/zarr.json", "classifier/selection.json.partial"],
    "classify": ["classifier/member_0.partial", "metrics.json.partial"],
    "map": ["map.zarr.partial/zarr.json", "map.zarr/class/c/0/0.ab12.partial", ".map.tif.x1/map.tif",
            ".map.tif.aux.xml.partial", "map_preview.partial.png"],
    "report": ["report.html.partial", ".map.partial.gpkg", "areas.json.partial", "stac.json.partial"],
}  # fmt: skip


@pytest.mark.parametrize("stage", STRAYS)
def test_strays_go_when_their_stage_begins(stage: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(stage, "same")
    kept = ["reduced.zarr/reduced/c/0/0/0", "pretrain/step-00000003.pt", "map.zarr/class/c/0/0", "map.tif"]
    for name in (*STRAYS[stage], *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    folder.begin(stage, "same")
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*kept, "stages.json"}
    assert not list(tmp_path.glob("*.partial"))


def test_a_stage_that_is_half_deleted_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    folder.begin("map", "print")
    folder.finish("map", wall_s=1.0, pixels=1)
    folder.map.mkdir()

    def dies(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.storage.shutil.rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        folder.forget("map")
    assert "map" not in folder.records()


def test_scores_of_the_map_go_with_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    scores = {"map_oa": 0.5, "map_oa_pixel": 0.4, "map_confusion": [[1]]}
    write_json(folder.metrics, {"oa": 0.6, **scores})
    folder.forget("report")
    assert read_json(folder.metrics)["map_oa"] == 0.5
    folder.forget("map")
    assert read_json(folder.metrics) == {"oa": 0.6}


def _state(step: int) -> dict:
    return {"step": step, "model": {"w": torch.arange(1000.0) + step}, "history": [(step, 0.5)]}


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (3, 6, 9):
        assert save_checkpoint(tmp_path, step, _state(step)) == checkpoints(tmp_path)[-1].stat().st_size
    assert [load_checkpoint(path)["step"] for path in checkpoints(tmp_path)] == [6, 9]


@pytest.mark.parametrize("damage", ["truncated", "empty", "a bit flipped", "garbage"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (3, 6):
        save_checkpoint(tmp_path, step, _state(step))
    newest = checkpoints(tmp_path)[-1]
    content = bytearray(newest.read_bytes())
    content[content.index(torch.arange(6.0, 20.0).numpy().tobytes())] ^= 1
    damaged = {"truncated": content[:-100], "empty": b"", "a bit flipped": content, "garbage": b"PK" * 99}
    newest.write_bytes(damaged[damage])
    drop_damaged(tmp_path)
    assert [load_checkpoint(path)["step"] for path in checkpoints(tmp_path)] == [3]
    said = capsys.readouterr().err
    assert f"{newest}: damaged, removed" in said
    assert said.count("\n") == 1


def test_whole_checkpoints_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(tmp_path, 3, _state(3))
    drop_damaged(tmp_path)
    assert len(checkpoints(tmp_path)) == 1
    assert not capsys.readouterr().err


def test_truncated_weights_are_noticed(tmp_path: Path) -> None:
    folder, config = RunFolder(tmp_path), Config()
    members = [folder.member(index) for index in range(config.classifier.members)]
    paths = [folder.unet, *members, *(folder.expert(name) for name in config.experts)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        save_file({"w": torch.zeros(100)}, path)
    write_json(folder.calibration, {"temperature": 1.0})
    check_trained(config, folder, "map")
    expert = folder.expert("spectra")
    for path, maker in ((folder.unet, "pretrain"), (folder.member(1), "classify"), (expert, "classify")):
        content = path.read_bytes()
        path.write_bytes(content[:-10])
        assert not is_whole(path)
        with pytest.raises(UserError, match=f"{path}: missing or damaged.*--from {maker}"):
            check_trained(config, folder, "map")
        path.write_bytes(content)
    folder.calibration.unlink()
    with pytest.raises(UserError, match=r"calibration.json: missing or damaged.*--from classify"):
        check_trained(config, folder, "map")
    folder.unet.unlink()
    with pytest.raises(UserError, match=r"unet.safetensors: missing"):
        check_trained(config, folder, "extract")
    check_trained(config, folder, "pretrain")


def test_a_member_counts_only_with_what_its_twin_said(tmp_path: Path) -> None:
    folder, config = RunFolder(tmp_path), Config()
    folder.classifier.mkdir()
    save_file({"w": torch.zeros(100)}, folder.member(0))
    assert not is_trained(config, folder, 0)
    save_file({"w": torch.zeros(100)}, folder.held_out(0))
    assert is_trained(config, folder, 0)
    folder.held_out(0).write_bytes(folder.held_out(0).read_bytes()[:-10])
    assert not is_trained(config, folder, 0)
    plain = Config.model_validate({"classifier": {"calibrate": False}})
    assert is_trained(plain, folder, 0)


@pytest.mark.parametrize("text", ["", '{"reduce": {"stat', "\x00\x00"])
def test_unreadable_records(
    text: str, tiny_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    about = {"scene": {"fingerprint": open_scene(str(tiny_scene)).fingerprint()}}
    (out / "run.json").write_text(str(about).replace("'", '"'))
    (out / "stages.json").write_text(text)
    refused(capsys, [str(tiny_scene), "--config", str(TINY), "--out", str(out)], "stages.json: damaged")
    assert (out / "stages.json").read_text() == text


@pytest.mark.parametrize("content", [b"", b"not what zstd writes", None], ids=["empty", "garbage", "cut"])
def test_a_damaged_chunk_of_the_scene_is_named(
    content: bytes | None, tiny_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = Path(shutil.copytree(tiny_scene, tmp_path / "scene.zarr"))
    chunk = scene / "reflectance" / "c" / "0" / "0" / "1"
    chunk.write_bytes(content if content is not None else chunk.read_bytes()[:-20])
    arguments = [str(scene), "--config", str(TINY), "--out", str(tmp_path / "out")]
    refused(capsys, arguments, "scene.zarr/reflectance", "chunk at c/0/0/1 cannot be decoded")
    assert not (tmp_path / "out").exists()


def test_a_damaged_chunk_of_the_reduced_cube_is_named(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "reduced.zarr", mode="w")
    array = group.create_array("reduced", shape=(2, 8, 8), chunks=(2, 4, 4), dtype="float32")
    array[:] = 1.0
    (tmp_path / "reduced.zarr" / "reduced" / "c" / "0" / "1" / "0").write_bytes(b"?")
    reduced = Reduced(str(tmp_path / "reduced.zarr"))
    assert (reduced.read(0, 4, 0, 8) == 1).all()
    with pytest.raises(UserError, match=r"reduced: chunk at c/0/1/0 cannot be decoded"):
        reduced.read(0, 8, 0, 8)


@pytest.mark.parametrize("failures", [2, 3, 4])
def test_reads_that_fail_are_tried_again(failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(units.time, "sleep", pauses.append)
    left = [failures]

    def reader(unit: int) -> dict:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return {"value": np.full(2, unit)}

    task = UnitSource("tiles", [7], reader, 16).get_read_tasks(1)[0]
    if failures == 4:
        with pytest.raises(OSError, match="Input/output error"):
            list(task())
    else:
        assert len(list(task())) == 1
    assert pauses == [0.5, 2.0, 8.0][:failures]


def _ends_with(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    @click.command()
    def command() -> None:
        raise error

    return run_command(command, "run", []), capsys.readouterr().err.strip()


def test_a_command_that_does_not_resume_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def command() -> None:
        raise KeyboardInterrupt

    assert run_command(command, "ingest", [], resumes=False) == 1
    assert capsys.readouterr().err.strip() == "interrupted; the same command begins anew"


def test_errors_of_workers_end_like_our_own(capsys: pytest.CaptureFixture[str]) -> None:
    wrapped = RayTaskError("read", "Traceback: long", UserError("array x: chunk 3 is damaged"))
    outer = RuntimeError("training failed")
    outer.worker_failures = {0: wrapped.as_instanceof_cause()}  # type: ignore[attr-defined]
    for error in (wrapped, wrapped.as_instanceof_cause(), outer):
        assert _ends_with(error, capsys) == (2, "error: array x: chunk 3 is damaged")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/run/map.zarr/c/0")
    code, said = _ends_with(RayTaskError("write", "Traceback", full), capsys)
    assert code == 2
    assert said.startswith("error: No space left on device while writing /run/map.zarr/c/0; ")
    with pytest.raises(ZeroDivisionError):
        _ends_with(ZeroDivisionError(), capsys)
    assert _ends_with(KeyboardInterrupt(), capsys) == (1, "interrupted; the same command goes on from here")


def test_an_object_that_a_signal_cuts_off_half_made_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    class HalfMade:
        def __init__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            self.executor = None

        def __del__(self) -> None:
            assert self.executor is None

    @click.command()
    def command() -> None:
        with interruptible():
            HalfMade()

    hook = sys.unraisablehook
    assert run_command(command, "run", []) == 1
    assert capfd.readouterr().err.strip() == "interrupted; the same command goes on from here"
    assert sys.unraisablehook is hook


def test_a_chunk_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """Zarr writes a chunk beside its place and renames it: a kill leaves the old one or the new one."""
    array = zarr.create_array(tmp_path / "a.zarr", shape=(1 << 21,), chunks=(1 << 21,), dtype="int64")
    array[:] = 0
    code = (
        "import sys, zarr\n"
        "array = zarr.open_array(sys.argv[1], mode='r+')\n"
        "print('begun', flush=True)\n"
        "for value in range(1, 10**6): array[:] = value\n"
    )
    for delay in (0.05, 0.13, 0.21, 0.34):
        command = [sys.executable, "-c", code, str(tmp_path / "a.zarr")]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(delay)
            writer.send_signal(signal.SIGKILL)
        assert len(np.unique(array[:])) == 1


def test_json_is_damaged_or_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a.json: damaged, expected JSON"):
        read_json(tmp_path / "a.json")


def test_from_that_dies_before_it_has_forgotten_begins_anew(
    tiny_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(self: RunFolder, stage: str) -> None:
        raise KeyboardInterrupt

    folder, config = RunFolder(tmp_path), load_config(TINY)
    scene = open_scene(str(tiny_scene))
    write_json(folder.run, {"config": config.model_dump(mode="json"),
                            "scene": {"url": scene.url, "fingerprint": scene.fingerprint()}})  # fmt: skip
    settled = Settled(config, {})
    prints = make_plan(config, folder, scene, None, None, None).fingerprints
    for stage in ("reduce", "pretrain"):
        folder.begin(stage, prints[stage])
        folder.finish(stage, wall_s=1.0, pixels=1)
    monkeypatch.setattr(RunFolder, "forget", dies)
    plan = make_plan(config, folder, scene, "pretrain", "pretrain", None)
    with pytest.raises(KeyboardInterrupt):
        run._execute(settled, folder, scene, plan, "pretrain")
    assert make_plan(config, folder, scene, "pretrain", "pretrain", None).forget == ("pretrain",)
    monkeypatch.undo()
    monkeypatch.setattr(run, "_run_stages", lambda *_: run._note(folder, {"killed": True}))
    run._execute(settled, folder, scene, plan, "pretrain")
    assert (folder.begun_from(), folder.records().keys()) == (None, {"reduce"})
