"""Does memory grow with the scene, and time faster than it? The map stage of two scenes, one 4x the other.

``python -m benchmarks.memory [--small 600x1200] [--factor 4]``: stand-in runs of a small U-Net through Ray;
``--factor 16`` compares 2,400 x 4,800 pixels. Peak resident memory of the largest process.
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
    parser.add_argument("--factor", type=int, default=4)
    options = parser.parse_args()
    height, width = map(int, options.small.split("x"))
    grow = round(options.factor**0.5)
    config, rows = load_config(None, SETTINGS), []
    for scale in (1, grow):
        work = Path(tempfile.mkdtemp())
        try:
            folder, scene = stand_in(work / "run", config, height * scale, width * scale)
            with ray_session():
                begun = time.perf_counter()
                record = map_stage.run(config, folder, scene)
                spent = time.perf_counter() - begun
        finally:
            shutil.rmtree(work)
        rows.append([f"{height * scale} x {width * scale}", record["peak_rss_bytes"] / 2**20, spent])
    ratio = [f"{grow**2} x the pixels", rows[1][1] / rows[0][1], rows[1][2] / rows[0][2]]
    publish("memory", "Map stage, small U-Net", ["scene", "peak memory, MiB", "time, s"], [*rows, ratio])


if __name__ == "__main__":
    main()
