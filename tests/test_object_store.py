"""Scene, run folder and model in S3, against moto's server on loopback in a process of its own.

A run there is killed and resumed, and gives the bits of a local run; the credentials appear nowhere.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import s3fs
import zarr

from pipeline.artifacts import STAGES, RunFolder, read_json
from pipeline.run import cli
from pipeline.scene import write_scene
from pipeline.storage import location
from tests.conftest import ROOT, TINY, refused
from tests.faults import Driver, assert_same
from tests.object_store import BUCKET, KEY, SECRET, objects, served, upload

OUT = f"s3://{BUCKET}/runs/tiny"


@pytest.fixture(scope="module", autouse=True)
def s3() -> Iterator[s3fs.S3FileSystem]:
    """The server; its environment stands before Ray starts, so that workers inherit it."""
    with served() as files:
        yield files


@pytest.fixture(scope="module")
def scene(s3: s3fs.S3FileSystem, tiny_scene: Path) -> str:
    """The tiny scene in the bucket."""
    return upload(s3, tiny_scene, "scenes/tiny.zarr")


def _command(scene: str, *more: str) -> list[str]:
    return [scene, "--config", str(TINY), "--out", OUT, *more]


@pytest.mark.cluster
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_is_killed_resumed_and_like_a_local_one(
    s3: s3fs.S3FileSystem, scene: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(_command(scene, "--until", "classify")) == 0
    driver = Driver(scene, OUT)
    marks = "runs/tiny/.done/map"
    while driver.process.poll() is None and not objects(s3, marks):
        time.sleep(0.05)
    driver.process.kill()
    assert driver.wait() == -9, driver.said
    assert s3.exists(f"{BUCKET}/runs/tiny/.lock")
    before = objects(s3, marks)
    time.sleep(1.1)  # the store tells times in whole seconds
    assert cli(_command(scene)) == 0
    output = capsys.readouterr()
    assert "took over the lock of process" in output.err
    after = objects(s3, "runs/tiny")
    assert before.items() <= after.items(), "finished tiles are not made again"
    assert f"{BUCKET}/runs/tiny/.lock" not in after

    assert cli(_command(scene)) == 0
    again = objects(s3, "runs/tiny")
    assert {name for name in after | again if after.get(name) != again.get(name)} <= {
        f"{BUCKET}/runs/tiny/run.json"
    }

    local = tmp_path / "run"
    s3.get(f"{BUCKET}/runs/tiny/", f"{local}/", recursive=True)
    assert_same(local, finished)
    for name in ("map.tif", "confidence.tif", "map_preview.png"):
        assert (local / name).read_bytes() == (finished / name).read_bytes(), name
    assert list(read_json(local / "stages.json")) == list(STAGES)
    said = [driver.said, output.out, output.err, capsys.readouterr().err]
    said += [path.read_bytes().decode("latin-1") for path in local.rglob("*") if path.is_file()]
    assert not any(word in text for word in (KEY, SECRET) for text in said)

    arguments = [scene, "--out", str(tmp_path / "other"), "--model", OUT]
    assert cli(arguments) == 0
    ours, theirs = (zarr.open_group(str(path / "map.zarr"), mode="r") for path in (tmp_path / "other", local))
    for name in ("class", "confidence", "entropy"):
        assert np.array_equal(np.asarray(ours[name]), np.asarray(theirs[name]), equal_nan=True), name


def _other(files: s3fs.S3FileSystem) -> str:
    """Another scene in the bucket."""
    url = f"s3://{BUCKET}/scenes/other.zarr"
    labels = np.zeros((40, 48), np.uint8)
    labels[:10, :10], labels[20:30, 20:30] = 1, 2
    if not files.exists(url):
        write_scene(url, np.random.default_rng(0).random((6, 40, 48), np.float32), labels=labels)
    return url


def test_a_folder_of_another_scene_is_refused(
    s3: s3fs.S3FileSystem, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"s3://{BUCKET}/runs/taken"
    s3.pipe_file(f"{BUCKET}/runs/taken/run.json", b'{"scene": {"fingerprint": "x", "url": "s3://a/b.zarr"}}')
    refused(capsys, [_other(s3), "--config", str(TINY), "--out", out], "another scene (s3://a/b.zarr)")
    s3.pipe_file(f"{BUCKET}/runs/papers/thesis.tex", b"years of work")
    out = f"s3://{BUCKET}/runs/papers"
    refused(capsys, [_other(s3), "--config", str(TINY), "--out", out], "expected a new folder")
    assert list(objects(s3, "runs/papers")) == [f"{BUCKET}/runs/papers/thesis.tex"]


def test_dry_run(s3: s3fs.S3FileSystem, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"s3://{BUCKET}/runs/dry"
    s3.call_s3("put_object", Bucket=BUCKET, Key="runs/dry/", Body=b"")  # as consoles make a folder
    assert cli([_other(s3), "--config", str(TINY), "--out", out, "--dry-run"]) == 0
    assert "an object store" in capsys.readouterr().out
    assert not {name for name in objects(s3, "runs/dry") if not name.endswith("/")}


def test_a_missing_bucket(s3: s3fs.S3FileSystem, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["s3://buckett/scene.zarr"], "scene s3://buckett/scene.zarr", "no bucket buckett")
    out = ["--config", str(TINY), "--out", "s3://buckett/run"]
    refused(capsys, [_other(s3), *out], "--out s3://buckett/run", "bucket does not exist")
    refused(capsys, [f"s3://{BUCKET}/none.zarr"], "expected a Zarr group, found none")
    refused(capsys, [_other(s3), "--model", f"s3://{BUCKET}/none"], "no such run folder")


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The environment may be changed; connections are made anew."""
    s3fs.S3FileSystem.clear_instance_cache()
    yield monkeypatch
    s3fs.S3FileSystem.clear_instance_cache()


def test_missing_credentials(
    s3: s3fs.S3FileSystem, tmp_path: Path, changed: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scene(tmp_path / "s.zarr", np.ones((6, 8, 8), np.float32))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        changed.delenv(name)
    words = ("Unable to locate credentials", "set AWS_ACCESS_KEY_ID")
    refused(capsys, [f"s3://{BUCKET}/scenes/tiny.zarr"], *words)
    refused(capsys, [str(tmp_path / "s.zarr"), "--out", f"s3://{BUCKET}/x"], "--out s3://", *words)


def _said(code: str, arguments: list[str], **environment: str) -> str:
    """What the command writes to stderr, as a process of its own that ends with exit code 2."""
    code += "\nimport sys; from pipeline.run import cli; sys.exit(cli(sys.argv[1:]))"
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr


@pytest.mark.long
def test_an_endpoint_that_does_not_answer(tmp_path: Path) -> None:
    write_scene(tmp_path / "s.zarr", np.ones((6, 8, 8), np.float32))
    for arguments in ([f"s3://{BUCKET}/s.zarr"], [str(tmp_path / "s.zarr"), "--out", f"s3://{BUCKET}/run"]):
        said = _said("", arguments, AWS_ENDPOINT_URL="http://127.0.0.1:9")
        assert "Could not connect" in said
        assert "check AWS_ENDPOINT_URL" in said


@pytest.mark.parametrize("arguments", [["s3://b/s.zarr"], ["s.zarr", "--out", "s3://b/run"]])
def test_a_missing_package_is_named(arguments: list[str]) -> None:
    said = _said("import sys; sys.modules['s3fs'] = None", arguments)
    assert "pip install s3fs universal_pathlib" in said


def test_credentials_in_urls(s3: s3fs.S3FileSystem, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        [f"s3://{KEY}:{SECRET}@bucket/s.zarr"],
        [_other(s3), "--out", f"s3://{KEY}:{SECRET}@bucket/run"],
        [_other(s3), "--model", f"s3://{KEY}:{SECRET}@bucket/run"],
    ):
        assert cli(arguments) == 2
        output = capsys.readouterr()
        assert "must not hold credentials" in output.err
        assert KEY not in output.err
        assert SECRET not in output.err


def test_what_is_removed_there_is_said(s3: s3fs.S3FileSystem) -> None:
    """A removed root of map.zarr: its tiles count as not made, whatever the markers say."""
    folder = RunFolder(location(f"s3://{BUCKET}/runs/removed"))
    s3.pipe_file(f"{BUCKET}/runs/removed/.done/map/0", b"")
    s3.pipe_file(f"{BUCKET}/runs/removed/map.zarr/class/0.0", b"half")
    assert folder.done_units("map") == {0}
    assert folder.must_lay_out("map", folder.map)
    assert folder.todo("map", range(2)) == [0, 1]
