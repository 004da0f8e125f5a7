"""The arrays of a file that names them, with their dimensions and attributes, and where they lie."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
from pyproj.exceptions import CRSError

from pipeline.errors import UserError
from pipeline.georeference import Transform, parse_crs, parse_transform, plain_index, regular
from pipeline.ingest_options import same_transform
from pipeline.sources.layout import StoredArray

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Stored:
    """An array of a file: its path inside the file, dimension names (or ()), attributes, numbers."""

    name: str
    dims: tuple[str, ...]
    attributes: dict[str, Any]
    array: StoredArray

    @property
    def short(self) -> str:
        """The name without its groups."""
        return self.name.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Arrays:
    """All arrays of a file and the attributes of its root."""

    path: Path
    arrays: tuple[Stored, ...]
    attributes: dict[str, Any]

    def named(self, *names: str, near: Stored | None = None) -> Stored | None:
        """Return the array of the first of these names that is there.

        Of several that of the group of ``near``, else of the nearest group around it, else the first.
        """
        for name in names:
            there = [array for array in self.arrays if array.short.lower() == name.lower()]
            if there:
                return min(there, key=lambda array: _groups_apart(array, near))
        return None


def _groups_apart(array: Stored, near: Stored | None) -> float:
    """Return how many groups lie between an array and a later one inside of its group, else infinity."""
    if near is None:
        return 0
    own, inner = (one.name.strip("/").split("/")[:-1] for one in (array, near))
    return len(inner) - len(own) if inner[: len(own)] == own else math.inf


def crs_of(found: Arrays, image: Stored) -> str | None:
    """Return the CRS that the grid mapping states, or WGS 84 for latitude and longitude axes."""
    attributes = _mapping(found, image)
    for key in ("crs_wkt", "spatial_ref", "proj:wkt2", "proj:code"):
        if attributes.get(key):
            return parse_crs(str(attributes[key]), f"{found.path}: attribute {key}").to_wkt()
    if "grid_mapping_name" in attributes:
        try:
            return pyproj.CRS.from_cf(attributes).to_wkt()
        except (CRSError, KeyError) as error:
            raise UserError(f"{found.path}: cannot build a CRS from its grid mapping: {error}") from error
    if {"lat", "lon"} <= set(image.dims) or {"latitude", "longitude"} <= set(image.dims):
        return pyproj.CRS.from_epsg(4326).to_wkt()
    return None


def _mapping(found: Arrays, image: Stored) -> dict[str, Any]:
    """Return the attributes of the grid mapping, else those of GeoZarr on the file's root."""
    named = str(image.attributes.get("grid_mapping", "")).split(":")[0].strip()
    mapping = found.named(*(name for name in (named, "spatial_ref", "crs") if name), near=image)
    if mapping is not None:
        return plain_attributes(mapping.attributes)
    return {
        key: v
        for key, v in plain_attributes(found.attributes).items()
        if key.startswith(("proj:", "spatial:"))
    }


def transform_of(found: Arrays, image: Stored, axes: str) -> tuple[Transform | None, bool]:
    """Return the transform and whether rows must be turned round.

    What the grid mapping states counts, unless regular coordinates contradict it.
    """
    stated = _stated(found, image)
    ends = []
    for letter in "yx":
        axis = found.named(image.dims[axes.index(letter)], near=image) if image.dims else None
        if axis is None or axis.array.dtype.kind not in "iuf":
            return stated, False
        if axis.array.shape != (image.array.shape[axes.index(letter)],):
            return stated, False
        values = np.asarray(axis.array[:], np.float64)
        even = _regular(values)
        if even is None:
            return stated, False
        ends.append(even)
    (y, y_step), (x, x_step) = ends
    top = y + y_step * image.array.shape[axes.index("y")] if y_step > 0 else y
    given = (x_step, 0.0, x, 0.0, -abs(y_step), top)
    agrees = stated is not None and same_transform(stated, given, _size(image, axes))
    return (stated if agrees else given), y_step > 0


def _size(image: Stored, axes: str) -> tuple[int, int]:
    height, width = (image.array.shape[axes.index(letter)] for letter in "yx")
    return height, width


def _stated(found: Arrays, image: Stored) -> Transform | None:
    """Return the transform in GDAL's or GeoZarr's attribute, in rasterio's order."""
    attributes = _mapping(found, image)
    if "GeoTransform" in attributes:
        return parse_transform(attributes["GeoTransform"], str(found.path))
    text = attributes.get("spatial:transform")
    if text is None:
        return None
    try:
        one, two, three, four, five, six = (
            float(v) for v in (text.split() if isinstance(text, str) else text)
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{found.path}: the transform must be six numbers, found {text!r}") from error
    return one, two, three, four, five, six


def _regular(values: Array) -> tuple[float, float] | None:
    """Return (outer edge of the first pixel, spacing) of evenly spread coordinates, else None."""
    found = regular(values)
    if found is None or plain_index(values):
        return None
    # Differences of decimal fractions leave dust in the last digits.
    step = float(np.format_float_positional(found[1], 12, unique=False, fractional=False))
    return float(np.float64(values[0] - step / 2)), step


def plain_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes with NumPy arrays and scalars as lists and numbers."""
    return {
        str(key): value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        for key, value in attributes.items()
    }
