"""The lock of a run folder: one at a time, the dead are recognised, nothing is left behind."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline import lock
from pipeline.errors import UserError
from pipeline.lock import NAME, locked
from tests.conftest import ROOT


def _write(folder: Path, **changed: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / NAME).write_text(json.dumps(lock._holder() | changed))


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats of 0.1 s, death after 1 s of silence."""
    monkeypatch.setattr(lock, "_BEAT_S", 0.1)
    monkeypatch.setattr(lock, "_SILENT_S", 1.0)
    monkeypatch.setattr(lock, "_POLL_S", 0.05)


def test_held_and_released(tmp_path: Path) -> None:
    with locked(tmp_path):
        holder = json.loads((tmp_path / NAME).read_text())
        assert (holder["pid"], holder["host"]) == (os.getpid(), socket.gethostname())
    assert not list(tmp_path.iterdir())


def test_released_after_an_error_and_new_folders_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "runs" / "new"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir()), "a run that wrote nothing leaves nothing"


def test_a_second_run_is_refused_and_told_who(tmp_path: Path) -> None:
    with locked(tmp_path):
        before = (tmp_path / NAME).read_text()
        words = f"in use by process {os.getpid()} on {socket.gethostname()} since 20"
        with pytest.raises(UserError, match=words), locked(tmp_path):
            raise AssertionError("two runs in one folder")
        assert (tmp_path / NAME).read_text() == before


def test_of_two_at_once_one_wins(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pipeline.lock import locked\n"
        "folder, go, end = map(Path, sys.argv[1:])\n"
        "print('ready', flush=True)\n"
        "while not go.exists(): time.sleep(0.001)\n"
        "with locked(folder):\n"
        "    print('won', flush=True)\n"
        "    while not end.exists(): time.sleep(0.01)"
    )
    (tmp_path / "run").mkdir()
    _write(tmp_path / "run", pid=2**22 + 1)  # no such process: all also take over
    places = [str(tmp_path / name) for name in ("run", "go", "end")]
    racing = [
        subprocess.Popen(
            [sys.executable, "-c", code, *places], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(4)
    ]  # fmt: skip
    for process in racing:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    deadline = time.monotonic() + 60
    while sum(process.poll() is not None for process in racing) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    (tmp_path / "end").touch()
    said = [process.communicate(timeout=60) for process in racing]
    assert sum("won" in out for out, _ in said) == 1, said
    assert sum("in use by" in err for _, err in said) == 3, said


@pytest.mark.parametrize("changed", [{"pid": 2**22 + 1}, {"process_start": 1}], ids=["gone", "id reused"])
def test_a_dead_process_is_taken_over(
    changed: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path, **changed)
    begun = time.monotonic()
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert time.monotonic() - begun < 5
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "took over the lock of process" in said[0]
    assert not list(tmp_path.iterdir())


def test_a_takeover_under_way_is_waited_for(tmp_path: Path, hurried: None) -> None:
    """Until its maker is done, or was dead for a while."""
    _write(tmp_path, pid=2**22 + 1)
    (tmp_path / f"{NAME}.takeover").touch()
    begun = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - begun > 0.9
    assert not list(tmp_path.iterdir())


def test_another_machine_that_beats_is_alive(tmp_path: Path, hurried: None) -> None:
    _write(tmp_path, machine=["elsewhere", "boot", "pid:[1]"], host="elsewhere", pid=1)
    stop = threading.Event()
    mine = (tmp_path / NAME).read_text()
    beat = threading.Thread(target=lock._beat, args=(tmp_path / NAME, mine, stop))
    beat.start()
    try:
        with pytest.raises(UserError, match="process 1 on elsewhere"), locked(tmp_path):
            raise AssertionError("two runs in one folder")
    finally:
        stop.set()
        beat.join()


@pytest.mark.parametrize("text", [None, "", '{"host": "half wri'], ids=["whole", "empty", "half written"])
def test_another_machine_that_is_silent_is_dead(text: str | None, tmp_path: Path, hurried: None) -> None:
    _write(tmp_path, machine=["elsewhere", "boot", "pid:[1]"], pid=os.getpid())
    if text is not None:
        (tmp_path / NAME).write_text(text)
    begun = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - begun > 0.9, "it was given time to show that it is alive"
    os.utime(tmp_path, None)
    _write(tmp_path, machine=["elsewhere", "boot", "pid:[1]"])
    os.utime(tmp_path / NAME, (time.time() - 9, time.time() - 9))
    begun = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - begun < 0.9, "silent for long enough already"


def test_a_lock_that_is_lost_ends_the_run(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pipeline import lock\n"
        "lock._BEAT_S = 0.1\n"
        "run = Path(sys.argv[1])\n"
        "with lock.locked(run): (run / lock.NAME).write_text('{}'); time.sleep(30)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=25, check=False)
    assert ended.returncode == -15
    assert "was lost to another run" in ended.stderr
    assert (tmp_path / NAME).read_text() == "{}", "the lock of the other stays"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="expected a folder that can be written"), locked(tmp_path / "file"):
        raise AssertionError("no folder")
