"""Stage ``extract``: the split, purification, and the purified features of labelled pixels.

Two passes over windows: the first sums class means over the training pixels alone and chooses the
channels; the second keeps the chosen channels of all training and test pixels.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from ray.actor import ActorHandle
from zarr.codecs import ZstdCodec

from mtmsd.features import feature_width
from mtmsd.purify import ClassMeans, Selection, select
from mtmsd.split import TEST, TRAIN, UNUSED
from pipeline import storage
from pipeline.artifacts import RunFolder, read_json, write_json
from pipeline.cluster import Shares, share_out
from pipeline.config import Config
from pipeline.georeference import consolidate
from pipeline.labels import labelled_split
from pipeline.progress import metered, peak_rss
from pipeline.readers import GROUP, Reduced, WindowReader
from pipeline.scene import Scene
from pipeline.trained import make_extractor
from pipeline.units import ChunkSink, UnitSource, in_order, no_regions, read_units, write_units

KINDS = ("centre", "pooled")
"""Diffusion features: of the pixel, and means over its window."""


def run(config: Config, folder: RunFolder, scene: Scene) -> dict[str, Any]:
    """Write ``classifier/selection.json`` and ``features.zarr``; returns what was measured.

    Raises:
        UserError: The scene has no labels, one class only, or classes that the split cannot serve.
    """
    reduced = Reduced(str(folder.reduced))
    y, x, label, split = labelled_split(config, scene, reduced)
    train = split == TRAIN
    shares = share_out(config.cluster)
    codes = np.unique(label)
    learning = WindowReader.plan(reduced, config.patches, y[train], x[train])
    reader = WindowReader.plan(reduced, config.patches, y, x)
    choose = config.reads_features and not folder.selection.exists()
    first = len(learning) if choose else 0
    with metered("extract", len(reader) + first, "groups") as (meter, record):
        if not folder.selection.exists():
            selection = Selection((), ())
            if choose:
                position = np.searchsorted(codes, label[train])
                selection = _choose(config, folder, shares, learning, position, meter)
            storage.make_folder(folder.classifier)
            classes = [row for row in _class_rows(scene) if row[0] in codes]
            stored = {"codes": codes.tolist(), "classes": classes} | selection.as_json()
            write_json(folder.selection, stored)
        selection = Selection.from_json(read_json(folder.selection))
        _create(config, folder, (y, x, label, split), selection)
        todo = folder.todo("extract", range(len(reader)))
        meter.skip.remote(len(reader) - len(todo))
        if todo:
            source = UnitSource("extract: windows", todo, reader, reader.row_bytes)
            rows = shares.through_actors(
                read_units(source), len(todo), _FeatureActor,
                (config, folder, shares.gpu, meter, selection, reader.starts),
            )  # fmt: skip
            write_units(
                rows,
                ChunkSink("extract: marks", folder.features, no_regions, folder.markers("extract"), meter),
            )
        return record()


def _class_rows(scene: Scene) -> list[tuple[int, str, str]]:
    table = scene.classes
    return list(zip(table.codes, table.names, table.colors, strict=True)) if table else []


class _Pixels:
    """Features of a unit's pixels, a few at a time and in their order."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        gpu: bool,
        meter: ActorHandle[Any],
        selection: Selection | None,
    ) -> None:
        self._meter = meter
        torch.set_num_threads(config.cluster.threads)
        self._extract = make_extractor(config, folder, gpu, selection)

    def __call__(self, batch: dict[str, Any]) -> Iterator[tuple[slice, NDArray[Any], NDArray[Any]]]:
        """(place among the unit's pixels, centre and pooled (pixel, timestep, channel), spectra)."""
        count, pixels, at_once = int(batch["count"][0]), int(batch["pixels"][0]), self._extract.batch
        windows = torch.from_numpy(np.nan_to_num(batch["windows"][0][:count]))
        window, offset = (torch.tensor(batch[key][0][:pixels]) for key in ("window", "offset"))
        for start in range(0, count, at_once):
            features = self._extract(windows[start : start + at_once])
            self._meter.add.remote(0, 0, 0, 0, 0, features.pooled_NTK.shape[0] * features.pooled_NTK.shape[1])
            first, last = np.searchsorted(window, [start, start + at_once])
            for place in range(first, last, GROUP):
                mine = slice(place, min(place + GROUP, last))
                inside = window[mine] - start
                centre, spectra = (read(inside, offset[mine]) for read in (features.at, features.spectra_at))
                yield mine, *(a.cpu().numpy() for a in (centre, features.pooled_NTK[inside], spectra))


class _MeansActor:
    """Pixels of a unit -> sums by class."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        gpu: bool,
        meter: ActorHandle[Any],
        position: NDArray[np.int64],
        starts: NDArray[np.int64],
    ) -> None:
        self._pixels = _Pixels(config, folder, gpu, meter, None)
        self._position, self._starts = position, starts
        width = feature_width(config.unet, config.features.stages, config.patches.side)
        self._shape = int(position.max()) + 1, len(config.features.timesteps), width

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        means = [ClassMeans(*self._shape) for _ in range(2)]
        label = self._position[self._starts[int(batch["unit"][0])] :]
        for mine, *features, _ in self._pixels(batch):
            for kind, values in zip(means, features, strict=True):
                kind.update(values, label[mine])
        row: dict[str, Any] = {"unit": batch["unit"], "bytes_read": batch["bytes_read"]}
        row |= {name: kind.sum_KTD[None] for name, kind in zip(KINDS, means, strict=True)}
        return row | {"count": means[0].count_K[None], "peak_rss": np.array([peak_rss()])}


class _FeatureActor:
    """Pixels of a unit -> their purified features, written here: they never travel."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        gpu: bool,
        meter: ActorHandle[Any],
        selection: Selection,
        starts: NDArray[np.int64],
    ) -> None:
        self._pixels = _Pixels(config, folder, gpu, meter, selection)
        self._starts, self._path = starts, folder.features

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        group: Any = zarr.open_group(str(self._path), mode="r+", use_consolidated=False)
        start, pixels = int(self._starts[int(batch["unit"][0])]), int(batch["pixels"][0])
        names = (*KINDS, "spectra")
        held: dict[str, NDArray[np.float32]] = {
            name: np.empty((GROUP, *group[name].shape[1:]), np.float32) for name in names
        }
        for mine, *features in self._pixels(batch):
            for done in range(mine.start, mine.stop):
                for name, values in zip(names, features, strict=True):
                    held[name][done % GROUP] = values[done - mine.start]
                if done % GROUP == GROUP - 1 or done == pixels - 1:
                    first = done // GROUP * GROUP
                    for name in names:
                        group[name][start + first : start + done + 1] = held[name][: done + 1 - first]
        written = pixels * sum(values[0].nbytes for values in held.values())
        carried = {key: batch[key] for key in ("unit", "pixels", "bytes_read")}
        return carried | {"written": np.array([written]), "peak_rss": np.array([peak_rss()])}


def _choose(
    config: Config,
    folder: RunFolder,
    shares: Shares,
    learning: WindowReader,
    position: NDArray[np.int64],
    meter: Any,
) -> Selection:
    """Channels to keep, from the class means of the training pixels."""
    units = range(len(learning))
    source = UnitSource("extract: training windows", units, learning, learning.row_bytes)
    rows = shares.through_actors(
        read_units(source), len(units), _MeansActor,
        (config, folder, shares.gpu, meter, position, learning.starts),
    )  # fmt: skip
    width = feature_width(config.unet, config.features.stages, config.patches.side)
    shape = int(position.max()) + 1, len(config.features.timesteps), width
    means = [ClassMeans(*shape) for _ in KINDS]
    for row in in_order(rows.iter_rows()):
        for name, kind in zip(KINDS, means, strict=True):
            kind.sum_KTD += row[name]
            kind.count_K += row["count"]
        meter.add.remote(1, 0, int(row["bytes_read"]), 0, int(row["peak_rss"]))
    return select([kind.finish() for kind in means], config.purify)


def _create(
    config: Config,
    folder: RunFolder,
    pixels: tuple[NDArray[np.int64], ...],
    selection: Selection,
) -> None:
    if folder.must_lay_out("extract", folder.features):
        with storage.laid_out(folder.features) as place:
            _lay_out(config, place, pixels, selection)


def _lay_out(
    config: Config,
    place: Path,
    pixels: tuple[NDArray[np.int64], ...],
    selection: Selection,
) -> None:
    group = zarr.open_group(place, mode="w")
    for name, values in zip(("y_index", "x_index", "label", "split"), pixels, strict=True):
        group.create_array(name, data=values.astype(np.int64), dimension_names=("pixel",))
    group["split"].attrs.update(flag_values=[TRAIN, TEST, UNUSED], flag_meanings="train test unused")
    timesteps = len(config.features.timesteps)
    for name in KINDS:
        channels = len(getattr(selection, name))
        group.create_array(
            name, shape=(len(pixels[0]), timesteps, channels), chunks=(GROUP, timesteps, max(channels, 1)),
            dtype="float32", fill_value=float("nan"), dimension_names=("pixel", "timestep", "channel"),
            compressors=ZstdCodec(level=1), attributes={"timesteps": list(config.features.timesteps)},
        )  # fmt: skip
    radii, profiles = config.features.boxes
    boxes: dict[str, Any] = {"radii": list(radii), "profiles": list(profiles)}
    group.create_array(
        "spectra", shape=(len(pixels[0]), config.spectra), chunks=(GROUP, max(config.spectra, 1)),
        dtype="float32", fill_value=float("nan"), dimension_names=("pixel", "spectral"),
        compressors=ZstdCodec(level=1), attributes=boxes if not config.patch else {"patch": config.patch},
    )  # fmt: skip
    consolidate(group)
