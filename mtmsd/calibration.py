"""Confidence that means what it says: a temperature for the logits, and how well it holds.

Source: Guo et al. 2017 (arXiv 1706.04599): one temperature, chosen for the likelihood of pixels that did
not train. Members train on all training pixels, so twins of them, each without one fold, supply the logits.
Shapes: N pixel, C class, B bin.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_SHARPEST, _FLATTEST = 0.1, 10.0
BINS = 15


def fold_of(position_N: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Fold in which each pixel is held out, classes shared out evenly; -1: never (the only one of its class).

    >>> fold = fold_of(np.array([0, 0, 0, 0, 1]), folds=2, seed=0)
    >>> sorted(fold[:4].tolist()), int(fold[4])
    ([0, 0, 1, 1], -1)
    """
    fold = np.full(len(position_N), -1)
    for k in np.unique(position_N):
        mine = np.flatnonzero(position_N == k)
        if len(mine) > 1:
            fold[np.random.default_rng([seed, 5, int(k)]).permutation(mine)] = np.arange(len(mine)) % folds
    return fold


def fit_temperature(logits_NC: Tensor, position_N: Tensor) -> float:
    """The temperature in [0.1, 10] with the highest likelihood; 1 when there is no pixel.

    The mean negative log-likelihood is convex in 1 / temperature: a ternary search finds its minimum.
    """
    if not len(position_N):
        return 1.0
    logits = logits_NC.double()
    low, high = 1 / _FLATTEST, 1 / _SHARPEST
    for _ in range(60):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if F.cross_entropy(logits * left, position_N) < F.cross_entropy(logits * right, position_N):
            high = right
        else:
            low = left
    return float(torch.tensor(2 / (low + high)).clamp(_SHARPEST, _FLATTEST))


class Reliability:
    """Mergeable sums by confidence: pixels, their confidence, how many are right.

    >>> reliability = Reliability(bins=2)
    >>> reliability.update(np.array([0.625, 0.875, 0.25]), np.array([True, False, False]))
    >>> reliability.rows()
    [[0.25, 0.0, 1], [0.75, 0.5, 2]]
    >>> reliability.error()
    0.25
    """

    def __init__(self, bins: int = BINS) -> None:
        self.sums_B3 = np.zeros((bins, 3))

    def update(self, confidence_N: NDArray[np.floating], right_N: NDArray[np.bool_]) -> None:
        """Add pixels; bins are of equal width, closed above."""
        bins = len(self.sums_B3)
        at = np.clip(np.ceil(confidence_N.astype(np.float64) * bins).astype(int) - 1, 0, bins - 1)
        np.add.at(self.sums_B3, at, np.stack([np.ones(len(at)), confidence_N, right_N], axis=1))

    def rows(self) -> list[list[float]]:
        """[mean confidence, share that is right, pixels] of each bin that is not empty."""
        filled = self.sums_B3[self.sums_B3[:, 0] > 0]
        return [[c / n, r / n, int(n)] for n, c, r in filled.tolist()]

    def error(self) -> float:
        """Expected calibration error: |confidence - share that is right|, weighted by pixels."""
        total = self.sums_B3[:, 0].sum()
        return float(np.abs(self.sums_B3[:, 1] - self.sums_B3[:, 2]).sum() / max(total, 1))
