"""NumPy .npy files, memory-mapped for the moment of each read."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.sources.layout import Cube, LabelMap, to_cube, to_labels


class NpyArray:
    """A .npy file as a sliceable array.

    It is mapped anew for each read: a mapping that stays open keeps every page that was read
    in this process's memory.
    """

    def __init__(self, path: Path) -> None:
        """Read the header; UserError when it is no .npy file of plain numbers."""
        self._path = path
        header = self._map()
        self.shape: tuple[int, ...] = header.shape
        self.dtype: np.dtype[Any] = header.dtype
        self.ndim: int = header.ndim

    def __getitem__(self, index: Any) -> Any:
        """Return a copy of the sliced part."""
        return np.array(self._map()[index])

    def _map(self) -> np.ndarray[Any, np.dtype[Any]]:
        try:
            return np.load(self._path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
        except (ValueError, EOFError) as error:
            raise UserError(f"{self._path}: cannot read it as a NumPy array: {error}") from error


def read_cube(path: Path, axes: str, chunk: int) -> Cube:
    """Open a 3-D .npy file with this order of axes."""
    return Cube(to_cube(NpyArray(path), axes, chunk, str(path)))


def read_labels(path: Path, axes: str) -> LabelMap:
    """Open a 2-D .npy file with this order of axes."""
    return LabelMap(to_labels(NpyArray(path), axes, str(path)))
