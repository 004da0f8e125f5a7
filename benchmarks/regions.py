"""Does a vote of supertokens pay, against filters of the map alone?

``python -m benchmarks.regions RUN [--truth TRUTH.tif] [--set supertokens.own=0.3]...`` takes a finished
run. Its pixel-wise map is filtered by the majority of 3 x 3 and 5 x 5 pixels (a tie keeps the pixel's
class), by the mean of the probabilities over 5 x 5 and 9 x 9 pixels times the pixel's own as supertokens
take them, and by supertokens. OA is that of the run's test pixels, ECE its calibration error; with a raster
of the true class of every pixel also OA against that and the F-score of the borders within 1 and 2 pixels.
Seconds a megapixel: one process, one thread, files included for supertokens.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
import torch.nn.functional as F
import zarr
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.record import publish, run_folder
from mtmsd.calibration import Reliability
from mtmsd.metrics import boundary_f_score
from mtmsd.split import TEST
from mtmsd.supertokens import pixel_probabilities
from pipeline.artifacts import RunFolder, read_json
from pipeline.config import Config, load_config
from pipeline.readers import Reduced
from pipeline.region_reader import PIXEL, RegionReader
from pipeline.regions import ARRAYS, RegionActor
from pipeline.tokens import train_and_write
from pipeline.units import TileGrid, TileRegions

Answer = tuple[NDArray[np.int64], NDArray[np.float32] | None]


def main() -> None:
    """Print one row per way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=run_folder)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = RunFolder(options.run)
    own = folder.config()
    config = load_config(None, ["map.regions=supertokens", *options.overrides], own)
    group: Any = zarr.open_group(folder.map, mode="r", use_consolidated=False)
    suffix = PIXEL if "class" + PIXEL in group else ""
    code, confidence = (np.asarray(group[name + suffix][...]) for name in ("class", "confidence"))
    codes = np.asarray(read_json(folder.selection)["codes"])
    position = torch.from_numpy(np.where(code > 0, np.searchsorted(codes, code), -1))
    sure = torch.from_numpy(np.nan_to_num(confidence))
    power = config.supertokens.own
    ways: dict[str, Callable[[], Answer]] = {
        "pixel by pixel": lambda: (code, confidence),
        "majority of 3 x 3": lambda: (_majority(position, codes, 3), None),
        "majority of 5 x 5": lambda: (_majority(position, codes, 5), None),
        "mean of 5 x 5, own": lambda: _mean(position, sure, codes, 5, power),
        "mean of 9 x 9, own": lambda: _mean(position, sure, codes, 9, power),
        "supertokens": lambda: _supertokens(config, folder, code, confidence),
    }
    truth = None
    if options.truth:
        with rasterio.open(options.truth) as raster:
            truth = raster.read(1)
    rows = []
    for name, way in ways.items():
        begun = time.perf_counter()
        answer = way()
        spent = (time.perf_counter() - begun) / code.size * 1e6
        rows.append([name, *_scores(folder, truth, *answer), spent])
    heads = ["way", "OA, test", "ECE", "OA, truth", "borders F, 1 px", "F, 2 px", "s / Mpx"]
    publish("regions", f"Votes of regions, {options.run.name}", heads, rows)


def _scores(
    folder: RunFolder,
    truth: NDArray[Any] | None,
    found: NDArray[np.int64],
    confidence: NDArray[np.float32] | None,
) -> list[Any]:
    group: Any = zarr.open_group(folder.features, mode="r", use_consolidated=False)
    split, label, y, x = (np.asarray(group[n][...]) for n in ("split", "label", "y_index", "x_index"))
    at = y[split == TEST], x[split == TEST]
    right = found[at] == label[split == TEST]
    reliability = Reliability()
    if confidence is not None:
        reliability.update(confidence[at], right)
    row: list[Any] = [100 * right.mean(), "" if confidence is None else reliability.error()]
    if truth is None:
        return [*row, "", "", ""]
    borders = [boundary_f_score(truth, found, tolerance)["f_score"] for tolerance in (1, 2)]
    return [*row, 100 * (found == truth)[truth != 0].mean(), *borders]


def _boxes(values_CHW: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(values_CHW, side, 1, side // 2)


def _majority(position: Tensor, codes: NDArray[Any], side: int) -> NDArray[np.int64]:
    votes = pixel_probabilities(position, torch.ones(position.shape), len(codes))
    return _named(_boxes(votes, side) + votes / side**3, position, codes)


def _mean(position: Tensor, sure: Tensor, codes: NDArray[Any], side: int, power: float) -> Answer:
    own = pixel_probabilities(position, sure, len(codes))
    mixed = _boxes(own, side) * own**power
    confidence = mixed.amax(dim=0) / mixed.sum(dim=0)
    return _named(mixed, position, codes), confidence.numpy()


def _named(votes_CHW: Tensor, position: Tensor, codes: NDArray[Any]) -> NDArray[np.int64]:
    return np.where(position.numpy() >= 0, codes[votes_CHW.argmax(dim=0).numpy()], 0)


def _supertokens(
    config: Config, folder: RunFolder, code: NDArray[Any], confidence: NDArray[np.float32]
) -> Answer:
    """The pipeline's second pass, tile by tile, over a copy of the pixel-wise map."""
    grid = TileGrid(code.shape[0], code.shape[1], config.tile)
    with tempfile.TemporaryDirectory() as temporary:
        copied = RunFolder(Path(temporary))
        for name in ("spectral.json", "reduced.zarr", "features.zarr", "classifier"):
            (copied.path / name).symlink_to((folder.path / name).resolve())
        copy = zarr.open_group(copied.map, mode="w", zarr_format=2)
        for name, values in (("class", code), ("confidence", confidence)):
            copy.create_array(name + PIXEL, data=values, chunks=(grid.side, grid.side))
        if config.supertokens.steps:
            train_and_write(config, copied, *code.shape)
        reader = RegionReader(Reduced(str(copied.reduced)), copied.map, grid, config.supertokens)
        actor, regions = RegionActor(config, copied, gpu=False), TileRegions(grid, ARRAYS)
        result, sure = np.zeros(code.shape, np.int64), np.full(code.shape, np.nan, np.float32)
        for unit in range(len(grid)):
            read = {"unit": unit} | reader(unit)
            row = actor({key: np.asarray(value)[None] for key, value in read.items()})
            rows, columns = regions(unit)["class"]
            inside = slice(rows.stop - rows.start), slice(columns.stop - columns.start)
            result[rows, columns], sure[rows, columns] = row["class"][0][inside], row["confidence"][0][inside]
    return result, sure


if __name__ == "__main__":
    main()
