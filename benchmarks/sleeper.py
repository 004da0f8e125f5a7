"""Stand-ins for the map stage's reader and actor: tiny tiles, and a sleep in place of the U-Net.

Kept apart, and free of torch, so that many of them fit one machine.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.actor import ActorHandle

from pipeline.progress import peak_rss
from pipeline.units import Row, TileGrid

SIDE, HALO = 32, 1
"""Side of a tile and what is read around it, pixels: small, for the question is scheduling and not disks. But
Ray cuts blocks by their bytes, which relate as those of the map do (432 + 2 x 12), and holds blocks below
100 KiB in the driver, which those of the map never are: eight tiles together have 220."""
COMPONENTS = 6
ROW_BYTES = COMPONENTS * SIDE**2 * 4
REPORTS = 7
"""Batches of windows in a tile of the default configuration (49, 8 at once); the meter is told of each."""


@dataclass(frozen=True)
class TinyReader:
    """Unit = tile; ``cube`` holds no more than the tile's number."""

    grid: TileGrid

    def __call__(self, unit: int) -> Row:
        """A tile with its halo."""
        cube = np.full((COMPONENTS, SIDE + 2 * HALO, SIDE + 2 * HALO), unit, np.float32)
        return {"cube": cube, "pixels": SIDE**2, "bytes_read": cube.nbytes}


class SleepActor:
    """Takes as long for a tile as it is told, reports as the map's actor does, and returns its rows."""

    def __init__(self, seconds: float, meter: ActorHandle[Any]) -> None:
        self._seconds, self._meter = seconds, meter

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A tile whose class is its number modulo 251."""
        begun = time.perf_counter()
        for part in range(1, REPORTS + 1):
            time.sleep(max(0.0, begun + self._seconds * part / REPORTS - time.perf_counter()))
            self._meter.add.remote(0, 0, 0, 0, 0, 1)
        code = batch["cube"][:, 0, HALO:-HALO, HALO:-HALO].astype(np.int64) % 251
        share = np.full(code.shape, 0.5, np.float32)
        carried = {key: batch[key] for key in ("unit", "pixels", "bytes_read")}
        found = {"class": code, "confidence": share, "entropy": share}
        return found | carried | {"peak_rss": np.array([peak_rss()])}
