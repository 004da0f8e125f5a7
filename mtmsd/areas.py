"""Area of each class from a map and its test pixels, with a confidence interval.

Pixel counts of a map are biased: confusions add to one class what they take from another. The stratified
estimator corrects that with the confusion matrix, its strata being the classes of the map. Source: Olofsson
et al. 2014, "Good practices for estimating area and assessing accuracy of land change", Remote Sensing of
Environment 148, 42-57. K = classes; rows of the confusion are the truth (T), columns the map (M).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

Z_95 = 1.96  # standard errors to either side of a 95 % interval


class AreaEstimates(NamedTuple):
    """Estimates and half widths of their 95 % intervals; areas in the unit of the mapped areas.

    NaN where there is nothing to estimate from.
    """

    area_K: FloatArray
    area_ci_K: FloatArray
    users_K: FloatArray
    """User's accuracy: the share of what is mapped as a class that is this class."""
    users_ci_K: FloatArray
    producers_K: FloatArray
    """Producer's accuracy: the share of a class's area that is mapped as this class."""
    producers_ci_K: FloatArray
    overall: float
    overall_ci: float
    covered_K: NDArray[np.bool_]
    """Map classes with the two test pixels that a variance needs; the area of others is left out."""


def estimate_areas(confusion_TM: NDArray[np.int64], mapped_K: FloatArray) -> AreaEstimates:
    """Estimate the area of each class by the stratified estimator.

    The intervals hold for a probability sample of the map. Pixels that somebody chose to label are none.

    Args:
        confusion_TM: Test pixels by true class and class of the map.
        mapped_K: Area that the map gives each class, in any unit.

    Raises:
        ValueError: The shapes do not fit, or no class of the map has two test pixels.
    """
    classes = len(mapped_K)
    if confusion_TM.shape != (classes, classes):
        raise ValueError(
            f"confusion must be ({classes}, {classes}) for {classes} mapped areas, found {confusion_TM.shape}"
        )
    n_MT = confusion_TM.T.astype(np.float64)
    n_M = n_MT.sum(axis=1)
    covered = n_M >= 2
    area_M = np.where(covered, mapped_K, 0.0)
    total = area_M.sum()
    if not total:
        raise ValueError("areas need two test pixels in at least one class of the map, found none")
    share_MT = n_MT / np.where(covered, n_M, 1.0)[:, None] * covered[:, None]
    # Variance of the mean of each cell in its stratum (the sum in equation 10 without W_i).
    variance_MT = share_MT * (1 - share_MT) / np.where(covered, n_M - 1, 1.0)[:, None]
    area_K = area_M @ share_MT  # equation 9
    area_variance_K = area_M**2 @ variance_MT  # equation 10
    users_K = np.where(covered, np.diag(share_MT), np.nan)  # equation 2
    own = np.diag(variance_MT)
    found = area_K > 0
    producers_K = np.where(found, area_M * np.diag(share_MT) / np.where(found, area_K, 1.0), np.nan)  # eq. 3
    others_K = area_variance_K - area_M**2 * own
    producers_variance_K = (area_M**2 * (1 - producers_K) ** 2 * own + producers_K**2 * others_K) / np.where(
        found, area_K, 1.0
    ) ** 2  # equation 7
    return AreaEstimates(
        area_K=area_K,
        area_ci_K=Z_95 * np.sqrt(area_variance_K),
        users_K=users_K,
        users_ci_K=Z_95 * np.sqrt(np.where(covered, own, np.nan)),  # equation 6
        producers_K=producers_K,
        producers_ci_K=Z_95 * np.sqrt(producers_variance_K),
        overall=float(area_M @ np.diag(share_MT) / total),  # equation 1
        overall_ci=float(Z_95 * np.sqrt(area_M**2 @ own) / total),  # equation 5
        covered_K=covered,
    )
