"""Second pass of stage ``map``, with ``map.regions``: every pixel's class after the vote of its supertokens.

The first pass leaves the pixel-wise map in ``class_pixel`` and so on; this one reads it, and the reduced
cube, tile by tile with a halo, and writes ``class``, ``confidence`` and ``entropy``. Nothing that it reads
is written in this pass, so tiles may be made in any order, and again.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.actor import ActorHandle

from mtmsd.ensemble import decide
from pipeline.artifacts import RunFolder, read_json
from pipeline.cluster import Shares
from pipeline.config import Config
from pipeline.progress import peak_rss
from pipeline.readers import Reduced
from pipeline.region_reader import RegionReader, own_answers
from pipeline.tokens import load_tokens, train_tokens_once
from pipeline.units import ROUND, ChunkSink, TileGrid, TileRegions, UnitSource, read_units, write_units

ARRAYS = ("class", "confidence", "entropy")


def vote(
    config: Config,
    folder: RunFolder,
    grid: TileGrid,
    todo: list[int],
    shares: Shares,
    meter: ActorHandle[Any],
) -> None:
    """Make the tiles ``todo`` of the final map from the finished pixel-wise map.

    Units are numbered after those of the first pass.
    """
    train_tokens_once(config, folder, grid)
    reader = RegionReader(Reduced(str(folder.reduced)), folder.map, grid, config.supertokens)
    row_bytes = reader.side**2 * (reader.reduced.shape[0] * 4 + 8)
    source = UnitSource("map: regions", todo, reader, row_bytes)
    sink = ChunkSink("map.zarr: regions", folder.map, TileRegions(grid, ARRAYS), folder.markers("map"), meter)
    arguments = config, folder, shares.gpu
    for part in source.rounds(ROUND):
        write_units(shares.through_actors(read_units(part), len(part), RegionActor, arguments), sink)


class RegionActor:
    """A tile's pixel-wise answers and spectra, with their halo -> the tile after the vote."""

    def __init__(self, config: Config, folder: RunFolder, gpu: bool) -> None:
        torch.set_num_threads(config.cluster.threads)
        self._device, self._tile = "cuda" if gpu else "cpu", config.tile
        self._codes = np.asarray(read_json(folder.selection)["codes"])
        self._tokens = load_tokens(config.supertokens, folder, len(self._codes)).to(self._device)

    @torch.inference_mode()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Let the tokens of one tile vote."""
        cube = torch.tensor(batch["cube"][0], device=self._device)
        position, own = own_answers(batch["code"][0], batch["confidence"][0], self._codes)
        y0, y1, x0, x1 = batch["at"][0]
        voted = self._tokens.vote(cube, own.to(self._device))[:, y0:y1, x0:x1]
        answer = decide(voted.flatten(1).T, "mean")
        valid = position[y0:y1, x0:x1] >= 0
        found = (
            self._codes[answer.position_N.cpu().numpy()], answer.confidence_N.cpu().numpy(),
            answer.entropy_N.cpu().numpy(),
        )  # fmt: skip
        row = {
            name: self._whole(np.where(valid, values.reshape(valid.shape), 0 if name == "class" else np.nan))
            for name, values in zip(ARRAYS, found, strict=True)
        }
        carried = {key: batch[key] for key in ("unit", "pixels", "bytes_read")}
        return row | carried | {"peak_rss": np.array([peak_rss()])}

    def _whole(self, values: NDArray[Any]) -> NDArray[Any]:
        """A batch of one tile, filled up where the scene's edge cuts it."""
        return np.pad(values, [(0, self._tile - length) for length in values.shape])[None]
