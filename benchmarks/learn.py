"""A pretrained run taken through features and classifier in this process.

The pipeline's own functions without its cluster, so that many splits share the features of all labelled
pixels. A test compares the result with the pipeline's.
"""

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mtmsd.calibration import Reliability, fit_temperature, twin_folds
from mtmsd.classifier import Member, Sizes
from mtmsd.conformal import Coverage, HeldOut, class_sets, joint_threshold
from mtmsd.diffusion import Schedule
from mtmsd.ensemble import Ensemble, assemble
from mtmsd.experts import Committee, fit_expert, training_input
from mtmsd.features import Extractor, Readout, stage_widths
from mtmsd.members import Pixels, held_out_logits, train_member, training_margin
from mtmsd.metrics import Confusion
from mtmsd.mosaic import Mosaic
from mtmsd.purify import ClassMeans, Selection, select
from mtmsd.split import TEST, TRAIN, block_of
from mtmsd.windows import PatchConfig
from pipeline.artifacts import RunFolder
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.readers import Reduced
from pipeline.trained import load_unet

AT_ONCE = 512
"""Pixels that the ensemble classifies at once."""
Kinds = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Centre and pooled features (N, T, K) and spectra (N, E)."""


def of_a_pixel(patches: PatchConfig, tile: int) -> tuple[float, float]:
    """Windows, and answers of the ensemble, that a pixel of the map costs.

    A tile's outer blocks are computed for the neighbouring tile too, and blocks that blend overlap.
    """
    mosaic, blocks = Mosaic(tile, tile, 1, patches), patches.blocks(tile)
    along = sum(part.stop - part.start for part in (mosaic.inside(block, 0) for block in range(blocks)))
    return (blocks / tile) ** 2, (along / tile) ** 2


class Learnt(NamedTuple):
    """What training on one split gave, and how it did on the test pixels."""

    ensemble: Ensemble
    selection: Selection
    confusion: Confusion
    reliability: Reliability
    coverage: Coverage
    """Of the sets of classes; of no pixel where nothing was calibrated."""


class Learner:
    """A run that has finished pretraining, under its own configuration or another one."""

    def __init__(self, run: Path, config: Config | None = None) -> None:
        self.folder = RunFolder(run)
        self.config = config or self.folder.config()
        if not self.config.reads_features or self.config.fusion.keep_timesteps is not None:
            raise UserError(
                "this comparison reads the features of all timesteps: expected a classifier that reads them, "
                "and neither features.timesteps=auto nor fusion.keep_timesteps (benchmarks.parts takes any)"
            )
        self.reduced = Reduced(str(self.folder.reduced))

    def extractor(self, patches: PatchConfig, readout: Readout | None = None) -> Extractor:
        """With the run's U-Net."""
        schedule = Schedule(self.config.diffusion)
        unet, features = load_unet(self.folder.unet), self.config.features
        return Extractor(unet, schedule, features, patches, readout, self.config.patch)

    def features(self, patches: PatchConfig, y: NDArray[np.int64], x: NDArray[np.int64]) -> Kinds:
        """Centre and pooled features and spectra of pixels, in their order."""
        extract, side = self.extractor(patches), patches.side
        blocks, window = np.unique(patches.block(np.stack([y, x])), axis=1, return_inverse=True)
        parts: list[tuple[NDArray[np.int64], tuple[torch.Tensor, ...]]] = []
        offset = torch.from_numpy(patches.within(y) * patches.stride + patches.within(x))
        for start in range(0, blocks.shape[1], extract.batch):
            corners = patches.corner(blocks.T[start : start + extract.batch])
            read = [self.reduced.window(r, r + side, c, c + side, patches) for r, c in corners]
            features = extract(torch.from_numpy(np.nan_to_num(np.stack(read))))
            mine = np.flatnonzero((window >= start) & (window < start + extract.batch))
            inside = torch.from_numpy(window[mine] - start)
            at = inside, offset[mine]
            parts.append((mine, (features.at(*at), features.pooled_NTK[inside], features.spectra_at(*at))))
        order = np.argsort(np.concatenate([mine for mine, _ in parts]))
        centre, pooled, spectra = (torch.cat([part[i] for _, part in parts])[order] for i in range(3))
        return centre, pooled, spectra

    def purify(self, features: Kinds, position: NDArray[np.int64], train: NDArray[np.bool_]) -> Selection:
        """The channels of centre and pooled features that training pixels choose."""
        means = []
        for kind in features[:2]:
            sums = ClassMeans(int(position.max()) + 1, *kind.shape[1:])
            sums.update(kind[train].numpy(), position[train])
            means.append(sums.finish())
        return select(means, self.config.purify)

    def learn(
        self,
        features: Kinds,
        position: NDArray[np.int64],
        use: NDArray[np.int64],
        place: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    ) -> Learnt:
        """Purify, train and calibrate the ensemble, score the test pixels.

        Args:
            features: As ``features`` gives them, not purified yet.
            position: Class position of each pixel, 0-based.
            use: TRAIN, TEST or UNUSED.
            place: Row and column of each pixel; needed where the split is by blocks, to hold out blocks too.
        """
        train, classes = use == TRAIN, int(position.max()) + 1
        selection = self.purify(features, position, train)
        kept = features[0][..., list(selection.centre)], features[1][..., list(selection.pooled)], features[2]
        pixels = Pixels(*kept, torch.from_numpy(position)).at(torch.from_numpy(train))
        stages = stage_widths(self.config.unet, self.config.features.stages, self.config.patches.side)
        sizes = Sizes(kept[0].shape[1], selection.per_stage(stages), classes, kept[2].shape[1])
        block = None
        if place is not None and self.config.split.protocol == "blocks":
            block = block_of(*place, self.config.split)[train]
        ensemble, threshold = self._ensemble(pixels, sizes, block)
        found = Learnt(ensemble, selection, Confusion(classes), Reliability(), Coverage())
        test = np.flatnonzero(use == TEST)
        for part in np.array_split(test, max(1, len(test) // 256)):
            evidence = ensemble.pixel_evidence(*(kind[part] for kind in kept))
            answer, truth = ensemble.decide(evidence), position[part]
            predicted = answer.position_N.numpy()
            found.confusion.update(truth, predicted)
            found.reliability.update(answer.confidence_N.numpy(), predicted == truth)
            if threshold is not None:
                sets = class_sets(ensemble.mean_probabilities(evidence), threshold)
                found.coverage.update(sets, torch.from_numpy(truth))
        return found

    def map_s(self, learnt: Learnt) -> float:
        """Seconds that one process takes for a million pixels of the map, from one pass of windows."""
        ensemble, selection, patches = learnt.ensemble, learnt.selection, self.config.patches
        readout = Readout(selection.centre, selection.pooled, ensemble.mean_2TK[0], ensemble.scale_2TK[0])
        extract, tile = self.extractor(patches.wide, readout), self.config.tile
        windows = torch.zeros(extract.batch, self.reduced.shape[0], patches.side, patches.side)
        mosaic, whole = Mosaic(tile, tile, ensemble.values, patches), patches.wide.stride
        middle = patches.blocks(tile) // 2
        for _ in range(2):  # the first one warms up
            begun = time.perf_counter()
            features = extract(windows)
            votes = ensemble.window_votes(features.pooled_NTK)
            read = time.perf_counter()
            for window in range(len(windows)):
                mosaic.add_window(middle, middle, features, votes, window, ensemble, AT_ONCE)
            ended = time.perf_counter()
        per_window, per_pixel = (read - begun) / len(windows), (ended - read) / len(windows) / whole**2
        windows_each, answers_each = of_a_pixel(patches, tile)
        return 1e6 * (per_window * windows_each + per_pixel * answers_each)

    def _ensemble(
        self, pixels: Pixels, sizes: Sizes, block: NDArray[np.int64] | None
    ) -> tuple[Ensemble, float | None]:
        """The ensemble with its experts, and the threshold of sets where it is calibrated."""
        head, fusion, seed = self.config.classifier, self.config.fusion, self.config.seed
        members: list[Member] = []
        for member in range(head.members):
            members.append(train_member(head, fusion, pixels, sizes, seed=seed, member=member)[0])
        folds = [
            torch.from_numpy(fold)
            for fold in twin_folds(pixels.position_N.numpy(), head.members, seed, block)
        ]
        fitted = {
            name: fit_expert(
                training_input(name, pixels, head.standardise), pixels.position_N, sizes.classes, folds
            )
            for name in self.config.experts
        }
        temperature, threshold = 1.0, None
        if head.calibrate:
            held_out = self._held_out(pixels, sizes, folds)
            margins = [training_margin(member, pixels) for member in members]
            temperature = fit_temperature(held_out.logits, held_out.position, sum(margins) / len(margins))
            said = [one.held_out_SNC for one in fitted.values()]
            threshold = joint_threshold(held_out, temperature, said, head.set_level)
        ensemble = assemble(members, head.vote, temperature)
        experts = {name: one.expert for name, one in fitted.items()}
        return Committee(ensemble, experts) if experts else ensemble, threshold

    def _held_out(self, pixels: Pixels, sizes: Sizes, folds: list[torch.Tensor]) -> HeldOut:
        """What the members' twins say of the pixels that they were not given."""
        head, fusion, seed = self.config.classifier, self.config.fusion, self.config.seed
        none = torch.empty(0, dtype=torch.long)
        parts = [HeldOut(torch.empty(0, sizes.classes), none, none, none)]
        for member in range(head.members):
            for kind, mask in ((kind, fold == member) for kind, fold in enumerate(folds)):
                if mask.any():
                    logits = held_out_logits(head, fusion, pixels, sizes, mask, seed=seed, member=member)
                    which = torch.full((len(logits),), kind)
                    parts.append(HeldOut(logits, pixels.position_N[mask], which, mask.nonzero()[:, 0]))
        return HeldOut(*(torch.cat(values) for values in zip(*parts, strict=True)))
