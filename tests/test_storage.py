"""Places local, in memory and in S3 (moto's server): the same promises, whatever lies below."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import s3fs
import torch
import zarr
from botocore.exceptions import EndpointConnectionError
from safetensors.torch import save_file

from pipeline import ingest, lock, storage
from pipeline.artifacts import RunFolder, read_json, write_json
from pipeline.checkpoints import checkpoints, drop_damaged, load_checkpoint, save_checkpoint
from pipeline.errors import UserError, is_trouble, store_says
from pipeline.lock import NAME, locked
from pipeline.scene import open_scene, write_scene
from pipeline.trained import is_whole, read_weights
from tests.object_store import BUCKET, served


@pytest.fixture(scope="module")
def s3() -> Iterator[s3fs.S3FileSystem]:
    with served() as files:
        yield files


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An empty folder."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    root = {"local": str(tmp_path), "memory": "memory://tests", "s3": f"s3://{BUCKET}"}[request.param]
    found = storage.location(f"{root}/{tmp_path.name}")
    storage.make_folder(found, parents=True)
    return found


def _write(make: Any, target: Path, text: str, then: Callable[[], object]) -> None:
    with make(target) as given:
        (given / target.name if given.is_dir() else given).write_text(text)
        assert not target.exists()
        then()


def test_a_file_appears_whole_or_not_at_all(place: Path) -> None:
    for make in (storage.whole, storage.workshop):
        target = place / "map.tif"
        with pytest.raises(ZeroDivisionError):
            _write(make, target, "half", lambda: 1 / 0)
        assert not target.exists()
        _write(make, target, "whole", lambda: None)
        assert target.read_text() == "whole"
        assert storage.names(place) == ["map.tif"] or storage.is_local(place)
        storage.remove(target)
        assert not target.exists()


def test_removing_a_folder_leaves_what_begins_alike(place: Path) -> None:
    for name in ("map/0", "map/1", "map.tif"):
        storage.make_folder((place / name).parent)
        storage.mark(place / name)
    assert sorted(storage.names(place)) == ["map", "map.tif"]
    assert sorted(storage.names(place / "map")) == ["0", "1"]
    storage.remove(place / "map")
    assert storage.names(place) == ["map.tif"]
    assert storage.names(place / "map") == []
    storage.remove(place / "map")


def test_of_two_at_once_one_creates(place: Path) -> None:
    won: list[str] = []
    start = threading.Barrier(4)

    def race(name: str) -> None:
        start.wait()
        if storage.create(place / NAME, name):
            won.append(name)

    racing = [threading.Thread(target=race, args=(f"run {i}",)) for i in range(4)]
    for thread in racing:
        thread.start()
    for thread in racing:
        thread.join()
    assert len(won) == 1
    assert (place / NAME).read_text() == won[0]


def test_json_and_records(place: Path) -> None:
    folder = RunFolder(place / "run")
    storage.make_folder(folder.path)
    write_json(folder.run, {"a": 1})
    assert read_json(folder.run) == {"a": 1}
    folder.begin("map", "print")
    assert folder.todo("map", range(3)) == [0, 1, 2]
    storage.mark(folder.markers("map") / "1")
    assert folder.todo("map", range(3)) == [0, 2]
    folder.finish("map", wall_s=1.0, pixels=1)
    assert folder.records()["map"]["status"] == "done"
    folder.forget("map")
    assert folder.done_units("map") == set()
    assert folder.records() == {}


def _lay_out(folder: RunFolder, version: int) -> None:
    with storage.laid_out(folder.map) as partial:
        group = zarr.open_group(partial, mode="w", zarr_format=version)
        group.create_array("class", shape=(4,), chunks=(2,), dtype="uint8")


@pytest.mark.parametrize("version", [2, 3])
def test_a_group_is_there_once_its_root_is(
    version: int, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(place)
    storage.make_folder(folder.markers("map"), parents=True)
    storage.mark(folder.markers("map") / "0")
    real, sent = storage._upload, []

    def dies(made: Path, path: Path) -> None:
        sent.append(path.name)
        if path.name in ("zarr.json", ".zgroup") and path.parent == folder.map:
            raise KeyboardInterrupt
        real(made, path)

    monkeypatch.setattr(storage, "_upload", dies)
    if not storage.is_local(place):
        with pytest.raises(KeyboardInterrupt):
            _lay_out(folder, version)
        assert len(sent) > 1, "the root comes last"
        assert folder.map.exists(), "half a group"
    assert folder.must_lay_out("map", folder.map)
    assert folder.done_units("map") == set(), "units of arrays that are gone are not finished"
    monkeypatch.undo()
    _lay_out(folder, version)
    assert not folder.must_lay_out("map", folder.map)
    zarr.open_group(str(folder.map), mode="r+", use_consolidated=False)["class"][:] = 7
    assert (np.asarray(zarr.open_group(str(folder.map), mode="r")["class"][:]) == 7).all()


def _state(step: int) -> dict:
    return {"step": step, "model": {"w": torch.arange(1000.0) + step}, "history": [(step, 0.5)]}


def test_checkpoints(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (3, 6, 9):
        save_checkpoint(place, step, _state(step))
    assert [load_checkpoint(path)["step"] for path in checkpoints(place)] == [6, 9]
    newest = checkpoints(place)[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    drop_damaged(place)
    assert [load_checkpoint(path)["step"] for path in checkpoints(place)] == [6]
    assert f"{newest}: damaged, removed" in capsys.readouterr().err


def test_weights(place: Path) -> None:
    path = place / "unet.safetensors"
    assert not is_whole(path)
    with storage.whole(path) as file:
        save_file({"w": torch.arange(100.0)}, file, {"components": "4"})
    assert is_whole(path)
    tensors, about = read_weights(path)
    assert torch.equal(tensors["w"], torch.arange(100.0))
    assert about == {"components": "4"}
    path.write_bytes(path.read_bytes()[:-10])
    assert not is_whole(path)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats of 0.2 s, death after 3 s of silence (S3 tells times in whole seconds)."""
    monkeypatch.setattr(lock, "_BEAT_S", 0.2)
    monkeypatch.setattr(lock, "_SILENT_S", 3.0)
    monkeypatch.setattr(lock, "_POLL_S", 0.1)


def test_the_lock(place: Path, hurried: None, capsys: pytest.CaptureFixture[str]) -> None:
    run, elsewhere = place / "run", {"machine": ["elsewhere", "boot", "pid:[1]"], "host": "elsewhere"}
    with locked(run):
        with pytest.raises(UserError, match="in use by process"), locked(run):
            raise AssertionError("two runs in one folder")
        time.sleep(0.5)  # two beats
    assert storage.names(run) == []
    storage.make_folder(run)
    write_json(run / NAME, lock._holder() | {"pid": 2**22 + 1})
    with locked(run):
        assert "took over the lock of process" in capsys.readouterr().err
    write_json(run / NAME, lock._holder() | elsewhere)
    mine, stop = (run / NAME).read_text(), threading.Event()
    beat = threading.Thread(target=lock._beat, args=(run / NAME, mine, stop))
    beat.start()
    try:
        with pytest.raises(UserError, match="on elsewhere"), locked(run):
            raise AssertionError("two runs in one folder")
    finally:
        stop.set()
        beat.join()
    with locked(run):
        assert "took over the lock" in capsys.readouterr().err, "silent for long enough"
    assert storage.names(run) == []


@pytest.mark.parametrize("url", ["s3://KEY:word@bucket/run", "https://user@host/scene.zarr"])
def test_credentials_in_a_url_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(UserError, match="must not hold credentials") as caught:
        storage.location(url)
    assert not any(secret in str(caught.value) for secret in ("KEY:", "word", "user"))
    assert storage.location("s3://bucket/a@b/run").name == "run"


def test_a_password_in_the_endpoint_is_not_shown() -> None:
    said = store_says(OSError('Could not connect to "http://me:word@127.0.0.1:1/bucket"'))
    assert said == 'Could not connect to "http://…@127.0.0.1:1/bucket"'


def test_a_scene_written_there_is_the_one_written_here(s3: s3fs.S3FileSystem, tmp_path: Path) -> None:
    np.save(tmp_path / "cube.npy", np.random.default_rng(3).random((40, 48, 6), np.float32))
    url = f"s3://{BUCKET}/scenes/ingested.zarr"
    for target in (url, str(tmp_path / "local.zarr")):
        assert ingest.main([str(tmp_path / "cube.npy"), target, "--chunk", "16"]) == 0
    there, here = open_scene(url), open_scene(str(tmp_path / "local.zarr"))
    assert there.fingerprint() == here.fingerprint()
    assert np.array_equal(there.read(0, 40, 0, 48), here.read(0, 40, 0, 48))


def test_a_scene_is_not_written_over_anything(
    s3: s3fs.S3FileSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "cube.npy", np.ones((8, 8, 3), np.float32))
    s3.pipe_file(f"{BUCKET}/thesis/chapter.tex", b"years of work")
    assert ingest.main([str(tmp_path / "cube.npy"), f"s3://{BUCKET}/thesis"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert s3.cat(f"{BUCKET}/thesis/chapter.tex") == b"years of work"
    assert ingest.main([f"s3://{BUCKET}/cube.npy", str(tmp_path / "scene.zarr")]) == 2
    assert "only SCENE may be a URL" in capsys.readouterr().err


def test_half_a_scene_is_none(s3: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"s3://{BUCKET}/scenes/half.zarr"

    def killed(*arguments: object, **options: object) -> None:
        assert s3.find(url)
        assert not s3.exists(f"{url}/zarr.json")
        raise KeyboardInterrupt

    monkeypatch.setattr("dask.array.store", killed)
    with pytest.raises(KeyboardInterrupt):
        write_scene(url, np.ones((3, 8, 8), np.float32))
    assert not s3.find(url)


def test_what_cannot_be_read_now_is_not_damaged(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(place, 3, _state(3))

    def unreachable(path: Path) -> None:
        raise EndpointConnectionError(endpoint_url="http://127.0.0.1:9")

    monkeypatch.setattr(storage, "local_copy", unreachable)
    with pytest.raises(EndpointConnectionError):
        drop_damaged(place)
    assert len(checkpoints(place)) == 1


def test_a_store_that_does_not_answer_is_asked_again(
    s3: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(EndpointConnectionError) as caught:
            storage.mark(storage.location(f"s3://{BUCKET}/x"))
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
    assert is_trouble(caught.value), "reads are tried again after it"
    assert "check AWS_ENDPOINT_URL" in store_says(caught.value)


@pytest.mark.parametrize("code", ["PreconditionFailed", "412", "ConditionalRequestConflict", "AccessDenied"])
def test_whatever_a_store_says_of_a_file_that_is_there(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MinIO answers without the condition that failed; s3fs then makes an OSError of it."""

    class Answer(Exception):
        response: ClassVar = {"Error": {"Code": code}}

    class Store:
        def pipe_file(self, *_: Any, **__: Any) -> None:
            raise OSError(22, "At least one of the pre-conditions did not hold") from Answer()

    monkeypatch.setattr(storage, "is_local", lambda _: False)
    monkeypatch.setattr(storage, "_store", lambda _: Store())
    monkeypatch.setattr(storage, "_key", str)
    if code == "AccessDenied":
        with pytest.raises(OSError, match="pre-conditions"):
            storage.create(Path("lock"), "mine")
    else:
        assert storage.create(Path("lock"), "mine") is False


def test_a_lock_that_was_sent_twice_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(path: Path, text: str) -> bool:
        path.write_text(text)
        return False

    monkeypatch.setattr(storage, "create", twice)
    with locked(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").exists()
    assert not (tmp_path / "run").exists()


def test_a_file_url_is_a_local_place(tmp_path: Path) -> None:
    named = tmp_path / "with space"
    assert storage.location(named.as_uri()) == named
    assert storage.is_local(storage.location(named.as_uri()))
