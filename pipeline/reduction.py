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
