"""A scene: open and check it, read pixels and labels from it, write one, pass on its grid."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr

from pipeline import georeference, scene_arrays
from pipeline.chunks import read_region
from pipeline.classes import ClassTable
from pipeline.errors import UserError
from pipeline.georeference import Transform
from pipeline.scene_writer import write_scene

__all__ = ["ClassTable", "Scene", "open_scene", "write_georeference", "write_scene"]

Array = np.ndarray[Any, np.dtype[Any]]
ZarrArray = zarr.Array[Any]

_WINDOWS = 4  # windows that are sampled along an axis
_WINDOW = 32  # side of such a window, pixels


@dataclass(frozen=True)
class Scene:
    """A checked scene: where it lies and what it is; pixels are read where they are needed.

    Small and picklable. Arrays are opened in the process that reads, once per process.
    ``chunk`` is that of reflectance in pixels (y, x); ``transform`` is (a, b, c, d, e, f) in
    rasterio's order; ``classes`` is None when there are no labels.
    """

    url: str
    bands: int
    height: int
    width: int
    chunk: tuple[int, int]
    wavelength_nm: tuple[float, ...] | None
    crs_wkt: str | None
    transform: Transform | None
    classes: ClassTable | None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Stored type of reflectance."""
        return _stored(self).reflectance.dtype

    def read(self, y0: int, y1: int, x0: int, x1: int, bands: Sequence[int] | None = None) -> Array:
        """Return reflectance[:, y0:y1, x0:x1], or of some bands, as float32 (band, y, x).

        scale_factor and add_offset are applied; fill values, NaN and infinities become NaN. Of chunks that
        hold none of the bands nothing is read.

        Raises:
            ValueError: The window is empty or reaches out of the scene.
        """
        self._check_window(y0, y1, x0, x1)
        stored = _stored(self)
        window = slice(y0, y1), slice(x0, x1)
        if bands is None:
            raw = read_region(stored.reflectance, (slice(None), *window))
        else:
            deep = int(stored.reflectance.chunks[0])
            raw = np.empty((len(bands), y1 - y0, x1 - x0), self.dtype)
            for first in sorted({band // deep * deep for band in bands}):
                part = read_region(stored.reflectance, (slice(first, first + deep), *window))
                for at, band in enumerate(bands):
                    if 0 <= band - first < deep:
                        raw[at] = part[band - first]
        with np.errstate(over="ignore", invalid="ignore"):
            # float32 holds every 16-bit count, but not every 32-bit one.
            packed = (stored.scale, stored.offset) != (1.0, 0.0)
            wide = packed and raw.dtype.itemsize > 2
            values: Array = raw.astype(np.float64 if wide else np.float32)
            if packed:
                values = values * stored.scale + stored.offset
            values = values.astype(np.float32, copy=False)
        values[~np.isfinite(values)] = np.nan
        for fill in stored.fills:
            values[raw == fill] = np.nan
        return values

    def read_labels(self, y0: int, y1: int, x0: int, x1: int) -> Array:
        """Return labels[y0:y1, x0:x1] as int32 (y, x) codes, 0 = unlabelled.

        Raises:
            ValueError: The scene has no labels, or the window is empty or reaches out of it.
        """
        self._check_window(y0, y1, x0, x1)
        labels = _stored(self).labels
        if labels is None:
            raise ValueError(f"{self.url} has no labels")
        return scene_arrays.codes(labels, (slice(y0, y1), slice(x0, x1)))

    def labelled_pixels(self) -> tuple[Array, Array, Array]:
        """Return y_index, x_index and code (int64 each) of all labelled pixels, row by row.

        Reads the labels one row of chunks at a time. Empty arrays when the scene has no labels.
        """
        y, x, code = zip(*self._labelled_rows(), strict=True)
        return np.concatenate(y), np.concatenate(x), np.concatenate(code)

    def _labelled_rows(self) -> Iterator[tuple[Array, Array, Array]]:
        """Yield ``labelled_pixels`` one row of chunks after another."""
        labels = _stored(self).labels
        yield np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
        high = labels.chunks[0] if labels is not None else self.height
        for first in range(0, self.height if labels is not None else 0, high):
            rows = slice(first, min(first + high, self.height))
            block = scene_arrays.codes(cast(ZarrArray, labels), (rows, slice(0, self.width)))
            y, x = np.nonzero(block)
            yield y + first, x, block[y, x].astype(np.int64)

    def label_counts(self) -> dict[int, int]:
        """Return code -> labelled pixels, by code, counted chunk by chunk; empty without labels."""
        labels = _stored(self).labels
        counts: Counter[int] = Counter()
        for region in scene_arrays.regions(labels) if labels is not None else ():
            codes, found = np.unique(scene_arrays.codes(cast(ZarrArray, labels), region), return_counts=True)
            counts.update(dict(zip(codes.tolist(), found.tolist(), strict=True)))
        return {code: counts[code] for code in sorted(counts) if code}

    def sampled_mean(self) -> Array:
        """Return the mean of each band (band,) over at most 16 windows, NaN for one without data there."""
        total, count = np.zeros(self.bands), np.zeros(self.bands)
        rows, columns = (_starts(n) for n in (self.height, self.width))
        for y, x in itertools.product(rows, columns):
            block = self.read(y, min(y + _WINDOW, self.height), x, min(x + _WINDOW, self.width))
            count += np.isfinite(block).sum(axis=(1, 2))
            total += np.nansum(block, axis=(1, 2), dtype=np.float64)
        mean: Array = np.divide(total, count, out=np.full(self.bands, np.nan), where=count > 0)
        return mean

    def fingerprint(self) -> str:
        """Return a sha256 of the scene without labels: its metadata and at most 64 chunks.

        The chunks lie spread over the array and are always the same ones. Edits that touch no
        sampled chunk stay unseen: hashing a whole city would cost as much as a stage.
        """
        array = _stored(self).reflectance
        described = {
            "shape": array.shape,
            "dtype": str(array.dtype),
            "chunks": array.chunks,
            "attributes": dict(array.attrs),
            "wavelength_nm": self.wavelength_nm,
            "crs_wkt": self.crs_wkt,
            "transform": self.transform,
        }
        stated, fills = tuple(scene_arrays.stated_fills(array.attrs)), _stored(self).fills
        if fills != stated:  # Zarr v2 keeps one beside the attributes
            described["fills"] = fills
        digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
        for region in scene_arrays.sampled_regions(array):
            digest.update(np.ascontiguousarray(read_region(array, region)).tobytes())
        return digest.hexdigest()

    def same_reflectance(self, other: "Scene") -> bool:
        """Whether all stored numbers agree; chunk by chunk, which costs a pass over both."""
        ours, theirs = (_stored(scene).reflectance for scene in (self, other))
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            return False
        blank = ours.dtype.kind == "f"
        return all(
            np.array_equal(read_region(ours, region), read_region(theirs, region), equal_nan=blank)
            for region in scene_arrays.regions(ours)
        )

    def label_fingerprint(self) -> str | None:
        """Return a sha256 of all labels and the class table, or None without labels."""
        labels = _stored(self).labels
        if labels is None:
            return None
        digest = hashlib.sha256(repr((labels.shape, self.classes)).encode())
        for which in range(3):  # y, x, code; read anew, for all of them may be more than memory holds
            for part in self._labelled_rows():
                digest.update(part[which].astype("<i8").tobytes())
        return digest.hexdigest()

    def _check_window(self, y0: int, y1: int, x0: int, x1: int) -> None:
        if not (0 <= y0 < y1 <= self.height and 0 <= x0 < x1 <= self.width):
            raise ValueError(
                f"window y {y0}:{y1}, x {x0}:{x1} must lie in a scene of "
                f"{self.height} x {self.width} pixels (y, x)"
            )


def _starts(size: int) -> list[int]:
    """First pixels of the sampled windows along an axis, evenly spread."""
    last = max(0, size - _WINDOW)
    steps = min(_WINDOWS, -(-size // _WINDOW))
    return sorted({round(i * last / max(1, steps - 1)) for i in range(steps)})


def open_scene(url: str) -> Scene:
    """Open a Zarr v2 or v3 group, check that it is a scene and return what it is.

    Labels are read once, chunk by chunk, to check their codes.

    Args:
        url: A local path, or a URL that fsspec understands.

    Raises:
        UserError: It is missing or no scene; the message says what was expected and found.
    """
    _stored.cache_clear()
    url = url.rstrip("/") if "://" in url else str(Path(url).resolve())
    group = scene_arrays.open_group(url)
    scene_arrays.check_members(group, url)
    reflectance = scene_arrays.scene_array(group, "reflectance", ("band", "y", "x"), url)
    if reflectance.dtype.kind not in "iuf":
        raise UserError(
            f"scene {url}: reflectance must be integer or float, found {reflectance.dtype}; convert it"
        )
    if 0 in reflectance.shape:
        raise UserError(f"scene {url}: reflectance must not be empty, found {reflectance.shape}")
    _scale_and_offset(reflectance, url)
    bands, height, width = (int(n) for n in reflectance.shape)
    where = f"scene {url}"
    return Scene(
        url=url,
        bands=bands,
        height=height,
        width=width,
        chunk=(int(reflectance.chunks[1]), int(reflectance.chunks[2])),
        wavelength_nm=scene_arrays.wavelengths(group, bands, url),
        crs_wkt=georeference.read_crs_wkt(group, where),
        transform=georeference.read_transform(group, height, width, where),
        classes=scene_arrays.class_table(group, (height, width), url),
    )


def write_georeference(
    group: zarr.Group,
    scene: Scene,
    step: int = 1,
) -> None:
    """Add the scene's y, x and spatial_ref to an output group on the same grid.

    The group's (..., y, x) arrays, which must exist already, get ``grid_mapping`` when there is
    a spatial_ref to name. Nothing is added when the scene has no coordinates and no CRS.

    Args:
        group: An open, writable group; y, x and spatial_ref that it has are replaced.
        scene: Where the grid comes from.
        step: Scene pixels to a side of an output pixel, more than 1 for an overview.
    """
    height, width = -(-scene.height // step), -(-scene.width // step)
    source = scene_arrays.open_group(scene.url)
    where = f"scene {scene.url}"
    transform = georeference.coarser(scene.transform, step) if scene.transform else None
    centres = georeference.pixel_centres(transform, height, width) if transform else None
    axes = []
    for i, (name, size, count) in enumerate((("y", scene.height, height), ("x", scene.width, width))):
        own = georeference.read_coordinate(source, name, size, where)
        if own is not None and (step == 1 or centres is None):
            # The centre of an overview pixel lies between pixels of the scene.
            at = np.arange(count) * step + (step - 1) / 2
            axes.append(np.interp(at, np.arange(size), own))
        else:
            axes.append(centres[i] if centres is not None else None)
    georeference.write_grid(group, scene.crs_wkt, transform, axes[0], axes[1])


@dataclass(frozen=True)
class _Stored:
    """The open arrays of a scene and how reflectance is packed."""

    reflectance: ZarrArray
    labels: ZarrArray | None
    fills: tuple[Any, ...]
    scale: float
    offset: float


def _scale_and_offset(reflectance: ZarrArray, url: str) -> tuple[float, float]:
    attributes, where = dict(reflectance.attrs), f"scene {url}"
    scale = scene_arrays.packing(attributes, "scale_factor", 1.0, where)
    return scale, scene_arrays.packing(attributes, "add_offset", 0.0, where)


@lru_cache(maxsize=16)
def _stored(scene: Scene) -> _Stored:
    group = scene_arrays.open_group(scene.url)
    reflectance = cast(ZarrArray, group["reflectance"])
    labels = cast(ZarrArray, group["labels"]) if scene.classes is not None else None
    scale, offset = _scale_and_offset(reflectance, scene.url)
    return _Stored(reflectance, labels, scene_arrays.fill_values(reflectance), scale, offset)
