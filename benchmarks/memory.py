"""Does memory grow with the scene, and time faster than it? Maps of scenes 1, 4 and 16 times as large.

``python -m benchmarks.memory [--small 600x1200] [--grow 1,2,4]``: stand-in runs of a small U-Net through Ray,
each driven by a process of its own. Peak resident memory of the largest process.
"""

import argparse
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.record import publish
from benchmarks.stand_in import stand_in
from pipeline import map as map_stage
from pipeline.artifacts import RunFolder
from pipeline.cluster import ray_session
from pipeline.config import load_config
from pipeline.scene import open_scene

SETTINGS = [
    "unet.channels=32", "patches.window=96", "patches.stride=72", "features.timesteps=[50]",
    "features.stages=[3,5]", "features.precision=bfloat16", "classifier.members=1",
]  # fmt: skip


def main() -> None:
    """Print peak memory and time of both maps, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", default="600x1200")
    parser.add_argument("--grow", default="1,2,4", help="factors of height and width")
    options = parser.parse_args()
    height, width = map(int, options.small.split("x"))
    rows: list[list[object]] = []
    first: tuple[float, float] | None = None
    for scale in map(int, options.grow.split(",")):
        # A process's peak is that of all that it ever did: each takes one task.
        work, spawn = Path(tempfile.mkdtemp()), get_context("spawn")
        try:
            with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
                pool.submit(_make, work / "run", height * scale, width * scale).result()
                peak, spent = pool.submit(_measure, work / "run").result()
        finally:
            shutil.rmtree(work)
        first = first or (peak, spent)
        rows.append([f"{height * scale} x {width * scale}", peak, peak / first[0], spent, spent / first[1]])
    publish(
        "memory", "Map stage, small U-Net",
        ["scene", "peak memory, MiB", "over the smallest", "time, s", "over the smallest"], rows,
    )  # fmt: skip


def _make(run: Path, height: int, width: int) -> None:
    stand_in(run, load_config(None, SETTINGS), height, width)


def _measure(run: Path) -> tuple[float, float]:
    """Peak memory of the largest process of a map, MiB, and seconds."""
    scene = open_scene(str(run / "scene.zarr"))
    with ray_session():
        begun = time.perf_counter()
        record = map_stage.run(load_config(None, SETTINGS), RunFolder(run), scene)
        return record["peak_rss_bytes"] / 2**20, time.perf_counter() - begun


if __name__ == "__main__":
    main()
