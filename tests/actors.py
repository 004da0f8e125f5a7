"""Actors for Ray's processes, which import them by name."""

import os
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.data.block import Block

from pipeline.units import ChunkSink


class LateSecond:
    """The second actor stands two seconds after the first has begun a tile, which waits for that."""

    def __init__(self, folder: Path) -> None:
        self._begun, self._stands = folder / "begun", folder / "stands"
        try:
            (folder / "first").touch(exist_ok=False)
        except FileExistsError:
            _wait_for(self._begun)
            time.sleep(2)
            self._stands.touch()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._begun.touch()
        _wait_for(self._stands)
        return {"unit": batch["unit"], "process": np.array([os.getpid()])}


class Sleeper:
    """Takes as long as it is told, and says on which node it stands."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        time.sleep(self._seconds)
        return {"unit": batch["unit"], "node": np.array([ray.get_runtime_context().get_node_id()])}


class Counter:
    """Takes a while for a tile and notes how many tiles were marked when it began."""

    def __init__(self, markers: Path, notes: Path, seconds: float) -> None:
        self._markers, self._notes, self._seconds = markers, notes, seconds

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        marked = len(list(self._markers.iterdir()))
        (self._notes / f"{time.time_ns()}-{marked}").touch()
        time.sleep(self._seconds)
        return batch | {"peak_rss": np.array([0])}


class Dying:
    """Its process ends without a word, as one that is killed for memory: at the start, or at a unit."""

    def __init__(self, at_start: bool, note: Path) -> None:
        with note.open("a") as file:
            file.write("started\n")
        if at_start:
            os._exit(1)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if batch["unit"][0] == 1:
            os._exit(1)
        return {"unit": batch["unit"]}


class NotingSink(ChunkSink):
    """Notes how many units each of its tasks was to write."""

    def write(self, blocks: Iterable[Block], ctx: Any) -> None:
        units = sum(len(block) for block in blocks)
        (self._markers / f"{units}-{uuid.uuid4().hex}").touch()


def _wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.05)
