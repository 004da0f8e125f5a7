"""MATLAB files: version 5 and older through SciPy, version 7.3 (HDF5) lazily through h5py.

Axis orders are MATLAB's own. HDF5 lists the axes of a MATLAB array backwards.
"""

import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from scipy.io.matlab import MatReadError

from pipeline.errors import UserError
from pipeline.sources.layout import Cube, LabelMap, StoredArray, choose, to_cube, to_labels

_UNREADABLE = (MatReadError, OSError, ValueError, TypeError, NotImplementedError, zlib.error)


class Hdf5Array:
    """A dataset of an HDF5 file in MATLAB's order of axes; the file is opened for each read."""

    def __init__(self, path: Path, name: str) -> None:
        """Look up shape and type of a dataset that exists."""
        self._path = path
        self._name = name
        with h5py.File(path) as file:
            self.shape: tuple[int, ...] = tuple(file[name].shape[::-1])
            self.dtype: np.dtype[Any] = file[name].dtype
        self.ndim: int = len(self.shape)

    def __getitem__(self, index: Any) -> Any:
        """Return the sliced part."""
        with h5py.File(self._path) as file:
            return np.asarray(file[self._name][tuple(index)[::-1]]).T


def read_cube(path: Path, variable: str | None, axes: str, chunk: int) -> Cube:
    """Open a cube; ``variable`` None takes the 3-D array with most bands."""
    name = choose(shapes(path), variable, axes, "--variable", path)
    return Cube(to_cube(_open(path, name), axes, chunk, f"{path}: {name}"))


def read_labels(path: Path, variable: str | None, axes: str) -> LabelMap:
    """Open a label map; ``variable`` None takes the only 2-D array."""
    name = choose(shapes(path), variable, axes, "--labels-variable", path)
    return LabelMap(to_labels(_open(path, name), axes, f"{path}: {name}"))


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes, in MATLAB's order, of the arrays in a file."""
    try:
        if not h5py.is_hdf5(path):
            return {name: shape for name, shape, _ in scipy.io.whosmat(path)}
        with h5py.File(path) as file:
            return {
                str(name): tuple(item.shape[::-1])
                for name, item in file.items()
                if isinstance(item, h5py.Dataset)
            }
    except _UNREADABLE as error:
        raise UserError(f"{path}: cannot read it as a MATLAB file: {error}") from error


def _open(path: Path, name: str) -> StoredArray:
    """Return an array of a file; version 5 cannot be sliced on disk and is read as a whole."""
    if h5py.is_hdf5(path):
        return Hdf5Array(path, name)
    try:
        array: np.ndarray[Any, np.dtype[Any]] = scipy.io.loadmat(path, variable_names=[name])[name]
    except _UNREADABLE as error:
        raise UserError(f"{path}: cannot read {name} from it: {error}") from error
    return array
