"""Zarr v2 and v3 groups written by others; arrays are read chunk by chunk where they lie."""

import warnings
from pathlib import Path
from typing import Any

import zarr
from zarr.errors import BaseZarrError, ZarrUserWarning

from pipeline.errors import UserError
from pipeline.scene_arrays import dimension_names, fill_values
from pipeline.sources import named
from pipeline.sources.arrays import Arrays, Stored
from pipeline.sources.layout import Cube, LabelMap


def read_cube(path: Path, variable: str | None, axes: str | None, chunk: int) -> Cube:
    """Open the image of a Zarr group; ``variable`` None takes the 3-D array with most bands."""
    return named.read_cube(arrays(path), variable, axes, chunk)


def read_labels(path: Path, variable: str | None, axes: str) -> LabelMap:
    """Open the label map of a Zarr group; ``variable`` None takes the only 2-D one."""
    return named.read_labels(arrays(path), variable, axes)


def arrays(path: Path) -> Arrays:
    """Return the arrays of a Zarr group, or the one array; UserError when there is none to read."""
    try:
        with warnings.catch_warnings():
            # Zarr warns about files beside its own, and about what its specification lacks.
            warnings.simplefilter("ignore", ZarrUserWarning)
            opened = zarr.open(path, mode="r")
            if isinstance(opened, zarr.Array):
                return Arrays(path, (_stored(path.name, opened),), {})
            members = opened.members(max_depth=None)
            found = [_stored(name, item) for name, item in members if isinstance(item, zarr.Array)]
    except (OSError, BaseZarrError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot read it as Zarr: {type(error).__name__}: {error}") from error
    return Arrays(path, tuple(sorted(found, key=lambda one: one.name)), dict(opened.attrs))


def _stored(name: str, array: zarr.Array[Any]) -> Stored:
    attributes: dict[str, Any] = dict(array.attrs)
    attributes.pop("_FillValue", None)
    fills = fill_values(array)
    if fills:
        attributes["_FillValue"] = fills[0] if len(fills) == 1 else list(fills)
    return Stored(name, dimension_names(array), attributes, array)
