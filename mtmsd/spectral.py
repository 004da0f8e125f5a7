"""Principal components and standardisation from mergeable moments.

The first step of MTMSD: spectra -> a few components of zero mean and unit variance. Count, mean and
scatter merge exactly (Chan, Golub & LeVeque 1979), so a scene is summed chunk by chunk anywhere.
Shapes: N pixel, B band, C component.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtmsd.checks import check_ranges

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ReduceConfig:
    """The spectral reduction."""

    components: int = 6
    """Principal components that are kept (the paper: 6 to 34)."""

    def __post_init__(self) -> None:
        """Refuse an empty reduction."""
        check_ranges("reduce", self, components="[1, inf)")


class Moments:
    """Count, mean and scatter matrix of spectra, float64: update, merge, finish.

    >>> here, there = Moments(bands=2), Moments(bands=2)
    >>> here.update(np.array([[1, 2], [3, 6], [np.nan, 0]], np.float32))  # a NaN does not count
    >>> there.update(np.array([[5, 1]], np.float32))
    >>> here.merge(there)
    >>> here.count, here.mean_B.tolist()
    (3, [3.0, 3.0])
    >>> (here.scatter_BB / here.count).round(3).tolist()  # the covariance
    [[2.667, -0.667], [-0.667, 4.667]]
    """

    def __init__(self, bands: int) -> None:
        self.count = 0
        self.mean_B: FloatArray = np.zeros(bands)
        self.scatter_BB: FloatArray = np.zeros((bands, bands))

    def update(self, spectra_NB: NDArray[np.float32]) -> None:
        """Add pixels; those that are not finite in every band do not count."""
        valid = spectra_NB[np.isfinite(spectra_NB).all(axis=1)].astype(np.float64)
        if not len(valid):
            return
        part = Moments(valid.shape[1])
        part.count, part.mean_B = len(valid), valid.mean(axis=0)
        centred = valid - part.mean_B
        part.scatter_BB = centred.T @ centred
        self.merge(part)

    def merge(self, other: "Moments") -> None:
        """Add the pixels of ``other``."""
        total = self.count + other.count
        if other.count == 0:
            return
        shift = other.mean_B - self.mean_B
        self.scatter_BB += other.scatter_BB + np.outer(shift, shift) * (self.count * other.count / total)
        self.mean_B = self.mean_B + shift * (other.count / total)
        self.count = total


@dataclass(frozen=True)
class Projection:
    """A fitted reduction: (spectrum - mean) @ loadings / scale."""

    mean_B: FloatArray
    """Mean spectrum."""
    loadings_BC: FloatArray
    """Orthonormal directions, the largest variance first; each one's largest entry is positive."""
    scale_C: FloatArray
    """Standard deviation of each component."""
    explained_C: FloatArray
    """Share of the total variance."""

    def apply(self, cube_BHW: NDArray[np.float32]) -> NDArray[np.float32]:
        """(band, y, x) -> (component, y, x), float32; NaN in any band makes the pixel NaN."""
        bands, height, width = cube_BHW.shape
        spectra = cube_BHW.reshape(bands, -1).astype(np.float64)
        scores = (self.loadings_BC / self.scale_C).T @ (spectra - self.mean_B[:, None])
        return scores.reshape(-1, height, width).astype(np.float32)

    def as_json(self) -> dict[str, Any]:
        """A JSON object with full precision."""
        return {
            "mean": self.mean_B.tolist(), "loadings": self.loadings_BC.tolist(),
            "scale": self.scale_C.tolist(), "explained_variance": self.explained_C.tolist(),
        }  # fmt: skip

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Projection":
        """The inverse of ``as_json``."""
        keys = ("mean", "loadings", "scale", "explained_variance")
        return Projection(*(np.asarray(value[key], np.float64) for key in keys))


def fit_projection(moments: Moments, config: ReduceConfig) -> Projection:
    """Principal components of the counted pixels.

    Raises:
        ValueError: Too few pixels or bands, or a component without variance.

    Example:
        Two bands of which the first varies three times as much:

        >>> moments = Moments(bands=2)
        >>> moments.update(np.array([[1, 2], [7, 2], [4, 1], [4, 3]], np.float32))
        >>> projection = fit_projection(moments, ReduceConfig(components=1))
        >>> projection.loadings_BC.ravel().tolist(), projection.explained_C.round(3).tolist()
        ([1.0, 0.0], [0.9])
        >>> cube_BHW = np.array([4, 7], np.float32)[None, None].repeat(2, axis=0)  # one row, two pixels
        >>> projection.apply(cube_BHW)
        array([[[0.       , 1.4142135]]], dtype=float32)
    """
    bands, components = len(moments.mean_B), config.components
    if components > bands:
        raise ValueError(f"reduce.components must be at most the {bands} usable bands, found {components}")
    if moments.count <= components:
        raise ValueError(
            f"reduce.components = {components} needs more valid pixels than that, found {moments.count}"
        )
    variance, vectors = np.linalg.eigh(moments.scatter_BB / moments.count)
    variance, vectors = variance[::-1][:components], vectors[:, ::-1][:, :components]
    total = float(np.trace(moments.scatter_BB)) / moments.count
    if not variance[-1] > 1e-12 * total:
        raise ValueError(
            f"reduce.components = {components} exceeds the rank of the spectra, "
            f"{int((variance > 1e-12 * total).sum())}; set it lower"
        )
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(components)]
    return Projection(moments.mean_B, vectors * np.sign(largest), np.sqrt(variance), variance / total)
