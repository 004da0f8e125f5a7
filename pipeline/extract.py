"""Stage ``extract``: the split, purification, and the purified features of labelled pixels.

Two passes over windows: the first sums class means over the training pixels alone and chooses the
channels; the second keeps the chosen channels of all training and test pixels.
"""

from typing import Any

import numpy as np
import ray.data
import torch
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from mtmsd.features import feature_width
from mtmsd.purify import ClassMeans, Selection, select
from mtmsd.split import TEST, TRAIN, UNUSED
from pipeline.artifacts import RunFolder, read_json, write_json
from pipeline.cluster import Shares, metered, peak_rss, share_out
from pipeline.config import Config
from pipeline.georeference import consolidate
from pipeline.labels import labelled_split
from pipeline.readers import GROUP, Reduced, WindowReader
from pipeline.scene import Scene
from pipeline.trained import make_extractor
from pipeline.units import ChunkSink, Region, UnitSource, in_order, read_units, write_units


def run(config: Config, folder: RunFolder, scene: Scene) -> dict[str, Any]:
    """Write ``classifier/selection.json`` and ``features.zarr``; returns what was measured.

    Raises:
        UserError: The scene has no labels, one class only, or classes that the split cannot serve.
    """
    y, x, label, split = labelled_split(config, scene)
    train = split == TRAIN
    shares = share_out(config.cluster)
    codes = np.unique(label)
    groups = -(-len(y) // GROUP)
    first = 0 if folder.selection.exists() else -(-int(train.sum()) // GROUP)
    with metered("extract", groups + first, "groups") as (meter, record):
        if first:
            position = np.searchsorted(codes, label[train])
            selection = _choose(config, folder, shares, (y[train], x[train], position), meter)
            folder.classifier.mkdir(exist_ok=True)
            classes = [row for row in _class_rows(scene) if row[0] in codes]
            stored = {"codes": codes.tolist(), "classes": classes} | selection.as_json()
            write_json(folder.selection, stored)
        selection = Selection.from_json(read_json(folder.selection))
        _create(config, folder, (y, x, label, split), selection)
        todo = folder.todo("extract", range(groups))
        meter.add.remote(groups - len(todo), 0, 0, 0, 0)
        if todo:
            windows = _windows("extract: windows", config, folder, (y, x), todo)
            features = shares.through_actors(
                windows, len(todo), _FeatureActor, (config, folder, shares.gpu, selection)
            )
            regions, markers = _Regions(len(y)), folder.markers("extract")
            write_units(features, ChunkSink("features.zarr", folder.features, regions, markers, meter))
        return record()


def _class_rows(scene: Scene) -> list[tuple[int, str, str]]:
    table = scene.classes
    return list(zip(table.codes, table.names, table.colors, strict=True)) if table else []


class _Reader:
    """Features of the pixels of one group: (pixel, timestep, channel), centre and pooled."""

    def __init__(self, config: Config, folder: RunFolder, gpu: bool) -> None:
        torch.set_num_threads(config.cluster.threads)
        self._extract = make_extractor(config, folder, gpu)

    def __call__(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        count, pixels = int(batch["count"][0]), int(batch["pixels"][0])
        windows = torch.from_numpy(np.nan_to_num(batch["windows"][0][:count]))
        window, offset = (torch.tensor(batch[key][0][:pixels]) for key in ("window", "offset"))
        features = self._extract(windows)
        return features.centre_NPTD[window, offset].cpu(), features.pooled_NTD[window].cpu()


class _MeansActor:
    """Groups of training pixels -> sums by class."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        gpu: bool,
        position: NDArray[np.int64],
        classes: int,
    ) -> None:
        self._read, self._position, self._classes = _Reader(config, folder, gpu), position, classes

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        unit = int(batch["unit"][0])
        label = self._position[unit * GROUP : (unit + 1) * GROUP]
        row: dict[str, Any] = {"unit": batch["unit"], "bytes_read": batch["bytes_read"]}
        for name, features in zip(("centre", "pooled"), self._read(batch), strict=True):
            means = ClassMeans(self._classes, *features.shape[1:])
            means.update(features.numpy(), label)
            row |= {name: means.sum_KTD[None], "count": means.count_K[None]}
        return row | {"peak_rss": np.array([peak_rss()])}


class _FeatureActor:
    """Groups of pixels -> their purified features."""

    def __init__(self, config: Config, folder: RunFolder, gpu: bool, selection: Selection) -> None:
        self._read, self._selection = _Reader(config, folder, gpu), selection

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        row = {key: batch[key] for key in ("unit", "pixels", "bytes_read")}
        kinds = zip(("centre", "pooled"), self._read(batch), strict=True)
        for name, features in kinds:
            kept = features[:, :, list(getattr(self._selection, name))].numpy()
            row[name] = np.zeros((1, GROUP, *kept.shape[1:]), np.float32)
            row[name][0, : len(kept)] = kept
        return row | {"peak_rss": np.array([peak_rss()])}


def _windows(
    name: str,
    config: Config,
    folder: RunFolder,
    at: tuple[NDArray[np.int64], NDArray[np.int64]],
    units: list[int],
) -> ray.data.Dataset:
    reduced = Reduced(str(folder.reduced))
    reader = WindowReader(reduced, config.patches, *at, GROUP)
    row_bytes = GROUP * reduced.shape[0] * config.patches.size**2 * 4
    return read_units(UnitSource(name, units, reader, row_bytes))


def _choose(
    config: Config,
    folder: RunFolder,
    shares: Shares,
    train: tuple[NDArray[np.int64], ...],
    meter: Any,
) -> Selection:
    """Channels to keep, from the class means of the training pixels (y, x, class position)."""
    y, x, position = train
    classes = int(position.max()) + 1
    units = list(range(-(-len(y) // GROUP)))
    windows = _windows("extract: training windows", config, folder, (y, x), units)
    rows = shares.through_actors(
        windows, len(units), _MeansActor, (config, folder, shares.gpu, position, classes)
    )
    width = feature_width(config.unet, config.features.stages, config.patches.size)
    kinds = [ClassMeans(classes, len(config.features.timesteps), width) for _ in range(2)]
    for row in in_order(rows.iter_rows()):
        for means, name in zip(kinds, ("centre", "pooled"), strict=True):
            means.sum_KTD += row[name]
            means.count_K += row["count"]
        meter.add.remote(1, 0, int(row["bytes_read"]), 0, int(row["peak_rss"]))
    return select([means.finish() for means in kinds], config.purify)


class _Regions:
    def __init__(self, pixels: int) -> None:
        self._pixels = pixels

    def __call__(self, unit: int) -> dict[str, Region]:
        rows = slice(unit * GROUP, min((unit + 1) * GROUP, self._pixels))
        return {"centre": (rows,), "pooled": (rows,)}


def _create(
    config: Config, folder: RunFolder, pixels: tuple[NDArray[np.int64], ...], selection: Selection
) -> None:
    if folder.features.exists():
        return
    partial = folder.features.with_name("features.zarr.partial")
    group = zarr.open_group(partial, mode="w")
    for name, values in zip(("y_index", "x_index", "label", "split"), pixels, strict=True):
        group.create_array(name, data=values.astype(np.int64), dimension_names=("pixel",))
    group["split"].attrs.update(flag_values=[TRAIN, TEST, UNUSED], flag_meanings="train test unused")
    timesteps = len(config.features.timesteps)
    for name in ("centre", "pooled"):
        channels = len(getattr(selection, name))
        group.create_array(
            name, shape=(len(pixels[0]), timesteps, channels), chunks=(GROUP, timesteps, channels),
            dtype="float32", fill_value=float("nan"), dimension_names=("pixel", "timestep", "channel"),
            compressors=ZstdCodec(level=1), attributes={"timesteps": list(config.features.timesteps)},
        )  # fmt: skip
    consolidate(group)
    partial.rename(folder.features)
