"""What do larger windows and blocks cost in accuracy, and are their borders seen in the map?

``python -m benchmarks.windows RUN [--geometries 48:1,48:24,96:72,96:72:8]`` takes a run folder that has
finished pretraining, on a labelled scene. For each geometry (window:stride:blend; stride 1 is exact) the
features of the training and test pixels are read by the same rule, purified, and classified by an
ensemble that trained on them. "OA" is that of each test pixel seen by its own block's window; "OA of the
map" is that of the whole map, made in memory (not for stride 1). Borders: changes of class from a block's
last pixel to the next block's first, over changes one pixel to either side; 1 = no seam. A small scene has
few borders, which may lie on its fields' own: they are counted in maps with shifted grids, all together.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.learn import AT_ONCE, Kinds, Learner, Learnt
from benchmarks.record import publish, run_folder
from mtmsd.features import Readout
from mtmsd.mosaic import Mosaic
from mtmsd.split import TEST
from mtmsd.windows import PatchConfig
from pipeline.artifacts import RunFolder, read_json
from pipeline.config import Config
from pipeline.labels import labelled_split
from pipeline.scene import Scene, open_scene


def main() -> None:
    """Print one row per split and geometry."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=run_folder)
    parser.add_argument("--geometries", default="48:1,48:4,48:24,96:72,96:72:8")
    parser.add_argument("--protocols", type=_protocols, default="random,blocks")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--block", type=int, default=32, help="side of the blocks of the block split")
    parser.add_argument("--test", type=int, default=1500, help="test pixels that are scored, at most")
    parser.add_argument("--shifts", type=int, default=4, help="maps with shifted grids, for the borders")
    options = parser.parse_args()
    scene, rows = open_scene(read_json(options.run / "run.json")["scene"]["url"]), []
    given = RunFolder(options.run).config()
    for text in options.geometries.split(","):
        window, stride, blend = map(int, [*text.split(":"), 0][:3])
        patches = replace(given.patches, window=window, stride=stride, blend=blend)
        for protocol in options.protocols:
            for seed in map(int, options.seeds.split(",")):
                base = Bench(options.run, splitting(given, protocol, seed, options.block))
                pixels = base.pixels(scene, options.test)
                begun = time.perf_counter()
                features = base.features(patches, pixels.y, pixels.x)
                spent = (time.perf_counter() - begun) / len(pixels.y)
                learnt = base.learn_at(features, pixels)
                row: list[object] = [text, protocol, seed, learnt.confusion.finish()["oa"]]
                if stride > 1:
                    shifts = sorted({stride * i // options.shifts for i in range(options.shifts)})
                    maps, tested = [base.map(patches, learnt, shift) for shift in shifts], pixels.use == TEST
                    right = maps[0][pixels.y[tested], pixels.x[tested]] == pixels.position[tested]
                    row += [right.mean(), border_ratio(maps, patches)]
                else:
                    row += ["", ""]
                rows.append([*row, spent * 1e3])
                print(rows[-1], flush=True)
    publish(
        f"windows_{options.run.name}", f"{options.run.name}: window:stride against exact (stride 1)",
        ["window:stride:blend", "split", "seed", "OA", "OA of the map", "border changes / inner",
         "ms / labelled pixel"], rows,
    )  # fmt: skip


def _protocols(text: str) -> list[str]:
    if not set(found := text.split(",")) <= {"random", "blocks"}:
        raise argparse.ArgumentTypeError(f"expected random, blocks, or both with a comma, found {text}")
    return found


def splitting(config: Config, protocol: str, seed: int, block: int) -> Config:
    """The configuration with a split of this protocol; by blocks with 30 training pixels a class."""
    split = replace(config.split, protocol=protocol, seed=seed, inductive=False)  # type: ignore[arg-type]
    if protocol == "blocks":
        split = replace(split, train_per_class=30, block=block)
    return config.model_copy(update={"split": split})


class Pixels(NamedTuple):
    """All training and some test pixels of a split."""

    y: NDArray[np.int64]
    x: NDArray[np.int64]
    position: NDArray[np.int64]
    """Of the class, 0-based."""
    use: NDArray[np.int64]
    """TRAIN or TEST."""


class Bench(Learner):
    """A pretrained run, the pixels of its configuration's split, and its borders."""

    def pixels(self, scene: Scene, test: int) -> Pixels:
        """All training pixels, and at most so many test pixels."""
        y, x, label, use = labelled_split(self.config, scene, self.reduced)
        tested = np.flatnonzero(use == TEST)
        drop = np.random.default_rng(self.config.split.seed).permutation(tested)[test:]
        keep = np.setdiff1d(np.arange(len(y)), drop)
        return Pixels(y[keep], x[keep], np.unique(label, return_inverse=True)[1][keep], use[keep])

    def learn_at(self, features: Kinds, pixels: Pixels, use: NDArray[np.int64] | None = None) -> Learnt:
        """``learn`` on these pixels; ``use`` stands in for theirs."""
        return self.learn(features, pixels.position, pixels.use if use is None else use, (pixels.y, pixels.x))

    def map(self, patches: PatchConfig, learnt: Learnt, shift: int = 0) -> NDArray[np.int64]:
        """Class positions of all pixels but the first ``shift`` rows and columns, where blocks begin."""
        ensemble, selection = learnt.ensemble, learnt.selection
        height, width = (length - shift for length in self.reduced.shape[1:])
        readout = Readout(selection.centre, selection.pooled, ensemble.mean_2TK[0], ensemble.scale_2TK[0])
        extract = self.extractor(patches.wide, readout)
        mosaic, side = Mosaic(height, width, ensemble.values, patches), patches.side
        at = [(r, c) for r in range(patches.blocks(height)) for c in range(patches.blocks(width))]
        for start in range(0, len(at), extract.batch):
            mine = at[start : start + extract.batch]
            corners = patches.corner(np.array(mine)) + shift
            read = [self.reduced.window(y, y + side, x, x + side, patches) for y, x in corners]
            features = extract(torch.from_numpy(np.nan_to_num(np.stack(read))))
            votes = ensemble.window_votes(features.pooled_NTK)
            for i, (row, column) in enumerate(mine):
                mosaic.add_window(row, column, features, votes, i, ensemble, AT_ONCE)
        answer = ensemble.decide(mosaic.values_HWV.flatten(0, 1))
        return answer.position_N.numpy().reshape(height, width)


def border_ratio(maps_HW: Sequence[NDArray[np.int64]], patches: PatchConfig) -> float:
    """Class changes across block borders over those one pixel to either side of them."""
    across = inner = 0.0
    for map_HW in maps_HW:
        for axis in (0, 1):
            changes = (np.diff(map_HW, axis=axis) != 0).sum(axis=1 - axis)
            borders = np.arange(patches.origin + patches.stride, map_HW.shape[axis], patches.stride) - 1
            borders = borders[(borders >= 1) & (borders + 1 < len(changes))]
            across += changes[borders].sum()
            inner += (changes[borders - 1] + changes[borders + 1]).sum() / 2
    return float(across / inner) if inner else float("nan")


if __name__ == "__main__":
    main()
