"""Causing faults: commands that can be stopped anywhere, and what must be the same afterwards."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import zarr
from safetensors.torch import load_file

from pipeline.artifacts import read_json
from tests.conftest import ROOT, TINY

_LIMIT_S = 600
# Ray gives a node 30 seconds to start, which a busy machine may not meet; the same command goes on.
_SLOW_START = "timed out during startup"
_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


@contextmanager
def _hearing_interrupts() -> Iterator[None]:
    """For what is started here: a shell's background jobs ignore SIGINT, and so would their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Driver:
    """``pipeline/run.py`` in a process of its own, with a Ray of its own unless there is RAY_ADDRESS.

    ``within`` is a command that runs it, such as that of a network namespace.
    """

    def __init__(
        self,
        scene: Path | str,
        out: Path | str,
        *more: str,
        script: Path = ROOT / "pipeline" / "run.py",
        within: Sequence[str] = (),
    ) -> None:
        self.mark = f"MTMSD_FAULT={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - read as long as this lives
        command = [*within, sys.executable, str(script), str(scene), "--config", str(TINY), "--out", str(out)]
        command += more
        with _hearing_interrupts():
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=self._log, stderr=subprocess.STDOUT,
                env=os.environ | {name: value, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip

    @property
    def said(self) -> str:
        """Everything on stdout and stderr so far."""
        log = self._log.fileno()
        return os.pread(log, os.fstat(log).st_size, 0).decode(errors="replace")  # may end within a character

    def wait_for(self, pattern: str) -> bool:
        """Whether this was said before the process ended."""
        begun = time.monotonic()
        while time.monotonic() - begun < _LIMIT_S:
            ended = self.process.poll() is not None
            if re.search(pattern, self.said, re.MULTILINE):
                return True
            if ended:
                return False
            time.sleep(0.05)
        raise AssertionError(f"{pattern} was not said in {_LIMIT_S} s: {self.said}")

    def wait(self) -> int:
        """The exit code."""
        return self.process.wait(_LIMIT_S)

    def family(self) -> dict[int, str]:
        """Living processes that come from this command, the command itself included: id, command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if self.mark.encode() not in (entry / "environ").read_bytes().split(b"\0"):
                    continue
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def kill_one(self, title: str) -> bool:
        """SIGKILL to one process whose command line begins so."""
        for pid, line in self.family().items():
            if line.startswith(title):
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    def nothing_left(self, within_s: float, agents: bool = True) -> dict[int, str]:
        """Processes of this command that still live after some time; perhaps but for Ray's agents."""
        begun = time.monotonic()
        while (left := self._left(agents)) and time.monotonic() - begun < within_s:
            time.sleep(0.2)
        return left

    def _left(self, agents: bool) -> dict[int, str]:
        found = self.family()
        return {pid: line for pid, line in found.items() if agents or not line.startswith(_AGENTS)}


def begun(scene: Path, out: Path, *more: str, script: Path = ROOT / "pipeline" / "run.py") -> Driver:
    """A command whose Ray has started."""
    for _ in range(3):
        driver = Driver(scene, out, *more, script=script)
        if driver.wait_for(r"^Ray dashboard|^[a-z]+ +: "):
            return driver
        assert _SLOW_START in driver.said, driver.said
    raise AssertionError(driver.said)


def finish(scene: Path, out: Path, *more: str) -> str:
    """Give the same command until it ends well, and return what it said."""
    for _ in range(3):
        driver = Driver(scene, out, *more)
        if driver.wait() == 0:
            return driver.said
        assert _SLOW_START in driver.said, driver.said
    raise AssertionError(driver.said)


def marked(out: Path) -> dict[str, int]:
    """Finished units, and when their markers were written."""
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.glob(".done/*/*")}


def strays(out: Path) -> list[str]:
    """What a finished run must not hold."""
    return [
        str(path.relative_to(out))
        for path in out.rglob("*")
        if ".partial" in path.name or ".lock" in path.name
    ]


def assert_same(out: Path, undisturbed: Path) -> None:
    """Arrays of the reduced cube, the features and the map, metrics and weights agree to the last bit."""
    for name in ("reduced.zarr", "features.zarr", "map.zarr"):
        mine, theirs = (
            zarr.open_group(folder / name, mode="r", use_consolidated=False) for folder in (out, undisturbed)
        )
        names = dict(theirs.arrays())
        assert names.keys() == dict(mine.arrays()).keys(), name
        for array in names:
            ours, expected = np.asarray(mine[array][...]), np.asarray(theirs[array][...])
            assert ours.tobytes() == expected.tobytes(), f"{name}/{array}"
    for name in ("metrics.json", "spectral.json", "classifier/selection.json", "pretrain/history.json"):
        if (undisturbed / name).exists():  # one that takes no U-Net has not pretrained
            assert read_json(out / name) == read_json(undisturbed / name), name
    weights = [*undisturbed.glob("pretrain/*.safetensors"), *undisturbed.glob("classifier/*.safetensors")]
    assert undisturbed / "classifier" / "member_0.safetensors" in weights
    for name in (path.relative_to(undisturbed) for path in weights):  # metadata have no order
        ours, expected = load_file(out / name), load_file(undisturbed / name)
        assert ours.keys() == expected.keys(), name
        assert all(torch.equal(ours[key], expected[key]) for key in expected), name
    for name in ("map.tif", "confidence.tif"):
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert {r["status"] for r in read_json(out / "stages.json").values()} == {"done"}
    assert not strays(out)
