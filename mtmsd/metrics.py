"""Accuracy from a mergeable confusion matrix, and how well a map's borders lie."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Confusion:
    """Counts of (true class, predicted class): update, merge, finish.

    >>> confusion = Confusion(classes=2)
    >>> confusion.update(truth=np.array([0, 0, 0, 1]), predicted=np.array([0, 0, 1, 1]))
    >>> scores = confusion.finish()
    >>> scores["confusion"]
    [[2, 1], [0, 1]]
    >>> scores["oa"], round(scores["aa"], 4), scores["kappa"]
    (0.75, 0.8333, 0.5)
    """

    def __init__(self, classes: int) -> None:
        self.counts: NDArray[np.int64] = np.zeros((classes, classes), np.int64)

    def update(self, truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> None:
        """Add pixels by class position (0-based)."""
        np.add.at(self.counts, (truth, predicted), 1)

    def merge(self, other: "Confusion") -> None:
        """Add the pixels of ``other``."""
        self.counts += other.counts

    def finish(self) -> dict[str, Any]:
        """Overall accuracy, average accuracy (classes with pixels), Cohen's kappa, each class's accuracy.

        A class without pixels has no accuracy: None in ``per_class``.

        Raises:
            ValueError: No pixel was counted.
        """
        total = self.counts.sum()
        if total == 0:
            raise ValueError("accuracy needs at least one test pixel, found none")
        truth, predicted = self.counts.sum(axis=1), self.counts.sum(axis=0)
        agreement = np.trace(self.counts) / total
        chance = float((truth * predicted).sum()) / float(total) ** 2
        per_class = np.diag(self.counts) / np.where(truth > 0, truth, 1)
        return {
            "oa": float(agreement),
            "aa": float(per_class[truth > 0].mean()),
            "kappa": float((agreement - chance) / (1 - chance)) if chance < 1 else 1.0,
            "per_class": [share if n else None for share, n in zip(per_class.tolist(), truth, strict=True)],
            "confusion": self.counts.tolist(),
        }


def boundary_f_score(
    truth_HW: NDArray[Any], predicted_HW: NDArray[Any], tolerance: float
) -> dict[str, float]:
    """F-score of a map's class borders (Csurka et al., BMVC 2013; here of all classes at once).

    A pixel is on a border when one beside, above or below it has another class; both sides are. Precision
    is the share of the map's border pixels with one of the truth's within the tolerance, recall the
    reverse, ``f_score`` their harmonic mean (0 when there is no border on either side).

    Args:
        truth_HW: Classes, 0 = unknown: there nothing is compared.
        predicted_HW: Classes, 0 = no data.
        tolerance: Largest distance, pixels.

    Raises:
        ValueError: Shapes differ.

    >>> truth, found = np.ones((2, 3, 6), np.uint8)
    >>> truth[:, 3:], found[:, 4:] = 2, 2
    >>> boundary_f_score(truth, found, tolerance=0)
    {'f_score': 0.5, 'precision': 0.5, 'recall': 0.5}
    """
    if truth_HW.shape != predicted_HW.shape:
        raise ValueError(
            f"truth and map must have one shape, found {truth_HW.shape} and {predicted_HW.shape}"
        )
    borders = [_border(array * (truth_HW != 0)) for array in (truth_HW, predicted_HW)]
    near = [_within(border, tolerance) for border in borders]
    precision = float((borders[1] & near[0]).sum() / max(1, borders[1].sum()))
    recall = float((borders[0] & near[1]).sum() / max(1, borders[0].sum()))
    f_score = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"f_score": f_score, "precision": precision, "recall": recall}


def _border(classes_HW: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels with a neighbour of another class, both of them known."""
    border = np.zeros(classes_HW.shape, bool)
    for one, other in (
        ((slice(1, None),), (slice(-1),)),
        ((slice(None), slice(1, None)), (slice(None), slice(-1))),
    ):
        a, b = classes_HW[one], classes_HW[other]
        differ = (a != b) & (a != 0) & (b != 0)
        border[one] |= differ
        border[other] |= differ
    return border


def _within(mask_HW: NDArray[np.bool_], distance: float) -> NDArray[np.bool_]:
    """Pixels at most so far from one of the mask."""
    reach, (height, width) = int(distance), mask_HW.shape
    padded, result = np.pad(mask_HW, reach), np.zeros_like(mask_HW)
    for y in range(2 * reach + 1):
        for x in range(2 * reach + 1):
            if (y - reach) ** 2 + (x - reach) ** 2 <= distance**2:
                result |= padded[y : y + height, x : x + width]
    return result
