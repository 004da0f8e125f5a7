"""What is each timestep and each stage worth alone? The figure on which the method's idea rests.

``python -m benchmarks.timestep_stage RUN [--protocol random] [--picture FILE.png]`` takes a run folder that
has finished pretraining, on a labelled scene. Features of all training pixels and some test pixels are read
once at every timestep and stage; an ensemble then trains on one timestep and one stage at a time, on all
stages of a timestep, on all timesteps of a stage, and on everything.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.learn import Kinds
from benchmarks.record import publish, run_folder
from benchmarks.windows import Bench, Pixels, splitting
from mtmsd.features import FeatureConfig, stage_widths
from pipeline.artifacts import RunFolder, read_json
from pipeline.scene import open_scene

_ALL = "all"


def main() -> None:
    """Print OA by timestep (rows) and stage (columns)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=run_folder)
    parser.add_argument("--timesteps", default="50,100,200,300,500,700,900")
    parser.add_argument("--protocol", default="random", choices=["random", "blocks"])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--block", type=int, default=32, help="side of the blocks of the block split")
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    scene = open_scene(read_json(options.run / "run.json")["scene"]["url"])
    given = RunFolder(options.run).config()
    timesteps = tuple(int(t) for t in options.timesteps.split(","))
    features = replace(
        given.features, timesteps=timesteps, stages=tuple(range(given.unet.stages)), spectra=()
    )
    classifier = replace(given.classifier, members=options.members, experts=(), calibrate=False)
    whole = given.model_copy(update={"features": features, "classifier": classifier})
    runs = []
    for seed in options.seeds.split(","):
        bench = Bench(options.run, splitting(whole, options.protocol, int(seed), options.block))
        runs.append(_scores(bench, bench.pixels(scene, 3000)))
    found = np.mean(runs, axis=0)
    rows = [[*map(str, timesteps), _ALL], [*map(str, features.stages), _ALL]]
    publish(
        f"timestep_stage_{options.run.name}_{options.protocol}",
        f"{options.run.name}, {options.protocol}: OA by timestep and stage, mean of the seeds",
        ["timestep", *(f"stage {name}" for name in rows[1])],
        [[t, *map(float, values)] for t, values in zip(rows[0], found, strict=True)],
    )
    if options.picture:
        _draw(found, rows[0], rows[1], options.picture)


def _scores(bench: Bench, pixels: Pixels) -> NDArray[np.float64]:
    """OA (timesteps + 1, stages + 1); the last row and column are of all of them together."""
    kinds, features = bench.features(bench.config.patches, pixels.y, pixels.x), bench.config.features
    found = np.zeros((len(features.timesteps) + 1, len(features.stages) + 1))
    for t, steps in _each(len(features.timesteps)):
        for s, stages in _each(len(features.stages)):
            chosen = replace(
                features,
                timesteps=tuple(features.timesteps[i] for i in steps),
                stages=tuple(features.stages[i] for i in stages),
            )
            one = Bench(bench.folder.path, bench.config.model_copy(update={"features": chosen}))
            mine = _of(kinds, bench, features, steps, stages)
            found[t, s] = one.learn_at(mine, pixels).confusion.finish()["oa"]
    return found


def _each(count: int) -> Iterator[tuple[int, list[int]]]:
    """Every one alone, then all together."""
    yield from ((i, [i]) for i in range(count))
    yield count, list(range(count))


def _of(kinds: Kinds, bench: Bench, features: FeatureConfig, steps: list[int], stages: list[int]) -> Kinds:
    """The features of some timesteps and stages."""
    widths = stage_widths(bench.config.unet, features.stages, bench.config.patches.side)
    ends = np.cumsum([0, *widths])
    columns = np.concatenate([np.arange(ends[s], ends[s + 1]) for s in stages])
    return kinds[0][:, steps][..., columns], kinds[1][:, steps][..., columns], kinds[2]


def _draw(oa_TS: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], path: Path) -> None:
    figure = Figure(figsize=(1.2 + 0.8 * len(columns), 1.2 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(100 * oa_TS, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel("decoder stage")
    axes.set_ylabel("timestep")
    middle = (oa_TS.max() + oa_TS.min()) / 2
    for (t, s), value in np.ndenumerate(oa_TS):
        colour = "black" if value > middle else "white"
        axes.text(s, t, f"{100 * value:.1f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, label="OA, %")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
