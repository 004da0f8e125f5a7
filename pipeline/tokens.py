"""The supertokens of a run: their metric, and the training of a classifier of tokens where one is asked for.

It is trained between the two passes of stage ``map``, for a token's features hold the pixel-wise map's
answers; on one torch thread, so that its weights depend on the seed alone.
"""

from typing import Any

import numpy as np
import ray
import torch
import zarr
from safetensors.torch import save_file
from torch import Tensor

from mtmsd.split import TRAIN
from mtmsd.supertokens import SupertokenConfig, Supertokens, spectral_metric
from mtmsd.token_classifier import TokenClassifier, TokenRegion, train_tokens
from pipeline import storage
from pipeline.artifacts import RunFolder, read_json
from pipeline.config import Config
from pipeline.readers import Reduced
from pipeline.region_reader import RegionReader, own_answers
from pipeline.trained import is_whole, read_weights
from pipeline.units import TileGrid

_CELLS = 4
"""Side, in cells, of what a region's labels are taken from; round it lies the halo."""
_BYTES = 256 << 20
"""Regions held in training, at most (but one in any case): of more, as many are drawn."""


def load_tokens(config: SupertokenConfig, folder: RunFolder, classes: int) -> Supertokens:
    """Supertokens that vote, or with ``steps`` the run's trained classifier of tokens."""
    projection_EK = _metric(folder, config)
    if not config.steps:
        return Supertokens(config, projection_EK)
    tokens = TokenClassifier(config, projection_EK, classes)
    tokens.load_state_dict(read_weights(folder.tokens)[0])
    return tokens.eval()


def train_tokens_once(config: Config, folder: RunFolder, grid: TileGrid) -> None:
    """Train the classifier of tokens in a task of the cluster, unless none is asked for or it is there."""
    if config.supertokens.steps and not is_whole(folder.tokens):
        task = ray.remote(num_cpus=1)(train_and_write)
        ray.get(task.remote(config, folder, grid.height, grid.width))


def train_and_write(config: Config, folder: RunFolder, height: int, width: int) -> None:
    """Train on the regions round the training pixels and write ``map_tokens.safetensors``."""
    torch.set_num_threads(1)
    regions = training_regions(config, folder, TileGrid(height, width, _CELLS * config.supertokens.cell))
    projection_EK = _metric(folder, config.supertokens)
    tokens, _ = train_tokens(config.supertokens, projection_EK, regions, config.seed)
    with storage.whole(folder.tokens) as file:
        save_file({name: value.contiguous() for name, value in tokens.state_dict().items()}, file)


def training_regions(config: Config, folder: RunFolder, grid: TileGrid) -> list[TokenRegion]:
    """The squares of a grid that hold training pixels, each with its halo; of too many, some by the seed."""
    group: Any = zarr.open_group(str(folder.features), mode="r", use_consolidated=False)
    codes = np.asarray(read_json(folder.selection)["codes"])
    split, label, y, x = (np.asarray(group[name][...]) for name in ("split", "label", "y_index", "x_index"))
    train = split == TRAIN
    position, y, x = np.searchsorted(codes, label[train]), y[train], x[train]
    square = y // grid.side * grid.columns + x // grid.side
    reader = RegionReader(Reduced(str(folder.reduced)), folder.map, grid, config.supertokens)
    pixel_bytes = 4 * (reader.reduced.shape[0] + len(codes)) + 8
    most = max(1, _BYTES // (reader.side**2 * pixel_bytes))
    found = np.unique(square)
    chosen = np.random.default_rng([config.seed, len(found)]).permutation(found)[:most]
    regions = []
    for unit in np.sort(chosen).tolist():
        row = reader(unit)
        y0, _, x0, _ = grid.bounds(unit)
        top, left = y0 - row["at"][0], x0 - row["at"][2]
        here = square == unit
        label_HW = np.full(row["code"].shape, -1)
        label_HW[y[here] - top, x[here] - left] = position[here]
        _, own_CHW = own_answers(row["code"], row["confidence"], codes)
        regions.append(TokenRegion(torch.from_numpy(row["cube"]), own_CHW, torch.from_numpy(label_HW)))
    return regions


def _metric(folder: RunFolder, config: SupertokenConfig) -> Tensor:
    """The projection of the run's reduced components, with bands in the order of wavelength."""
    stored = read_json(folder.spectral)
    loadings = np.asarray(stored["loadings"])
    wavelength = np.asarray(stored["wavelength_nm"] or np.nan, np.float64)
    wavelength = wavelength[stored["bands_used"]] if wavelength.ndim else np.full(len(loadings), np.nan)
    known = bool(np.isfinite(wavelength).all())
    order = np.argsort(wavelength, kind="stable") if known else np.arange(len(loadings))
    return spectral_metric(
        torch.tensor(loadings[order]),
        torch.tensor(stored["scale"]),
        torch.tensor(wavelength[order]) if known else None,
        config.derivative,
    )
