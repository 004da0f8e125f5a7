"""Accuracy from a mergeable confusion matrix."""

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
        """Overall accuracy, average accuracy over classes with pixels, and Cohen's kappa.

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
            "per_class": per_class.tolist(),
            "confusion": self.counts.tolist(),
        }
