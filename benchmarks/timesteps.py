"""Which timesteps are worth their cost? Greedy choice on training pixels, then accuracy on test pixels.

``python -m benchmarks.timesteps RUN [--geometry 48:24]``. The U-Net's passes, and so the map's time, grow
with the number of timesteps. From none, the timestep that helps most is added: three folds of the training
pixels, one member. The test pixels only score what was chosen.
"""

import argparse
from dataclasses import replace

import numpy as np

from benchmarks.learn import Kinds
from benchmarks.record import publish, run_folder
from benchmarks.windows import Bench, Pixels, splitting
from mtmsd.split import TEST, TRAIN, UNUSED
from pipeline.artifacts import RunFolder, read_json
from pipeline.config import Config
from pipeline.scene import open_scene


def main() -> None:
    """Print the chosen timesteps, best first, with the test accuracy of each number of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=run_folder)
    parser.add_argument("--geometry", default="48:24")
    parser.add_argument("--protocol", default="random", choices=["random", "blocks"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--block", type=int, default=32)
    options = parser.parse_args()
    scene = open_scene(read_json(options.run / "run.json")["scene"]["url"])
    given = RunFolder(options.run).config()
    bench = Bench(options.run, splitting(given, options.protocol, options.seed, options.block))
    window, stride = map(int, options.geometry.split(":"))
    pixels = bench.pixels(scene, 3000)
    patches = replace(bench.config.patches, window=window, stride=stride)
    features = bench.features(patches, pixels.y, pixels.x)
    timesteps, chosen, rows = bench.config.features.timesteps, list[int](), []
    quick = Bench(options.run, _quick(bench))
    while len(chosen) < len(timesteps):
        left = [t for t in range(len(timesteps)) if t not in chosen]
        trial = {t: _folds(quick, _of(features, sorted([*chosen, t])), pixels) for t in left}
        best = max(left, key=lambda t: (trial[t], -t))
        chosen.append(best)
        mine = sorted(chosen)
        oa = bench.learn_at(_of(features, mine), pixels).confusion.finish()["oa"]
        rows.append([len(mine), timesteps[best], trial[best], oa])
        print(rows[-1], flush=True)
    publish(
        f"timesteps_{options.run.name}_{options.protocol}",
        f"{options.run.name}, {options.protocol}: timesteps, greedily",
        ["timesteps", "added", "OA in folds of the training pixels", "OA on test pixels"], rows,
    )  # fmt: skip


def _of(features: Kinds, steps: list[int]) -> Kinds:
    """The features without the other timesteps."""
    return features[0][:, steps], features[1][:, steps], features[2]


def _quick(bench: Bench) -> Config:
    return bench.config.model_copy(
        update={
            "classifier": replace(bench.config.classifier, members=1, experts=(), epochs=40, calibrate=False)
        }
    )


def _folds(bench: Bench, features: Kinds, pixels: Pixels) -> float:
    """Mean accuracy over three folds of the training pixels, every class in every fold."""
    train = np.flatnonzero(pixels.use == TRAIN)
    order = train[np.argsort(pixels.position[train], kind="stable")]
    scores = []
    for fold in range(3):
        part = np.full(len(pixels.use), UNUSED)
        part[order] = TRAIN
        part[order[fold::3]] = TEST
        scores.append(bench.learn_at(features, pixels, part).confusion.finish()["oa"])
    return float(np.mean(scores))


if __name__ == "__main__":
    main()
