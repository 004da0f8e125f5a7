"""What do larger windows and blocks cost in accuracy, and are their borders seen in the map?

``python -m benchmarks.windows RUN [--geometries 48:1,48:24,96:72]`` takes a run folder that has finished
pretraining, on a labelled scene. For each geometry (window:stride; stride 1 is exact) the features of
the training and test pixels are read by the same rule, purified, and classified by an ensemble that
trained on them; no map is written. Borders: changes of class from a block's last pixel to the next
block's first, over changes one pixel further inside; 1 = no seam.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.learn import Learner, Learnt
from benchmarks.record import publish
from mtmsd.ensemble import Ensemble
from mtmsd.features import Features, Readout
from mtmsd.split import TEST
from mtmsd.windows import PatchConfig
from pipeline.artifacts import read_json
from pipeline.labels import labelled_split
from pipeline.scene import Scene, open_scene


def main() -> None:
    """Print one row per split and geometry."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--geometries", default="48:1,48:4,48:24,96:72")
    parser.add_argument("--protocols", default="random,blocks")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--block", type=int, default=32, help="side of the blocks of the block split")
    parser.add_argument("--test", type=int, default=1500, help="test pixels that are scored, at most")
    options = parser.parse_args()
    base, scene = Bench(options.run), open_scene(read_json(options.run / "run.json")["scene"]["url"])
    rows = []
    for text in options.geometries.split(","):
        window, stride = map(int, text.split(":"))
        patches = replace(base.config.patches, window=window, stride=stride)
        for protocol in options.protocols.split(","):
            for seed in map(int, options.seeds.split(",")):
                pixels = base.pixels(scene, protocol, seed, options.test, options.block)
                begun = time.perf_counter()
                features = base.features(patches, *pixels[:2])
                spent = (time.perf_counter() - begun) / len(pixels[0])
                learnt = base.learn(features, pixels[2], pixels[3])
                border = base.border(patches, learnt) if stride > 1 and seed == 0 else None
                rows.append([text, protocol, seed, learnt.confusion.finish()["oa"], spent * 1e3, border])
                print(rows[-1], flush=True)
    publish(
        f"windows_{options.run.name}", f"{options.run.name}: window:stride against exact (stride 1)",
        ["window:stride", "split", "seed", "OA", "ms / labelled pixel", "border changes / inner"], rows,
    )  # fmt: skip


class Bench(Learner):
    """A pretrained run, its pixels and its borders."""

    def pixels(
        self, scene: Scene, protocol: str, seed: int, test: int, block: int
    ) -> tuple[NDArray[np.int64], ...]:
        """y, x, class position and split of all training and some test pixels."""
        split = replace(self.config.split, protocol=protocol, seed=seed)  # type: ignore[arg-type]
        if protocol == "blocks":
            split = replace(split, train_per_class=30, block=block)
        y, x, label, use = labelled_split(self.config.model_copy(update={"split": split}), scene)
        tested = np.flatnonzero(use == TEST)
        drop = np.random.default_rng(seed).permutation(tested)[test:]
        keep = np.setdiff1d(np.arange(len(y)), drop)
        return y[keep], x[keep], np.unique(label, return_inverse=True)[1][keep], use[keep]

    def border(self, patches: PatchConfig, learnt: Learnt) -> float:
        """Class changes across block borders over those one pixel to either side."""
        ensemble, selection = learnt.ensemble, learnt.selection
        _, height, width = self.reduced.shape
        readout = Readout(selection.centre, selection.pooled, ensemble.mean_2TK[0], ensemble.scale_2TK[0])
        extract, stride = self.extractor(patches, readout), patches.stride
        map_HW = np.zeros((-(-height // stride) * stride, -(-width // stride) * stride), np.int64)
        for corners in self._blocks(patches, extract.batch):
            read = [
                self.reduced.window(r - patches.before, r - patches.before + patches.side,
                                    c - patches.before, c - patches.before + patches.side, patches)
                for r, c in corners
            ]  # fmt: skip
            features = extract(torch.from_numpy(np.nan_to_num(np.stack(read))))
            for i, (r, c) in enumerate(corners):
                map_HW[r : r + stride, c : c + stride] = _classified(features, ensemble, i, stride)
        return border_ratio(map_HW[:height, :width], stride)

    def _blocks(self, patches: PatchConfig, batch: int) -> Iterator[list[tuple[int, int]]]:
        _, height, width = self.reduced.shape
        at = [(r, c) for r in range(0, height, patches.stride) for c in range(0, width, patches.stride)]
        for start in range(0, len(at), batch):
            yield at[start : start + batch]


def _classified(features: Features, ensemble: Ensemble, window: int, stride: int) -> NDArray[np.int64]:
    votes = ensemble.window_votes(features.pooled_NTK[window : window + 1])
    rows = [
        ensemble.classify(features.rows(*at), votes, features.spectra_rows(*at)).position_N
        for at in ((window, r, min(r + 8, stride)) for r in range(0, stride, 8))
    ]
    return torch.cat(rows).numpy().reshape(stride, stride)


def border_ratio(map_HW: NDArray[np.int64], stride: int) -> float:
    """Share of class changes across block borders over the share one pixel to either side of them."""
    across = inner = 0.0
    for axis in (0, 1):
        changes = (np.diff(map_HW, axis=axis) != 0).mean(axis=1 - axis)
        borders = np.arange(stride, map_HW.shape[axis], stride) - 1
        borders = borders[(borders >= 1) & (borders + 1 < len(changes))]
        across += changes[borders].sum()
        inner += (changes[borders - 1] + changes[borders + 1]).sum() / 2
    return float(across / inner) if inner else float("nan")


if __name__ == "__main__":
    main()
