"""The labelled pixels of a pretrained scene and their features, computed once for all splits."""

import hashlib
import json
import os
import time
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.learn import Kinds, Learner
from mtmsd.split import SplitConfig, make_split
from pipeline.artifacts import RunFolder
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.labels import by_block
from pipeline.scene import Scene

SHARED = ("patches", "features")
"""Sections that all splits of one command share."""


@dataclass(frozen=True)
class Labelled:
    """All labelled pixels of the scene and their features, in one order."""

    y: NDArray[np.int64]
    x: NDArray[np.int64]
    label: NDArray[np.int64]
    features: Kinds
    seconds: float
    labels: str = ""
    """Fingerprint of the scene's labels."""

    def split(self, protocol: SplitConfig, seed: int) -> NDArray[np.int64]:
        """TRAIN, TEST or UNUSED for each pixel: the split that the pipeline draws for this seed.

        Raises:
            UserError: The scene's labels cannot serve the protocol.
        """
        rows, split = np.lexsort((self.x, self.y)), np.empty(len(self.y), np.int64)
        try:
            split[rows] = make_split(self.y[rows], self.x[rows], self.label[rows], protocol, seed)
        except ValueError as error:
            raise UserError(f"split.seed={seed}: {error}") from None
        return split

    @staticmethod
    def read(base: RunFolder, scene: Scene, config: Config | None = None) -> "Labelled":
        """From the base's U-Net, kept beside it for this network, these labels and settings."""
        learner, begun = Learner(base.path, config), time.monotonic()
        settings = [learner.config.model_dump(mode="json")[name] for name in SHARED]
        labels = str(scene.label_fingerprint())
        digest = hashlib.sha256(json.dumps([settings, learner.config.patch, labels]).encode())
        digest.update(base.unet.read_bytes())
        path = base.path / f"labelled_{digest.hexdigest()[:16]}.npz"
        y, x, label = scene.labelled_pixels()
        if not path.exists():
            order = by_block(y, x, learner.config.patches)
            order = order[learner.reduced.has_data(y[order], x[order])]
            y, x, label = y[order], x[order], label[order]
            kinds = learner.features(learner.config.patches, y, x)
            centre, pooled, spectra = (kind.numpy() for kind in kinds)
            np.savez(
                base.path / "labelled.partial.npz", y=y, x=x, label=label, centre=centre, pooled=pooled,
                spectra=spectra, seconds=np.array(time.monotonic() - begun),
            )  # fmt: skip
            os.replace(base.path / "labelled.partial.npz", path)
        with np.load(path) as stored:
            features = tuple(torch.from_numpy(stored[name]) for name in ("centre", "pooled", "spectra"))
            seconds = float(stored["seconds"])
            kinds = cast(Kinds, features)
            return Labelled(stored["y"], stored["x"], stored["label"], kinds, seconds, labels)
