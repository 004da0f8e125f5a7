"""What every source format gives, and how a stored array of any axis order becomes it."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import dask.array as da
import numpy as np

from pipeline.classes import ClassTable
from pipeline.errors import UserError
from pipeline.georeference import Transform

# One block of source data that a thread holds; several chunks, so that graphs stay small.
BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Cube:
    """A lazy image: ``data`` is a dask array (band, y, x), the rest what the file says of it.

    ``bad_bands``, counted from 0, are those that the file calls bad; ``notes`` is what the user
    should know about how the file was read.
    """

    data: Any
    fill: float | None = None
    scale_factor: float | None = None
    add_offset: float | None = None
    wavelength_nm: tuple[float, ...] | None = None
    crs_wkt: str | None = None
    transform: Transform | None = None
    bad_bands: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    flipped: bool = False
    """Whether its rows are in the other order than in the file."""
    labelled: bool = False
    """Whether the file holds an array of the name ``labels`` beside it."""


@dataclass(frozen=True)
class LabelMap:
    """A lazy label map: ``data`` is a dask array (y, x) of codes in the file's own numbers."""

    data: Any
    fill: float | None = None
    classes: ClassTable | None = None
    crs_wkt: str | None = None
    transform: Transform | None = None


class StoredArray(Protocol):
    """An array on disk that reads what is sliced from it; picklable, so any worker can read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        ...

    @property
    def ndim(self) -> int:
        """Number of axes."""
        ...

    def __getitem__(self, index: Any) -> Any:
        """Return the sliced part as a NumPy array."""
        ...


class Readable:
    """A stored array whose reading errors say which file is damaged, and where."""

    def __init__(self, array: StoredArray, where: str) -> None:
        """Wrap an array; ``where`` is the file and array, for messages."""
        self._array = array
        self._where = where
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype[Any] = array.dtype
        self.ndim: int = array.ndim

    def __getitem__(self, index: Any) -> Any:
        """Return the sliced part as a NumPy array; UserError where it cannot be read."""
        try:
            return np.asarray(self._array[index])
        except (OSError, ValueError, RuntimeError, zlib.error) as error:
            part = ", ".join(f"{one.start}:{one.stop}" for one in index)
            raise UserError(
                f"{self._where}: cannot read [{part}]: {error}; the file is damaged or cut off"
            ) from error


def to_cube(array: StoredArray, axes: str, chunk: int, where: str) -> Any:
    """Return a stored array as a dask array (band, y, x).

    Args:
        array: The stored array, 3-D and numeric.
        axes: The order of its axes, e.g. "yxb".
        chunk: Pixels to a side of a chunk of the scene.
        where: The file and array, for messages.

    Raises:
        UserError: The array is not a 3-D array of real numbers.
    """
    if array.ndim != 3:
        raise UserError(
            f"{where} must be a 3-D array {axes}, found shape {array.shape}; name another variable"
        )
    check_numeric(array.dtype, where)
    size = dict(zip(axes, array.shape, strict=True))
    wide = block_width(size["b"], size["x"], array.dtype, chunk)
    block = {"b": size["b"], "y": min(chunk, size["y"]), "x": wide}
    lazy = _lazy(array, tuple(block[axis] for axis in axes), where)
    return da.transpose(lazy, [axes.index(axis) for axis in "byx"])


def to_labels(array: StoredArray, axes: str, where: str) -> Any:
    """Return a stored 2-D array with axes "yx" or "xy" as a dask array (y, x).

    Raises:
        UserError: The array is not a 2-D array of real numbers.
    """
    if array.ndim != 2:
        raise UserError(
            f"{where} must be a 2-D label map {axes}, found shape {array.shape}; "
            "name another variable with --labels-variable"
        )
    check_numeric(array.dtype, where)
    lazy = _lazy(array, (2048, 2048), where)
    return da.transpose(lazy, [axes.index(axis) for axis in "yx"])


def block_width(bands: int, width: int, dtype: np.dtype[Any], chunk: int) -> int:
    """Return how many columns, whole chunks, a block of one row of chunks should hold."""
    chunk_bytes = bands * chunk * chunk * dtype.itemsize
    return min(width, chunk * max(1, BLOCK_BYTES // chunk_bytes))


def check_numeric(dtype: np.dtype[Any], where: str) -> None:
    """Raise UserError unless the type is integer or float."""
    if dtype.kind in "iuf":
        return
    found, remedy = str(dtype), "convert it first"
    if dtype.kind in "USO":
        found = "text"
        remedy = (
            "labels that are words must become numbers (0: unlabelled), or come as a vector file with a "
            "column of classes"
        )
    raise UserError(f"{where} must hold integers or real numbers, found {found}; {remedy}")


def bad_bands(flags: Any) -> tuple[int, ...]:
    """Return the bands whose flag in a list of good (not 0) and bad (0) bands is 0."""
    return tuple(int(band) for band in np.flatnonzero(np.asarray(flags, np.float64) == 0))


def choose(shapes: dict[str, tuple[int, ...]], name: str | None, axes: str, option: str, path: Path) -> str:
    """Return the variable of a file to take: the one named, else the only fitting one.

    For a cube (three axes), fitting is the array with most bands.

    Raises:
        UserError: The name is not there, or the choice is ambiguous; it lists what is there.
    """
    listed = ", ".join(f"{key} {shape}" for key, shape in sorted(shapes.items())) or "nothing"
    if name is not None:
        if name not in shapes:
            raise UserError(f"{path}: {option} {name}: no such array; found {listed}")
        return name
    fitting = {k: s for k, s in shapes.items() if len(s) == len(axes) and min(s) > 1}
    if len(axes) == 3 and fitting:
        band = axes.index("b")
        most = max(shape[band] for shape in fitting.values())
        fitting = {k: s for k, s in fitting.items() if s[band] == most}
    if len(fitting) != 1:
        remedy = f"choose one with {option}" if fitting else "there is none to choose"
        raise UserError(f"{path}: expected one {len(axes)}-D array to take, found {listed}; {remedy}")
    return next(iter(fitting))


def _lazy(array: StoredArray, chunks: tuple[int, ...], where: str) -> Any:
    """Return a stored array as a dask array that slices it with slices only."""
    # An empty block, so that dask need not read one to learn its type.
    meta = np.empty((0,) * array.ndim, array.dtype)
    return da.from_array(Readable(array, where), chunks=chunks, meta=meta, fancy=False)
