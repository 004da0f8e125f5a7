"""NetCDF 3 and 4 and plain HDF5 files, with their groups, through xarray."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from pipeline.errors import UserError
from pipeline.sources import lookup, named
from pipeline.sources.arrays import Arrays, Stored
from pipeline.sources.layout import Cube, LabelMap

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError)
_PACKED = ("_FillValue", "missing_value")
"""Attributes of the variable's own type."""
_NO_NAME = "phony_dim"


class Variable:
    """A variable of an open file as a sliceable array of its stored numbers."""

    def __init__(self, variable: xr.Variable) -> None:
        """Keep the lazy variable; what NetCDF-3 keeps as signed and calls unsigned is so."""
        self.attributes: dict[str, Any] = dict(variable.attrs)
        self._variable = variable
        self.shape: tuple[int, ...] = variable.shape
        self.dtype: np.dtype[Any] = variable.dtype
        self.ndim: int = variable.ndim
        self._unsigned = variable.dtype.kind == "i" and str(variable.attrs.get("_Unsigned")).lower() == "true"
        if self._unsigned:
            self.dtype = np.dtype(f"u{variable.dtype.itemsize}")
            self.attributes |= {
                key: np.asarray(value).astype(variable.dtype).view(self.dtype)
                for key, value in self.attributes.items()
                if key in _PACKED
            }

    def __getitem__(self, index: Any) -> Any:
        """Return the sliced part."""
        values = self._variable[index].to_numpy()
        return values.astype(values.dtype.newbyteorder("=")).view(self.dtype) if self._unsigned else values


def read_cube(path: Path, variable: str | None, axes: str | None, chunk: int) -> Cube:
    """Open the image of a file; ``variable`` None takes the 3-D array with most bands.

    An image in sensor geometry that brings a lookup table (EMIT's glt_x, glt_y) comes out on the
    table's grid.
    """
    found = arrays(path)
    cube = named.read_cube(found, variable, axes, chunk)
    return lookup.placed(found, cube, chunk)


def read_labels(path: Path, variable: str | None, axes: str) -> LabelMap:
    """Open the label map of a file; ``variable`` None takes the only 2-D one."""
    return named.read_labels(arrays(path), variable, axes)


def arrays(path: Path) -> Arrays:
    """Return the arrays of all groups of a file; UserError when it is none that can be read."""
    try:
        hdf5 = h5py.is_hdf5(path)
        options: dict[str, Any] = (
            {"engine": "h5netcdf", "phony_dims": "access"} if hdf5 else {"engine": "scipy"}
        )
        opened = _groups(path, options, hdf5)
    except _UNREADABLE as error:
        kind = "HDF5" if path.suffix.lower() not in (".nc", ".nc4", ".cdf") else "NetCDF"
        raise UserError(f"{path}: cannot read it as {kind}: {error}") from error
    found = []
    for group, dataset in sorted(opened.items()):
        for name, variable in dataset.variables.items():
            dims = tuple(str(dim) for dim in variable.dims)
            known = () if any(dim.startswith(_NO_NAME) for dim in dims) else dims
            full = f"{group.strip('/')}/{name}".strip("/")
            array = Variable(variable)
            found.append(Stored(full, known, array.attributes, array))
    return Arrays(path, tuple(found), dict(opened["/"].attrs))


def _groups(path: Path, options: dict[str, Any], hdf5: bool) -> dict[str, xr.Dataset]:
    """Open every group as stored: numbers neither scaled nor masked, times not decoded."""
    raw: dict[str, Any] = {
        "mask_and_scale": False,
        "decode_times": False,
        "decode_coords": False,
        "cache": False,
    }
    raw["create_default_indexes"] = False
    if not hdf5:
        return {"/": xr.open_dataset(path, **raw, **options)}
    return xr.open_groups(path, **raw, **options)
