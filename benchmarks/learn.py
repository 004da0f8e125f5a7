"""A pretrained run taken through features and classifier in this process.

The pipeline's own functions without its cluster, so that many splits share the features of all labelled
pixels. A test compares the result with the pipeline's.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mtmsd.calibration import Reliability, fit_temperature, twin_folds
from mtmsd.classifier import Member, Sizes
from mtmsd.diffusion import Schedule
from mtmsd.ensemble import Ensemble, assemble
from mtmsd.experts import Committee, fit_expert, training_input
from mtmsd.features import Extractor, Readout, stage_widths
from mtmsd.members import Pixels, held_out_logits, train_member, training_margin
from mtmsd.metrics import Confusion
from mtmsd.purify import ClassMeans, Selection, select
from mtmsd.split import TEST, TRAIN, block_of
from mtmsd.windows import PatchConfig
from pipeline.artifacts import RunFolder
from pipeline.config import Config
from pipeline.readers import Reduced
from pipeline.trained import load_unet

Kinds = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Centre and pooled features (N, T, K) and spectra (N, E)."""


class Learnt(NamedTuple):
    """What training on one split gave, and how it did on the test pixels."""

    ensemble: Ensemble
    selection: Selection
    confusion: Confusion
    reliability: Reliability


class Learner:
    """A run that has finished pretraining, under its own configuration or another one."""

    def __init__(self, run: Path, config: Config | None = None) -> None:
        self.folder = RunFolder(run)
        self.config = config or self.folder.config()
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
        ensemble = self._ensemble(pixels, sizes, block)
        test, confusion, reliability = np.flatnonzero(use == TEST), Confusion(classes), Reliability()
        for part in np.array_split(test, max(1, len(test) // 256)):
            answer = ensemble(*(kind[part] for kind in kept))
            predicted = answer.position_N.numpy()
            confusion.update(position[part], predicted)
            reliability.update(answer.confidence_N.numpy(), predicted == position[part])
        return Learnt(ensemble, selection, confusion, reliability)

    def _ensemble(self, pixels: Pixels, sizes: Sizes, block: NDArray[np.int64] | None) -> Ensemble:
        head, fusion, seed = self.config.classifier, self.config.fusion, self.config.seed
        members: list[Member] = []
        for member in range(head.members):
            members.append(train_member(head, fusion, pixels, sizes, seed=seed, member=member)[0])
        folds = twin_folds(pixels.position_N.numpy(), head.members, seed, block)
        if not head.calibrate:
            return self._with_experts(assemble(members, head.vote), pixels, sizes, folds)
        held = [(m, torch.from_numpy(fold == m)) for m in range(head.members) for fold in folds]
        held = [(m, mask) for m, mask in held if mask.any()]
        logits = [held_out_logits(head, fusion, pixels, sizes, mask, seed=seed, member=m) for m, mask in held]
        truth = [pixels.position_N[mask] for _, mask in held]
        margins = [training_margin(member, pixels) for member in members]
        temperature = fit_temperature(torch.cat(logits), torch.cat(truth), sum(margins) / len(margins))
        return self._with_experts(assemble(members, head.vote, temperature), pixels, sizes, folds)

    def _with_experts(
        self, ensemble: Ensemble, pixels: Pixels, sizes: Sizes, folds: list[NDArray[np.int64]]
    ) -> Ensemble:
        if not self.config.experts:
            return ensemble
        experts = {}
        for name in self.config.experts:
            inputs = training_input(name, pixels, self.config.classifier.standardise)
            held_out = [torch.from_numpy(fold) for fold in folds]
            experts[name] = fit_expert(inputs, pixels.position_N, sizes.classes, held_out).expert
        return Committee(ensemble, experts)
