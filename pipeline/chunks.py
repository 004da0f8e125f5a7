"""Reads of Zarr arrays that name the chunk that cannot be decoded."""

import itertools
from typing import Any

import numpy as np
import zarr

from pipeline.errors import UserError, is_trouble


def read_region(array: zarr.Array[Any], region: tuple[slice, ...]) -> np.ndarray[Any, np.dtype[Any]]:
    """Return array[region].

    Raises:
        UserError: A chunk is damaged; the message says which.
        OSError: The store cannot be read (now); worth another try.
    """
    try:
        return np.asarray(array[region])
    except Exception as error:  # each codec has exceptions of its own
        if is_trouble(error):
            raise
        chunk = _damaged(array, region)
        where = "" if chunk is None else f" at {array.metadata.encode_chunk_key(chunk)}"
        raise UserError(
            f"{array.store_path}: chunk{where} cannot be decoded ({type(error).__name__}: {error}); "
            "restore the file from a copy, or make the array again"
        ) from error


def _damaged(array: zarr.Array[Any], region: tuple[slice, ...]) -> tuple[int, ...] | None:
    """The first chunk of a region that cannot be decoded."""
    spans = []
    for part, size, side in zip(region, array.shape, array.chunks, strict=True):
        start, stop, _ = part.indices(size)
        spans.append(range(start // side, -(-stop // side)))
    for chunk in itertools.product(*spans):
        try:
            array.get_block_selection(chunk)
        except Exception:
            return chunk
    return None
