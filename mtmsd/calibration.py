"""Confidence that means what it says: a temperature for the logits, and how well it holds.

Source: Guo et al. 2017 (arXiv 1706.04599): one temperature, chosen for the likelihood of pixels that did
not train. Members train on all training pixels, so twins of them, each without one fold, supply the logits.
The channels that twins read were chosen with the class means of all training pixels, the held-out ones too.
Shapes: N pixel, C class, B bin.
"""

import math

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

PRIOR_MARGIN = 6.0
"""Expected gap of a member's two largest logits at its own training pixels, divided by the temperature."""
PRIOR_WIDTH = 0.2
"""Expected spread of the logarithm of the temperature about that."""
_SHARPEST, _FLATTEST, _STEP, _TINY = 0.1, 10.0, 1e-3, 1e-6
BINS = 15


def fold_of(
    position_N: NDArray[np.int64], folds: int, seed: int, place_N: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Fold in which each pixel is held out, classes shared out evenly; -1: never (the only one of its class).

    With ``place_N`` all pixels of a class in one place are held out together.

    >>> fold = fold_of(np.array([0, 0, 0, 0, 1]), folds=2, seed=0)
    >>> sorted(fold[:4].tolist()), int(fold[4])
    ([0, 0, 1, 1], -1)
    >>> fold = fold_of(np.zeros(4, int), folds=2, seed=0, place_N=np.array([7, 7, 7, 9]))
    >>> len(set(fold[:3].tolist())), bool(fold[0] == fold[3])
    (1, False)
    """
    place_N = np.arange(len(position_N)) if place_N is None else place_N
    fold = np.full(len(position_N), -1)
    for k in np.unique(position_N):
        mine = np.flatnonzero(position_N == k)
        places, at = np.unique(place_N[mine], return_inverse=True)
        if len(places) > 1:
            order = np.random.default_rng([seed, 5, int(k)]).permutation(len(places))
            fold[mine] = (np.argsort(order) % folds)[at]
    return fold


def twin_folds(
    position_N: NDArray[np.int64], folds: int, seed: int, block_N: NDArray[np.int64] | None = None
) -> list[NDArray[np.int64]]:
    """What twins leave out: pixels, and whole blocks too where test pixels lie in blocks of their own.

    Held-out pixels among training pixels are easier than such test pixels, whole blocks harder: a twin
    without them has seen less than its member. There are at least two folds: a lone twin, too, must have
    pixels to learn from.
    """
    places = [None] if block_N is None else [None, block_N]
    return [fold_of(position_N, max(folds, 2), seed, place_N) for place_N in places]


def fit_temperature(logits_NC: Tensor, position_N: Tensor, margin: float | None = None) -> float:
    """The most probable temperature in [0.1, 10], to 0.1 %.

    A few held-out pixels say little of it: the likelihood is joined with a prior, log-normal with width
    ``PRIOR_WIDTH`` about the temperature that brings the members' margin at their own training pixels to
    ``PRIOR_MARGIN``. Some hundred pixels outweigh it.

    Args:
        logits_NC: Logits of pixels that did not train.
        position_N: Their classes, 0-based.
        margin: The members' ``training_margin``; None: no prior, and 1 when there is no pixel.
    """
    if margin is None and not len(position_N):
        return 1.0
    logits, expected = logits_NC.double(), math.log(max(margin or 0.0, _TINY) / PRIOR_MARGIN)

    def cost(log_temperature: float) -> float:
        loss = F.cross_entropy(logits / math.exp(log_temperature), position_N, reduction="sum")
        prior = 0.0 if margin is None else (log_temperature - expected) ** 2 / (2 * PRIOR_WIDTH**2)
        return float(loss) + prior

    low, high, best = math.log(_SHARPEST), math.log(_FLATTEST), 0.0
    while high - low > _STEP:  # every pass looks closer about the best so far
        grid = np.linspace(low, high, 24).tolist()
        best = min(grid, key=cost)
        low, high = max(low, best - (grid[1] - grid[0])), min(high, best + (grid[1] - grid[0]))
    return math.exp(best)


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
