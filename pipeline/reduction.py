"""What the workers of ``reduce`` do with a tile; they import no torch."""

from typing import Any

import numpy as np

from mtmsd.bands import BandMap
from mtmsd.spectral import Moments, Projection
from pipeline.progress import peak_rss
from pipeline.units import Row


def tile_moments(batch: Any) -> dict[str, Any]:
    """Valid pixels of each band, and moments over the bands that hold data in the tile."""
    cube = batch["cube"][0]
    bands = len(cube)
    valid = np.isfinite(cube).sum(axis=(1, 2))
    moments = Moments(int((valid > 0).sum()))
    moments.update(cube[valid > 0].reshape(moments.mean_B.size, cube[0].size).T)
    mean, scatter = np.zeros(bands), np.zeros((bands, bands))
    mean[valid > 0] = moments.mean_B
    scatter[np.ix_(valid > 0, valid > 0)] = moments.scatter_BB
    return {
        "unit": batch["unit"], "bytes_read": batch["bytes_read"], "valid": valid[None], "mean": mean[None],
        "count": np.array([moments.count]), "scatter": scatter[None], "peak_rss": np.array([peak_rss()]),
    }  # fmt: skip


class UsedBands:
    """Valid pixels of each band, and the moments over the bands that hold data anywhere.

    A tile cannot know whether a band that is empty in it is empty everywhere. It sums over the bands
    that hold data in it; a tile without a band that has data elsewhere has no valid pixel at all.
    """

    def __init__(self, bands: int) -> None:
        self.valid_B = np.zeros(bands, np.int64)
        self.moments = Moments(0)

    def add(self, row: Row) -> None:
        """Add what ``tile_moments`` says of a tile."""
        bands, known = row["valid"] > 0, self.valid_B > 0
        self.valid_B += row["valid"]
        used = self.valid_B > 0
        if not np.array_equal(used, known):  # what was summed lacks a band
            self.moments = Moments(int(used.sum()))
        if np.array_equal(bands, used):
            part = Moments(int(bands.sum()))
            part.count, part.mean_B = int(row["count"]), row["mean"][bands]
            part.scatter_BB = row["scatter"][np.ix_(bands, bands)]
            self.moments.merge(part)


def project(batch: Any, spectral: dict[str, Any]) -> Row:
    """The tile's reduced spectra, of this scene's bands or of those that a model expects."""
    cube = batch["cube"][0]
    if "from_scene" in spectral:  # a model's bands, made from those of another scene
        cube = BandMap.from_json(spectral["from_scene"]).apply(cube)
    else:
        cube = cube[np.asarray(spectral["bands_used"])]
    reduced = Projection.from_json(spectral).apply(cube)[None]
    carried = {key: batch[key] for key in ("unit", "pixels", "bytes_read")}
    return carried | {"reduced": reduced, "peak_rss": np.array([peak_rss()])}
