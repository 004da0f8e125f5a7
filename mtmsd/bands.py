"""The bands of one sensor made from those of another: taken as they are, or resampled.

A band that both sensors have is taken; where the other sensor samples at least twice as finely, its
bands are averaged with a Gaussian band response; otherwise they are interpolated linearly. What lies
outside the other sensor's range, or in a gap of it, is refused: no spectrum is made up.
Shapes: M band that is wanted, S band that is there, H W rows and columns.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Weights = tuple[tuple[int, float], ...]

TOLERANCE_NM = 1.0
"""Bands that lie no farther apart are the same band."""
_GAP_NM = 20.0  # linear interpolation crosses such gaps, and those of two of the wanted sensor's bands
_REACH = 1.5  # a Gaussian response is cut at so many of its widths (0.2 % of the peak)


@dataclass(frozen=True)
class BandMap:
    """Each wanted band as a weighted sum of the bands that are there, times a scale.

    >>> bands = BandMap(weights=(((2, 1.0),), ((0, 0.25), (1, 0.75))), how=("nearest", "linear"))
    >>> cube = np.array([10, 20, 30], np.float32).reshape(3, 1, 1)
    >>> bands.apply(cube).ravel().tolist()
    [30.0, 17.5]
    """

    weights: tuple[Weights, ...]
    """For each wanted band: the index of a band that is there, and its weight."""
    how: tuple[str, ...]
    """For each wanted band: ``in order``, ``nearest``, ``gaussian`` or ``linear``."""
    scale: float = 1.0
    """What every value is multiplied by."""

    def apply(self, cube_SHW: NDArray[np.float32]) -> NDArray[np.float32]:
        """(band that is there, y, x) -> (wanted band, y, x), float32; only bands with a weight are read.

        NaN in a band with a weight makes the result NaN.
        """
        result = np.zeros((len(self.weights), *cube_SHW.shape[1:]), np.float32)
        for band, weights in zip(result, self.weights, strict=True):
            for index, weight in weights:
                band += np.float32(weight * self.scale) * cube_SHW[index]
        return result

    @property
    def used(self) -> tuple[int, ...]:
        """Bands that have a weight, ascending."""
        return tuple(sorted({index for weights in self.weights for index, _ in weights}))

    def counts(self) -> dict[str, int]:
        """How many bands were made in which way.

        >>> BandMap(weights=(((0, 1.0),),) * 3, how=("nearest", "linear", "linear")).counts()
        {'nearest': 1, 'linear': 2}
        """
        return dict(Counter(self.how))

    def as_json(self) -> dict[str, Any]:
        """A JSON object with full precision."""
        weights = [[[index, weight] for index, weight in row] for row in self.weights]
        return {"scale": self.scale, "how": list(self.how), "weights": weights}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "BandMap":
        """The inverse of ``as_json``."""
        weights = tuple(tuple((int(i), float(w)) for i, w in row) for row in value["weights"])
        return BandMap(weights, tuple(value["how"]), float(value["scale"]))


def in_order(bands: Sequence[int]) -> BandMap:
    """The bands with these indices, as they are.

    >>> in_order([0, 2]).apply(np.array([[[1]], [[2]], [[3]]], np.float32)).ravel().tolist()
    [1.0, 3.0]
    """
    return BandMap(tuple(((int(band), 1.0),) for band in bands), ("in order",) * len(bands))


def band_spacing(nm: FloatArray) -> FloatArray:
    """Distance of each band to its nearest neighbour, nm: its width, where none is stated.

    >>> band_spacing(np.array([400.0, 410.0, 425.0, 700.0])).tolist()
    [10.0, 10.0, 15.0, 275.0]
    """
    apart = np.abs(nm[:, None] - nm[None, :])
    apart[apart == 0] = np.inf
    spacing: FloatArray = apart.min(axis=1, initial=np.inf)
    return spacing


def match_bands(
    wanted_nm: FloatArray,
    there_nm: FloatArray,
    *,
    fwhm_nm: FloatArray | None = None,
    usable: NDArray[np.bool_] | None = None,
    tolerance_nm: float = TOLERANCE_NM,
) -> BandMap:
    """Make wanted bands from the bands that are there, by wavelength.

    When every wanted band has one within the tolerance, those are taken. Otherwise the sensors differ,
    and each band is resampled.

    Args:
        wanted_nm: Centres of the wanted bands (M), nm.
        there_nm: Centres of the bands that are there (S), nm, in any order.
        fwhm_nm: Widths of the wanted bands (M), nm; by default their spacing.
        usable: Which of the bands that are there hold data (S); by default all.
        tolerance_nm: How far apart the same band may lie.

    Raises:
        ValueError: A wanted band lies outside the range or in a gap of the bands that are there.

    Example:
        A sensor of 5 nm bands from one of 20 nm bands, whose order is another:

        >>> bands = match_bands(np.array([500.0, 505.0, 510.0]), np.array([520.0, 500.0]))
        >>> bands.how
        ('linear', 'linear', 'linear')
        >>> bands.weights
        (((1, 1.0),), ((1, 0.75), (0, 0.25)), ((1, 0.5), (0, 0.5)))
    """
    widths = band_spacing(wanted_nm) if fwhm_nm is None else fwhm_nm
    kept = np.arange(len(there_nm)) if usable is None else np.flatnonzero(usable)
    kept = kept[np.argsort(there_nm[kept], kind="stable")]
    if not len(kept):
        raise ValueError("no band holds data")
    sorted_nm = there_nm[kept]
    apart = np.abs(wanted_nm[:, None] - sorted_nm[None, :])
    if (apart.min(axis=1) <= tolerance_nm).all():
        nearest = kept[apart.argmin(axis=1)]
        return BandMap(tuple(((int(i), 1.0),) for i in nearest), ("nearest",) * len(nearest))
    spacing = band_spacing(there_nm)[kept]
    made = [
        _resampled(centre, width, sorted_nm, spacing, tolerance_nm)
        for centre, width in zip(wanted_nm, widths, strict=True)
    ]
    missing = [nm for nm, (how, _) in zip(wanted_nm, made, strict=True) if how == "missing"]
    if missing:
        shown = ", ".join(f"{nm:g}" for nm in missing[:3]) + (", …" if len(missing) > 3 else "")
        raise ValueError(
            f"{len(missing)} of {len(wanted_nm)} bands ({shown} nm) lie outside its range or in a gap: "
            f"its {len(kept)} bands with data span {sorted_nm[0]:g} to {sorted_nm[-1]:g} nm"
        )
    weights = tuple(tuple((int(kept[i]), weight) for i, weight in row) for _, row in made)
    return BandMap(weights, tuple(how for how, _ in made))


def _resampled(
    centre: float, width: float, nm_S: FloatArray, spacing_S: FloatArray, tolerance: float
) -> tuple[str, Weights]:
    """One band from ascending bands, and how: ``gaussian``, ``linear`` or ``missing``."""
    nearest = int(np.abs(nm_S - centre).argmin())
    if np.isfinite(width) and width >= 2 * spacing_S[nearest]:
        weights = _gaussian(centre, width, nm_S, spacing_S)
        if weights:
            return "gaussian", weights
    if not nm_S[0] < centre < nm_S[-1]:
        same = abs(nm_S[nearest] - centre) <= tolerance
        return ("linear", ((nearest, 1.0),)) if same else ("missing", ())
    right = int(np.searchsorted(nm_S, centre))
    if nm_S[right] == centre:
        return "linear", ((right, 1.0),)
    left, gap = right - 1, float(nm_S[right] - nm_S[right - 1])
    if gap > max(_GAP_NM, 2 * width if np.isfinite(width) else 0):
        same = abs(nm_S[nearest] - centre) <= tolerance
        return ("linear", ((nearest, 1.0),)) if same else ("missing", ())
    share = float(centre - nm_S[left]) / gap
    return "linear", ((left, 1 - share), (right, share))


def _gaussian(centre: float, width: float, nm_S: FloatArray, spacing_S: FloatArray) -> Weights:
    """Weights of a Gaussian response of full width ``width`` at half maximum; () where bands are missing.

    The bands that are there are as wide as their spacing, so the response between them is narrower.
    """
    fwhm_S = np.sqrt(np.maximum(width**2 - spacing_S**2, 0))
    near = np.flatnonzero((np.abs(nm_S - centre) <= _REACH * width) & (fwhm_S > 0))
    if not (np.abs(nm_S[near] - centre) <= width / 2).any():
        return ()
    response = np.exp(-4 * np.log(2) * ((nm_S[near] - centre) / fwhm_S[near]) ** 2) * spacing_S[near]
    response /= response.sum()
    if abs(float(response @ nm_S[near]) - centre) > width / 4:  # one side of the response has no bands
        return ()
    return tuple((int(i), float(weight)) for i, weight in zip(near, response, strict=True))
