"""Does the map stage's graph keep many GPUs busy? Its real source, actor pool, sink, markers and meter, and a
sleep in place of the U-Net.

``python -m benchmarks.scale [--cases 1x40x2,64x8000x4]``: workers x tiles x seconds a tile. Each worker is an
actor that takes one simulated GPU of a local Ray; tiles are tiny, files and markers real. Each case runs in a
process of its own and leaves ``OUT/scale/CASE.json``; the same command does what is missing.

- efficiency: tiles x seconds / workers, over the time from the first tile's begin to the last file. All
  actors stand before the first tile begins: starting 64 processes on one machine says nothing of a cluster.
- driver ms a tile: CPU time of the driving process, all its threads; its resident memory is looked at every
  five seconds from the first tile to the end.
- first tile: seconds from the graph's start to the first finished tile, less the sleep.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import ray
import zarr
from ray.data import DataContext

from benchmarks.processes import cpu_below, resident
from benchmarks.record import OUT, about, publish
from benchmarks.sleeper import ROW_BYTES, SIDE, SleepActor, TinyReader
from pipeline import map as map_stage
from pipeline.artifacts import RunFolder, write_json
from pipeline.cluster import Shares, ray_session
from pipeline.progress import metered
from pipeline.regions import ARRAYS
from pipeline.scene import open_scene, write_scene
from pipeline.units import TileGrid, TileRegions, UnitSource

CASES = "1x40x2,4x160x2,16x640x2,64x8000x4,16x1000x0.5,16x10000x0.5,16x100000x0.5"
FLOORS = {"efficiency": 0.90, "driver_ms": 5.0, "memory": 1.10}
_STEADY_S = 1.0
"""Shorter tiles come faster than two cores can schedule and write them: no floor for their efficiency."""
_CPUS = 4
"""Of the node: with 1 reads and writes have too few places; with 25 too many processes start."""
_ACTOR_CPUS = 0.01
"""An actor that sleeps leaves the CPUs to reads and writes, eight of them a CPU."""
_CHECKED = 500
"""Tiles whose pixels are compared with what the actor should have said."""


@dataclass(frozen=True)
class Case:
    """So many simulated GPUs, tiles, and seconds for a tile."""

    workers: int
    tiles: int
    seconds: float

    @staticmethod
    def parse(text: str) -> "Case":
        """``64x1000x2``."""
        workers, tiles, seconds = text.split("x")
        return Case(int(workers), int(tiles), float(seconds))

    def __str__(self) -> str:
        return f"{self.workers}x{self.tiles}x{self.seconds:g}"


def main() -> None:
    """Print a table of all cases; exit with 1 if a floor is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=CASES)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        write_json(_path(case := Case.parse(options.one)), about() | run(case))
        return
    found = []
    for case in map(Case.parse, options.cases.split(",")):
        if not _path(case).exists():
            _path(case).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run([sys.executable, "-m", "benchmarks.scale", "--one", str(case)], check=True)
        found.append(json.loads(_path(case).read_text()))
    publish(
        "scale", "The map stage's graph with sleeping actors",
        ["simulated GPUs", "tiles", "s / tile", "efficiency", "tiles / s", "driver ms / tile",
         "all processes ms / tile", "driver MiB", "first tile s"],
        [[row["workers"], row["tiles"], row["seconds"], row["efficiency"],
          row["tiles"] / row["wall_s"], row["driver_ms"], row["all_ms"], row["driver_mib"], row["first_s"]]
         for row in found],
    )  # fmt: skip
    if missed := missed_floors(found):
        sys.exit("\n".join(missed))


def _path(case: Case) -> Path:
    return OUT / "scale" / f"{case}.json"


def missed_floors(found: list[dict[str, Any]]) -> list[str]:
    """What is wrong with the measured cases, in words; empty when every floor is held.

    Memory is compared between cases of equally many workers and seconds.
    """
    missed, least = [], dict[tuple[int, float], float]()
    for row in found:
        name = str(Case(row["workers"], row["tiles"], row["seconds"]))
        if row["seconds"] >= _STEADY_S and row["efficiency"] < FLOORS["efficiency"]:
            missed.append(f"{name}: efficiency {row['efficiency']:.1%}, floor {FLOORS['efficiency']:.0%}")
        if row["driver_ms"] > FLOORS["driver_ms"]:
            missed.append(f"{name}: driver {row['driver_ms']:.2f} ms a tile, floor {FLOORS['driver_ms']:g}")
        first = least.setdefault((row["workers"], row["seconds"]), row["driver_mib"])
        if row["driver_mib"] > FLOORS["memory"] * first:
            missed.append(f"{name}: driver {row['driver_mib']:.0f} MiB, {first:.0f} with the fewest tiles")
    return missed


def run(case: Case) -> dict[str, Any]:
    """Measure one case, in this process."""
    os.environ["PYTHONPATH"] = os.getcwd()
    # Ray ends idle processes beyond a node's CPUs after a second; 64 actors in one node are always beyond.
    os.environ["RAY_idle_worker_killing_time_threshold_ms"] = "3600000"  # noqa: SIM112
    work = Path(tempfile.mkdtemp(dir=_path(case).parent))
    try:
        ray.init(
            address="local", num_cpus=_CPUS, num_gpus=case.workers, object_store_memory=1 << 30,
            log_to_driver=False,
        )  # fmt: skip
        with ray_session():
            return _measured(case, work)
    finally:
        ray.shutdown()
        shutil.rmtree(work)


def _measured(case: Case, work: Path) -> dict[str, Any]:
    DataContext.get_current().wait_for_min_actors_s = 1200
    columns = math.isqrt(case.tiles)
    grid = TileGrid(-(-case.tiles // columns) * SIDE, columns * SIDE, SIDE)
    folder, units = RunFolder(work / "run"), range(case.tiles)
    empty = da.zeros((1, grid.height, grid.width), np.uint16, chunks=4096)  # block by block
    write_scene(work / "scene.zarr", empty, chunk=1024)
    folder.classifier.mkdir(parents=True)
    write_json(folder.selection, {"classes": [[code, str(code), "#808080"] for code in range(1, 251)]})
    with metered("map", case.tiles, "tiles") as (meter, _):
        map_stage.create(folder, open_scene(str(work / "scene.zarr")), grid)
        shares = Shares(
            actors=case.workers, fixed=False, threads=1, num_cpus=_ACTOR_CPUS, num_gpus=1,
            workers=1, worker_threads=1, worker_cpus=0.25,
        )  # fmt: skip
        source = UnitSource("map: tiles", folder.todo("map", units), TinyReader(grid), ROW_BYTES)
        begun = time.time()
        with _Spent(folder.markers("map")) as spent:
            tiles = TileRegions(grid, ARRAYS)
            map_stage.map_tiles(folder, tiles, source, shares, SleepActor, (case.seconds, meter), meter)
        ended = time.time()
        counted: Any = ray.get(meter.read.remote())
    first = min(entry.stat().st_mtime for entry in os.scandir(folder.markers("map")))
    _check(case, folder, grid, counted["pixels"])
    wall = ended - first + case.seconds
    return {
        "workers": case.workers, "tiles": case.tiles, "seconds": case.seconds, "wall_s": wall,
        "efficiency": case.tiles * case.seconds / case.workers / wall,
        "driver_ms": spent.driver_s / spent.tiles * 1e3, "all_ms": spent.all_s / spent.tiles * 1e3,
        "driver_mib": spent.driver_bytes / 2**20, "actor_mib": counted["peak_rss_bytes"] / 2**20,
        "first_s": first - case.seconds - begun,
    }  # fmt: skip


def _check(case: Case, folder: RunFolder, grid: TileGrid, pixels: float) -> None:
    """Every tile is marked and counted, and a sample of them holds what the actor said."""
    markers = _entries(folder.markers("map"))
    if markers != case.tiles or pixels != case.tiles * SIDE**2:
        raise RuntimeError(f"{case}: {markers} markers and {pixels:g} pixels")
    group: Any = zarr.open_group(folder.map, mode="r", use_consolidated=False)
    for unit in np.linspace(0, case.tiles - 1, min(case.tiles, _CHECKED)).astype(int):
        y0, y1, x0, x1 = grid.bounds(int(unit))
        if not (group["class"][y0:y1, x0:x1] == unit % 251).all():
            raise RuntimeError(f"{case}: tile {unit} holds something else")


def _entries(folder: Path) -> int:
    """How many there are, without a list of 100,000 names in the memory that is measured."""
    return sum(1 for _ in os.scandir(folder))


class _Spent:
    """From the first finished tiles to the end: CPU seconds, tiles, and the driver's largest resident memory.

    What this watching takes of the driving process is not counted.
    """

    def __init__(self, markers: Path) -> None:
        self._markers, self._end, self._seen = markers, threading.Event(), dict[int, float]()
        self._first, self._own_s, self.driver_bytes = (0, 0.0, 0.0), 0.0, 0
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def _now(self) -> tuple[int, float, float]:
        """Finished tiles; CPU seconds of this process, and of those below it, ended ones included."""
        self._seen |= cpu_below()
        self.driver_bytes = max(self.driver_bytes, resident())
        return _entries(self._markers), time.process_time(), sum(self._seen.values())

    def _watch(self) -> None:
        while not os.listdir(self._markers):
            if self._end.wait(0.2):
                return
        self._first, begun = self._now(), time.thread_time()
        while not self._end.wait(5.0):
            self._now()
        self._own_s = time.thread_time() - begun

    def __enter__(self) -> "_Spent":
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._watcher.join()
        self.tiles, self.driver_s, below = (b - a for a, b in zip(self._first, self._now(), strict=True))
        self.driver_s -= self._own_s
        self.all_s = self.driver_s + below


if __name__ == "__main__":
    main()
