"""The whole map stage at the paper's size: over the plain way, its head's share, through Ray or bare.

``python -m benchmarks.map_stage [--pixels 576]`` maps a square of noise with untrained parts (time does not
know the difference): tile by tile in one process, with all files written; then the same through Ray,
started and stopped. Tiles of 288 give two cores two each, and the five minutes after which Ray's start no
longer counts. ``OMP_NUM_THREADS=1`` before it: the head's share in an actor of one thread.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from benchmarks.exact import PAPER, random_unet, smooth_patches
from benchmarks.record import arithmetics, publish, seconds
from benchmarks.reference import plain_features
from benchmarks.stand_in import COMPONENTS, stand_in
from mtmsd.diffusion import DiffusionConfig, Schedule
from mtmsd.features import Extractor
from mtmsd.spectral_reader import SpectralReader
from pipeline import map as map_stage
from pipeline.artifacts import RunFolder
from pipeline.cluster import ray_session
from pipeline.config import Config, load_config
from pipeline.readers import Reduced, TileReader
from pipeline.regions import ARRAYS
from pipeline.scene import Scene
from pipeline.units import TileGrid

SETTINGS = [
    "unet.channels=128", "patches.size=48", "patches.window=96", "patches.stride=72", "map.tile=288",
    f"features.timesteps={list(PAPER.timesteps)}", f"features.stages={list(PAPER.stages)}",
    f"features.precision={arithmetics()[-1]}",
]  # fmt: skip


def main() -> None:
    """Print seconds per pixel and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pixels", type=int, default=576, help="side of the square")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    options = parser.parse_args()
    config, side = load_config(None, [*SETTINGS, *options.settings]), options.pixels
    before = _plain_seconds(config)
    work = Path(tempfile.mkdtemp())
    try:
        folder, scene = stand_in(work / "run", config, side, side)
        bare, head = _bare(config, folder, scene)
        shutil.rmtree(folder.map)
        begun = time.perf_counter()
        with ray_session():
            map_stage.run(config, folder, scene)
        through = time.perf_counter() - begun
    finally:
        shutil.rmtree(work)
    plain = (before + _plain_seconds(config)) / 2  # the machine's speed drifts meanwhile
    publish(
        "map_stage", f"Map of {side} x {side} pixels, {config.unet.channels} channels, "
        f"{len(config.features.timesteps)} timesteps, {config.features.precision}, "
        f"{torch.get_num_threads()} threads",
        ["way", "s", "ms / pixel", "times plain", "note"],
        [
            ["plain, features alone", plain * side**2, plain * 1e3, 1.0, "one pixel, before and after"],
            ["one process", bare, bare / side**2 * 1e3, plain * side**2 / bare, f"head {head / bare:.1%}"],
            ["through Ray", through, through / side**2 * 1e3, plain * side**2 / through,
             f"{bare / through:.1%} of the bare rate, start included"],
        ],
    )  # fmt: skip


def _plain_seconds(config: Config) -> float:
    unet, schedule = random_unet(config.unet.channels), Schedule(DiffusionConfig())
    patch = smooth_patches(1, COMPONENTS, 48)
    return seconds(lambda: plain_features(unet, schedule, config.features, patch), least=20.0)


def _bare(config: Config, folder: RunFolder, scene: Scene) -> tuple[float, float]:
    """Seconds of the stage in this process alone, and of its head."""
    grid = TileGrid(scene.height, scene.width, config.tile)
    cluster = config.cluster.model_copy(update={"threads": torch.get_num_threads()})
    actor = map_stage.MapActor(config.model_copy(update={"cluster": cluster}), folder, gpu=False)
    reader = TileReader(Reduced(str(folder.reduced)), grid, config.patches)
    add, extract, spent = actor._add, actor._extract, {"add": 0.0, "extract": 0.0}
    actor._add = _timed(add, spent, "add")  # type: ignore[method-assign]
    actor._extract = _TimedExtractor(extract, spent)  # type: ignore[assignment]
    actor({key: np.asarray(value)[None] for key, value in ({"unit": 0} | reader(0)).items()})
    spent.update(add=0.0, extract=0.0)
    begun = time.perf_counter()
    map_stage.create(folder, scene, grid)
    group: Any = zarr.open_group(folder.map, mode="r+", use_consolidated=False)
    for unit in range(len(grid)):
        row = actor({key: np.asarray(value)[None] for key, value in ({"unit": unit} | reader(unit)).items()})
        y0, y1, x0, x1 = grid.bounds(unit)
        for name in ARRAYS:
            group[name][y0:y1, x0:x1] = row[name][0][: y1 - y0, : x1 - x0]
    map_stage.finish(folder, scene)
    return time.perf_counter() - begun, spent["add"] - spent["extract"]


def _timed(work: Callable[..., Any], spent: dict[str, float], name: str) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        begun = time.perf_counter()
        result = work(*arguments)
        spent[name] += time.perf_counter() - begun
        return result

    return run


class _TimedExtractor:
    def __init__(self, extract: Extractor | SpectralReader, spent: dict[str, float]) -> None:
        self.batch, self._run = extract.batch, _timed(extract, spent, "extract")

    def __call__(self, windows: torch.Tensor) -> Any:
        return self._run(windows)


if __name__ == "__main__":
    main()
