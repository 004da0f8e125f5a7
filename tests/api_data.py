"""A small dataset for the tests of the Python API."""

from typing import Any

import numpy as np
import rioxarray  # noqa: F401  (adds .rio to xarray)
import xarray as xr

HEIGHT, WIDTH = 12, 17
TRANSFORM = (2.0, 0.0, 272000.0, 0.0, -2.0, 3290000.0)
GRID = {
    "y": ("y", 3290000 - 2 * np.arange(HEIGHT) - 1.0),
    "x": ("x", 272000 + 2 * np.arange(WIDTH) + 1.0),
}


def cube() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.1, 0.5, (5, HEIGHT, WIDTH)).astype(np.float32)


def codes() -> np.ndarray:
    return np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) % 3


def dataset(**coords: Any) -> xr.Dataset:
    found = xr.Dataset({"reflectance": (("band", "y", "x"), cube())}, coords={**GRID, **coords})
    return found.rio.write_crs("EPSG:26915")
