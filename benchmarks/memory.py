"""Does memory grow with the scene, and time faster than it? Maps of scenes 1, 4 and 16 times as large.

``python -m benchmarks.memory [--small 600x1200] [--grow 1,2,4]``: stand-in runs of a small U-Net through Ray,
each driven by a process of its own. Peak resident memory of the driver or the largest map worker, as the
stage records it; and peak anonymous memory of any process, those that read and write included: what is left
without the pages of libraries and of Ray's object store, which each process counts that has touched them.
"""

import argparse
import os
import shutil
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.processes import anonymous, cpu_below
from benchmarks.record import arithmetics, publish
from benchmarks.stand_in import stand_in
from pipeline import map as map_stage
from pipeline.artifacts import RunFolder
from pipeline.cluster import ray_session
from pipeline.config import load_config
from pipeline.scene import open_scene

SETTINGS = [
    "unet.channels=32", "patches.window=96", "patches.stride=72", "features.timesteps=[50]",
    "features.stages=[3,5]", f"features.precision={arithmetics()[-1]}", "classifier.members=1",
]  # fmt: skip


def main() -> None:
    """Print peak memory and time of the maps, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", default="600x1200")
    parser.add_argument("--grow", default="1,2,4", help="factors of height and width")
    options = parser.parse_args()
    height, width = map(int, options.small.split("x"))
    rows: list[list[object]] = []
    first: tuple[float, ...] | None = None
    for scale in map(int, options.grow.split(",")):
        # A process's peak is that of all that it ever did: each takes one task.
        work, spawn = Path(tempfile.mkdtemp()), get_context("spawn")
        try:
            with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
                pool.submit(_make, work / "run", height * scale, width * scale).result()
                found = pool.submit(_measure, work / "run").result()
        finally:
            shutil.rmtree(work)
        first = first or found
        pairs = [(value, value / least) for value, least in zip(found, first, strict=True)]
        rows.append([f"{height * scale} x {width * scale}", *(part for pair in pairs for part in pair)])
    publish(
        "memory", "Map stage, small U-Net",
        ["scene", "peak memory, MiB", "over the smallest", "anonymous, MiB", "over the smallest", "time, s",
         "over the smallest"], rows,
    )  # fmt: skip


def _make(run: Path, height: int, width: int) -> None:
    stand_in(run, load_config(None, SETTINGS), height, width)


def _measure(run: Path) -> tuple[float, float, float]:
    """Peak memory of the driver or the largest map worker, peak anonymous memory of any (MiB); seconds."""
    scene = open_scene(str(run / "scene.zarr"))
    with ray_session(), _Watch() as watch:
        begun = time.perf_counter()
        record = map_stage.run(load_config(None, SETTINGS), RunFolder(run), scene)
        spent = time.perf_counter() - begun
    return record["peak_rss_bytes"] / 2**20, watch.peak / 2**20, spent


class _Watch:
    """The largest anonymous memory that this process or one below it was seen with, bytes."""

    def __init__(self) -> None:
        self.peak, self._end = 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._end.wait(0.25):
            self.peak = max(self.peak, *map(anonymous, (os.getpid(), *cpu_below())))

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()


if __name__ == "__main__":
    main()
