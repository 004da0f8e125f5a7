"""Class- and timestep-oriented purification: keep the channels that tell classes and timesteps apart.

Only the class means of the training pixels enter, so the statistics are mergeable sums. Source: the
criterion of MTMSD (arXiv 2306.08964), with constant features guarded. Channels are chosen once for
all timesteps, and separately for centre and pooled features.
Shapes: K class, T timestep, D channel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtmsd.checks import check_ranges

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PurifyConfig:
    """How many channels survive, and what counts."""

    keep: float = 0.6
    """Share of the channels that is kept (the paper keeps 768 of 1,280); of two classes all are, for
    scaled to their range two means are 0 and 1 in every channel, and say nothing."""
    similarity_weight: float = 0.8
    """Weight (lambda), 0 to 1, of how alike the means of a channel are, against how much they vary."""
    timestep_weight: float = 0.5
    """Weight of telling timesteps apart, where telling classes apart weighs 1."""

    def __post_init__(self) -> None:
        """Refuse shares outside (0, 1]."""
        check_ranges("purify", self, keep="(0, 1]", similarity_weight="[0, 1]", timestep_weight="[0, inf)")

    def count(self, channels: int, classes: int) -> int:
        """How many of the channels are kept.

        >>> PurifyConfig(keep=0.6).count(1280, classes=20), PurifyConfig(keep=0.6).count(1280, classes=2)
        (768, 1280)
        """
        return max(1, round(self.keep * channels)) if classes > 2 else channels


class ClassMeans:
    """Mergeable sums of one kind of feature by class: update, merge, finish.

    >>> means = ClassMeans(classes=2, timesteps=1, channels=1)
    >>> means.update(np.array([[[1]], [[3]], [[7]]], np.float32), np.array([0, 0, 1]))
    >>> means.finish().ravel().tolist()
    [2.0, 7.0]
    """

    def __init__(self, classes: int, timesteps: int, channels: int) -> None:
        self.sum_KTD: FloatArray = np.zeros((classes, timesteps, channels))
        self.count_K: NDArray[np.int64] = np.zeros(classes, np.int64)

    def update(self, features_NTD: NDArray[np.float32], label_N: NDArray[np.int64]) -> None:
        """Add pixels with class positions ``label_N`` (0-based)."""
        for k in np.unique(label_N):
            mine = features_NTD[label_N == k]
            self.sum_KTD[k] += mine.sum(axis=0, dtype=np.float64)
            self.count_K[k] += len(mine)

    def merge(self, other: "ClassMeans") -> None:
        """Add the pixels of ``other``."""
        self.sum_KTD += other.sum_KTD
        self.count_K += other.count_K

    def finish(self) -> FloatArray:
        """Class means (K, T, D).

        Raises:
            ValueError: A class has no pixel.
        """
        if not self.count_K.all():
            raise ValueError(
                f"every class needs a training pixel, found none of class positions "
                f"{np.flatnonzero(self.count_K == 0).tolist()}"
            )
        return self.sum_KTD / self.count_K[:, None, None]


@dataclass(frozen=True)
class Selection:
    """Channels that are kept, ascending."""

    centre: tuple[int, ...]
    pooled: tuple[int, ...]

    def per_stage(self, widths: Sequence[int]) -> tuple[int, ...]:
        """How many of the centre features' channels are each tapped stage's, of ``widths`` channels.

        >>> Selection((0, 1, 5), (0, 2, 5)).per_stage([4, 4])
        (2, 1)
        """
        cuts = np.searchsorted(self.centre, np.cumsum([0, *widths]))
        return tuple(int(count) for count in np.diff(cuts))

    def as_json(self) -> dict[str, list[int]]:
        """A JSON object."""
        return {"centre": list(self.centre), "pooled": list(self.pooled)}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Selection":
        """The inverse of ``as_json``."""
        return Selection(tuple(value["centre"]), tuple(value["pooled"]))


def _scaled(values: FloatArray, axis: int) -> FloatArray:
    """Min-max to [0, 1] along an axis; constant features, which tell nothing apart, become 1.

    All ones is the most similar and least varied that a feature can be, so they are dropped first.
    """
    low, high = values.min(axis=axis, keepdims=True), values.max(axis=axis, keepdims=True)
    span = high - low
    return np.where(span > 0, (values - low) / np.where(span > 0, span, 1), 1.0)


def _separation(values: FloatArray, axis: int, similarity_weight: float) -> FloatArray:
    """-lambda S + (1 - lambda) V along ``axis``.

    S, the mean product over ordered pairs i != j, has the closed form
    ((sum b)^2 - sum b^2) / (n (n - 1)); V is the population variance.
    """
    b, n = _scaled(values, axis), values.shape[axis]
    total, squares = b.sum(axis=axis), (b * b).sum(axis=axis)
    similarity = (total**2 - squares) / max(n * (n - 1), 1)
    result: FloatArray = -similarity_weight * similarity + (1 - similarity_weight) * b.var(axis=axis)
    return result


def channel_scores(means_KTD: FloatArray, config: PurifyConfig) -> FloatArray:
    """Score of each channel (D); higher is better."""
    means = np.asarray(means_KTD, np.float64)
    by_class = _separation(means, 0, config.similarity_weight).sum(axis=0)
    by_timestep = _separation(means, 1, config.similarity_weight).sum(axis=0)
    scores: FloatArray = by_class + config.timestep_weight * by_timestep
    return scores


def select_channels(means_KTD: FloatArray, config: PurifyConfig) -> tuple[int, ...]:
    """The best channels, as many as ``config.count`` says, ascending; ties go to the lower channel.

    Of three channels (three classes, one timestep), the constant one goes first:

    >>> means_KTD = np.array([[[0, 5, 0]], [[1, 5, 9]], [[3, 5, 0]]], float)
    >>> select_channels(means_KTD, PurifyConfig(keep=2 / 3))
    (0, 2)
    """
    scores = channel_scores(means_KTD, config)
    count = config.count(len(scores), len(means_KTD))
    return tuple(sorted(np.argsort(-scores, kind="stable")[:count].tolist()))


def select(means: Sequence[FloatArray], config: PurifyConfig) -> Selection:
    """Channels to keep of the centre and the pooled class means.

    >>> means_KTD = np.array([[[0, 5]], [[1, 5]], [[3, 5]]], float)
    >>> select([means_KTD, means_KTD[:, :, ::-1]], PurifyConfig(keep=0.5))
    Selection(centre=(0,), pooled=(1,))
    """
    centre, pooled = means
    return Selection(select_channels(centre, config), select_channels(pooled, config))
