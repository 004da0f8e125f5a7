"""One run at a time in a run folder: ``.lock`` says who is at work there, and dies with them.

The file is created exclusively and touched every 10 seconds. Whether its holder is alive:

- same machine (name, boot and process namespace): alive if its process exists and began when the lock says;
- another machine: alive if the file is touched while we watch; dead if it was not for 120 seconds by the
  clock of the file system (a file server may show a touch a minute late) or of the object store.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.errors import UserError, is_trouble, store_says

NAME = ".lock"
_BEAT_S = 10.0
_SILENT_S = 120.0
_POLL_S = 1.0


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder, which is created for it, and removed again if it stays empty.

    Raises:
        UserError: Another run works in the folder, or the folder cannot be written.
    """
    local = storage.is_local(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()] if local else []
    lock, mine = folder / NAME, json.dumps(_holder())
    try:
        storage.make_folder(folder, parents=True)
        while not storage.create(lock, mine) and _read(lock) != mine:  # a PUT that was sent twice
            _take_from_the_dead(lock)
    except Exception as error:
        if not is_trouble(error):
            raise
        said = store_says(error)
        raise UserError(f"--out {folder}: expected a folder that can be written, found {said}") from None
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(lock, mine, stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        if _read(lock) == mine:
            lock.unlink(missing_ok=True)
        for path in made:
            try:
                path.rmdir()
            except OSError:  # not empty: the run has written something
                break


def _holder() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(), "pid": pid, "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": _machine(), "process_start": _process_start(pid), "id": uuid.uuid4().hex,
    }  # fmt: skip


def _machine() -> list[str] | None:
    """What must agree for process ids to mean the same; None where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return [socket.gethostname(), boot, os.readlink("/proc/self/ns/pid")]
    except OSError:
        return None


def _process_start(pid: int) -> int | None:
    """When a process began, clock ticks since boot; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _read(lock: Path) -> str | None:
    try:
        return lock.read_text()
    except PermissionError:  # will not change by asking again
        raise
    except OSError:
        return None


def _parsed(text: str) -> dict[str, Any]:
    """The holder; empty if it died while it wrote (then only the time of the file counts)."""
    try:
        return dict(json.loads(text))
    except ValueError:
        return {}


def _take_from_the_dead(lock: Path) -> None:
    """Return when the lock is gone: released, or its holder dead; say so in the second case.

    A second file, held for an instant, keeps two runs from both removing the lock: the slower one
    would remove the faster one's new lock.
    """
    text = _read(lock)
    if text is None:
        return
    if not _is_dead(lock, text):
        holder = _parsed(text)
        raise UserError(
            f"--out {lock.parent}: in use by process {holder.get('pid', '?')} on {holder.get('host', '?')} "
            f"since {holder.get('since', '?')}; wait for it or stop it, or choose another --out"
        )
    guard = lock.with_name(f"{NAME}.takeover")
    if not storage.create(guard, ""):
        if _age(guard) > _SILENT_S:  # its maker died in that instant
            guard.unlink(missing_ok=True)
        time.sleep(_POLL_S)
        return
    try:
        if _read(lock) == text:
            lock.unlink()
            holder = _parsed(text)
            print(
                f"took over the lock of process {holder.get('pid', '?')} on {holder.get('host', '?')}, "
                f"which ended without releasing it (it began {holder.get('since', '?')})",
                file=sys.stderr,
            )
    finally:
        guard.unlink(missing_ok=True)


def _is_dead(lock: Path, text: str) -> bool:
    holder = _parsed(text)
    if holder and holder["machine"] is not None and holder["machine"] == _machine():
        return bool(_process_start(holder["pid"]) != holder["process_start"])
    seen = storage.touched_ns(lock)
    if _age(lock) <= _SILENT_S:
        print(f"watching whether the run that holds {lock} is alive", file=sys.stderr)
    while _age(lock) <= _SILENT_S:
        if storage.touched_ns(lock) != seen:
            return _read(lock) is None  # gone: released meanwhile
        time.sleep(_POLL_S)
    return True


def _age(path: Path) -> float:
    """Seconds since a file was touched, by the clock of its file system."""
    probe = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    storage.mark(probe)
    try:
        return (storage.touched_ns(probe) - storage.touched_ns(path)) / 1e9
    finally:
        probe.unlink(missing_ok=True)


def _beat(lock: Path, mine: str, stop: threading.Event) -> None:
    """Show that we are alive; end the run if the lock was lost (after a pause of minutes, say)."""
    while not stop.wait(_BEAT_S):
        try:
            if lock.read_text() == mine:
                storage.touch(lock, mine)
                continue
        except FileNotFoundError:
            pass
        except Exception as error:
            if is_trouble(error):  # a file server that stumbles is no reason to stop
                continue
            raise
        print(f"{lock} was lost to another run; this one ends", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGTERM)
        return
