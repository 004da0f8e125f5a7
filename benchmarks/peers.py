"""Peers of the pipeline: support vector machines on three inputs, a random forest, a transformer.

The machines (Gaussian kernel) see spectra; principal components with extended morphological profiles
(Benediktsson, Palmason & Sveinsson 2005); and the pipeline's own purified features. The forest sees
spectra, the transformer (ssftt.py) patches. All are tuned on the training pixels.
Shapes: N pixel, D feature, T timestep, C component, B band, H row, W column.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.morphology import dilation, disk, erosion, reconstruction
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from benchmarks import ssftt
from mtmsd.calibration import fold_of
from mtmsd.metrics import Confusion
from mtmsd.split import TEST, TRAIN, HiddenBlocks, SplitConfig

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.int64]
Folds = list[tuple[IntArray, IntArray]]

C_GRID = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
GAMMA_GRID = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Times 1 / (features * variance), scikit-learn's ``scale``."""
MAX_FOLDS = 5
RADII = (1, 2, 3, 5, 8)
"""Disks of the morphological profiles, pixels."""
PROFILED = 4
"""Principal components that get profiles."""

FOREST_GRID = {"max_features": [0.1, 0.3, 0.6, 1.0], "min_samples_leaf": [1, 2, 4, 8]}
TREES = 100

SPECTRA, PROFILES, FEATURES = "SVM, spectra", "SVM, PCA + EMP", "SVM, our purified features"
FOREST, TRANSFORMER = "random forest, spectra", "SSFTT"
_BLOCK = 4096


@dataclass(frozen=True)
class Pixels:
    """The labelled pixels of one split, N each: row, column, class code, TRAIN or TEST."""

    y: IntArray
    x: IntArray
    label: IntArray
    split: IntArray
    block: IntArray | None = None
    """Where test pixels lie in blocks of their own: the block of each pixel."""

    def folds(self) -> "Folds":
        """Folds of the training pixels, in their order."""
        train = self.split == TRAIN
        return folds_of(self.label[train], None if self.block is None else self.block[train])


@dataclass(frozen=True)
class Tuned:
    """A machine's predictions and how it was chosen."""

    predicted: IntArray
    """Class code of each test pixel, in their order."""
    cv_accuracy: float | None
    """Of the chosen setting on held-out training pixels; None when no class has two."""
    c: float
    gamma_factor: float
    folds: int
    map_s: float
    """Seconds that predicting a million pixels takes."""


def spectra(cube_BHW: NDArray[np.float32], pixels: Pixels) -> NDArray[np.float32]:
    """Spectra (N, B') of the pixels; bands without data are left out, gaps get the band's mean."""
    used_BHW = cube_BHW[np.isfinite(cube_BHW).any(axis=(1, 2))]
    values_ND = used_BHW[:, pixels.y, pixels.x].T
    gap_ND = ~np.isfinite(values_ND)
    if gap_ND.any():
        values_ND[gap_ND] = np.nanmean(used_BHW, axis=(1, 2))[np.nonzero(gap_ND)[1]]
    return values_ND


def profiles(scores_CHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """All components, and openings and closings by reconstruction of the first ``PROFILED``.

    Args:
        scores_CHW: Principal components; NaN (no data) counts as 0, their mean.

    Returns:
        (C + 2 * len(RADII) * min(C, PROFILED), H, W).
    """
    images_CHW = np.nan_to_num(scores_CHW)
    layers = list(images_CHW)
    for image in images_CHW[:PROFILED]:
        for radius in RADII:
            footprint = disk(radius)  # type: ignore[no-untyped-call]
            for start, method in ((erosion, "dilation"), (dilation, "erosion")):
                seed = start(image, footprint)
                layers.append(reconstruction(seed, image, method))  # type: ignore[no-untyped-call]
    return np.stack(layers).astype(np.float32)


def folds_of(label_N: IntArray, block_N: IntArray | None = None) -> Folds:
    """Stratified folds (fit, held out) of training pixels; empty when no class has two pixels.

    As many folds as the smallest class has pixels, from 2 to ``MAX_FOLDS``. A class of a single
    pixel is never held out: it would be missing from the fit. With ``block_N`` the pixels of a class in one
    block count as one, as for our own twins.
    """
    if block_N is not None:
        places = [len(np.unique(block_N[label_N == code])) for code in np.unique(label_N)]
        number = min([MAX_FOLDS, *(count for count in places if count > 1)])
        fold_N = fold_of(label_N, number, 0, block_N)
        return [(np.flatnonzero(fold_N != k), np.flatnonzero(fold_N == k)) for k in range(fold_N.max() + 1)]
    codes, counts = np.unique(label_N, return_counts=True)
    if counts.max() < 2:
        return []
    several = np.flatnonzero(np.isin(label_N, codes[counts > 1]))
    single = np.flatnonzero(np.isin(label_N, codes[counts == 1]))
    number = int(min(MAX_FOLDS, counts[counts > 1].min()))
    cut = StratifiedKFold(number, shuffle=True, random_state=0).split(several, label_N[several])
    return [(np.sort(np.concatenate([several[fit], single])), several[held]) for fit, held in cut]


def tuned_svm(features_ND: FloatArray, pixels: Pixels) -> Tuned:
    """Standardise, choose C and gamma by cross-validation on training pixels, predict test pixels.

    Squared distances are computed once and serve every gamma. Memory: the training pixels squared.
    """
    train, test = pixels.split == TRAIN, pixels.split == TEST
    label = pixels.label[train]
    scaler = StandardScaler().fit(features_ND[train].astype(np.float64))
    fit_ND = scaler.transform(features_ND[train].astype(np.float64))
    distances = euclidean_distances(fit_ND, squared=True)
    scale = 1 / (fit_ND.shape[1] * max(float(fit_ND.var()), 1e-12))
    folds = pixels.folds()
    if folds:
        searches = []
        for factor in GAMMA_GRID:
            search = GridSearchCV(SVC(kernel="precomputed"), {"C": C_GRID}, cv=folds, refit=False)
            searches.append((search.fit(np.exp(-factor * scale * distances), label), factor))
        search, factor = max(searches, key=lambda pair: pair[0].best_score_)
        c, accuracy = float(search.best_params_["C"]), float(search.best_score_)
    else:
        c, factor, accuracy = 100.0, 1.0, None
    machine = SVC(kernel="precomputed", C=c).fit(np.exp(-factor * scale * distances), label)
    predicted, begun = [np.empty(0, label.dtype)], time.monotonic()
    for rows in np.array_split(np.flatnonzero(test), -(-int(test.sum()) // _BLOCK)):
        other_ND = scaler.transform(features_ND[rows].astype(np.float64))
        apart = euclidean_distances(other_ND, fit_ND, squared=True)
        predicted.append(machine.predict(np.exp(-factor * scale * apart)))
    map_s = _a_million(time.monotonic() - begun, pixels)
    return Tuned(np.concatenate(predicted), accuracy, c, factor, len(folds), map_s)


def _a_million(seconds: float, pixels: Pixels) -> float:
    """Of what the test pixels took."""
    return 1e6 * seconds / max(1, int((pixels.split == TEST).sum()))


def score(pixels: Pixels, predicted: IntArray) -> dict[str, Any]:
    """OA, AA, kappa and accuracy per class of the test pixels, as the pipeline computes them."""
    codes = np.unique(pixels.label)
    confusion = Confusion(len(codes))
    truth = pixels.label[pixels.split == TEST]
    confusion.update(np.searchsorted(codes, truth), np.searchsorted(codes, predicted))
    scores = confusion.finish()
    return {key: scores[key] for key in ("oa", "aa", "kappa", "per_class")}


def peer(variants: Sequence[tuple[str, FloatArray]], pixels: Pixels) -> dict[str, Any]:
    """Scores of the input that cross-validates best on the training pixels; of equals the last.

    Args:
        variants: Name and features (N, D) of each candidate, what holds more behind what holds less.
        pixels: The split.

    Returns:
        ``oa``, ``aa``, ``kappa``, ``per_class``, the choices, and ``map_s``, of the chosen one's prediction.
    """
    results = [(name, tuned_svm(features, pixels)) for name, features in variants]
    name, best = max(reversed(results), key=lambda result: result[1].cv_accuracy or 0.0)
    return score(pixels, best.predicted) | {
        "variant": name,
        "cv_accuracy": {name: result.cv_accuracy for name, result in results},
        "c": best.c,
        "gamma_factor": best.gamma_factor,
        "folds": best.folds,
        "map_s": best.map_s,
    }


def feature_variants(
    centre_NTD: NDArray[np.float32], pooled_NTD: NDArray[np.float32], spectra_NE: NDArray[np.float32]
) -> list[tuple[str, FloatArray]]:
    """Every input that our head reads, so that nothing is kept from the peer.

    Purified centre features, of all timesteps side by side or of the first alone; each with and without the
    pooled features of the same timesteps, and with and without our spectra.
    """
    centre, pooled = (kind.reshape(len(kind), -1) for kind in (centre_NTD, pooled_NTD))
    timesteps: list[tuple[str, FloatArray, FloatArray]] = [("all timesteps", centre, pooled)]
    if centre_NTD.shape[1] > 1:
        timesteps.append(("first timestep", centre_NTD[:, 0], pooled_NTD[:, 0]))
    variants: list[tuple[str, FloatArray]] = []
    for name, one, around in timesteps:
        both = np.hstack([one, around])
        variants += [(name, one), (f"{name}, pooled", both)]
        if spectra_NE.shape[1]:
            variants += [(f"{name}, spectra", np.hstack([one, spectra_NE])),
                         (f"{name}, pooled, spectra", np.hstack([both, spectra_NE]))]  # fmt: skip
    return variants


def forest(features_ND: FloatArray, pixels: Pixels) -> dict[str, Any]:
    """Scores of a random forest, tuned by cross-validation on the training pixels; with ``seconds``."""
    begun = time.monotonic()
    train, test = pixels.split == TRAIN, pixels.split == TEST
    label, folds = pixels.label[train], pixels.folds()
    plain = RandomForestClassifier(TREES, random_state=0)
    search = GridSearchCV(plain, FOREST_GRID, cv=folds) if folds else plain
    search.fit(features_ND[train], label)
    chosen = {"chosen": search.best_params_} if folds else {}
    trained = time.monotonic()
    scores = score(pixels, search.predict(features_ND[test]))
    return scores | chosen | _times(begun, trained, pixels)


def _times(begun: float, trained: float, pixels: Pixels) -> dict[str, float]:
    ended = time.monotonic()
    return {"seconds": ended - begun, "map_s": _a_million(ended - trained, pixels)}


def transformer(cube_BHW: NDArray[np.float32], pixels: Pixels, protocol: SplitConfig) -> dict[str, Any]:
    """Scores of SSFTT, tuned on a part of the training pixels; as of ``peer``, with ``seconds``.

    Principal components are fitted to the pixels that the pipeline fits its own to.
    """
    begun, hidden_HW = time.monotonic(), None
    if protocol.inductive:
        hidden = HiddenBlocks.of_test(pixels.y, pixels.x, pixels.split, protocol)
        hidden_HW = hidden.mask(0, cube_BHW.shape[1], 0, cube_BHW.shape[2])
    image_CHW = ssftt.whitened(cube_BHW, hidden_HW)
    train, test = pixels.split == TRAIN, pixels.split == TEST
    codes = np.unique(pixels.label[train])
    position = np.searchsorted(codes, pixels.label[train])
    y, x, folds = pixels.y[train], pixels.x[train], pixels.folds()
    model, chosen = ssftt.tuned(image_CHW, y, x, position, folds)
    trained = time.monotonic()
    predicted = codes[ssftt.predict(model, image_CHW, pixels.y[test], pixels.x[test])]
    return score(pixels, predicted) | {"chosen": asdict(chosen)} | _times(begun, trained, pixels)
