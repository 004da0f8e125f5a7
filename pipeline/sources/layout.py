"""What every source format gives, and how a stored array of any axis order becomes it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import dask.array as da
import numpy as np

from pipeline.classes import ClassTable
from pipeline.errors import UserError
from pipeline.georeference import Transform

# One block of source data that a thread holds; several chunks, so that graphs stay small.
BLOCK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Cube:
    """A lazy image: ``data`` is a dask array (band, y, x), the rest what the file says of it."""

    data: Any
    fill: float | None = None
    scale_factor: float | None = None
    add_offset: float | None = None
    wavelength_nm: tuple[float, ...] | None = None
    crs_wkt: str | None = None
    transform: Transform | None = None


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
    lazy = da.from_array(array, chunks=tuple(block[axis] for axis in axes), meta=_meta(array))
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
    lazy = da.from_array(array, chunks=(2048, 2048), meta=_meta(array))
    return da.transpose(lazy, [axes.index(axis) for axis in "yx"])


def block_width(bands: int, width: int, dtype: np.dtype[Any], chunk: int) -> int:
    """Return how many columns, whole chunks, a block of one row of chunks should hold."""
    chunk_bytes = bands * chunk * chunk * dtype.itemsize
    return min(width, chunk * max(1, BLOCK_BYTES // chunk_bytes))


def check_numeric(dtype: np.dtype[Any], where: str) -> None:
    """Raise UserError unless the type is integer or float."""
    if dtype.kind not in "iuf":
        raise UserError(f"{where} must hold integers or real numbers, found {dtype}; convert it first")


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
        raise UserError(
            f"{path}: expected one {len(axes)}-D array to take, found {listed}; choose one with {option}"
        )
    return next(iter(fitting))


def _meta(array: StoredArray) -> Any:
    """Return an empty block, so that dask need not read one to learn its type."""
    return np.empty((0,) * array.ndim, array.dtype)
