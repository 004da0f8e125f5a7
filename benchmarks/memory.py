"""Does memory grow with the scene, and time faster than it? Maps of scenes 1, 4 and 16 times as large.

``python -m benchmarks.memory [--small 600x1200] [--grow 1,2,4]``: stand-in runs of a small U-Net through Ray.
Peak resident memory of the largest process.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.record import publish
from benchmarks.stand_in import stand_in
from pipeline import map as map_stage
from pipeline.cluster import ray_session
from pipeline.config import load_config

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
    config = load_config(None, SETTINGS)
    rows: list[list[object]] = []
    first: tuple[float, float] | None = None
    for scale in map(int, options.grow.split(",")):
        work = Path(tempfile.mkdtemp())
        try:
            folder, scene = stand_in(work / "run", config, height * scale, width * scale)
            with ray_session():
                begun = time.perf_counter()
                record = map_stage.run(config, folder, scene)
                spent = time.perf_counter() - begun
        finally:
            shutil.rmtree(work)
        peak = record["peak_rss_bytes"] / 2**20
        first = first or (peak, spent)
        rows.append([f"{height * scale} x {width * scale}", peak, peak / first[0], spent, spent / first[1]])
    publish(
        "memory", "Map stage, small U-Net",
        ["scene", "peak memory, MiB", "over the smallest", "time, s", "over the smallest"], rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
