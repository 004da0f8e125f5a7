"""Walking through stored arrays chunk by chunk."""

from typing import Any

import dask.array as da
import numpy as np
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import scene_arrays
from pipeline.scene_arrays import one_fill


def test_sample_is_bounded_and_covers_small_arrays() -> None:
    large: Any = zarr.create_array({}, shape=(8, 9000, 9000), chunks=(8, 64, 64), dtype="u2")
    assert len(list(scene_arrays.sampled_regions(large))) == 64
    small: Any = zarr.create_array({}, shape=(3, 20, 20), chunks=(3, 8, 8), dtype="u2")
    assert list(scene_arrays.sampled_regions(small)) == list(scene_arrays.regions(small))
    single: Any = zarr.create_array({}, shape=(3, 20, 20), chunks=(3, 20, 20), dtype="u2")
    assert len(list(scene_arrays.sampled_regions(single))) == 1


@given(shape=st.tuples(*[st.integers(1, 12)] * 2), chunks=st.tuples(*[st.integers(1, 12)] * 2))
@settings(max_examples=40, deadline=None)
def test_regions_cover_each_element_once(shape: tuple[int, int], chunks: tuple[int, int]) -> None:
    array: Any = zarr.create_array({}, shape=shape, chunks=chunks, dtype="u1")
    seen = np.zeros(shape, int)
    for region in scene_arrays.regions(array):
        seen[region] += 1
    assert (seen == 1).all()


def test_fills_that_the_type_cannot_hold_are_left_out() -> None:
    data = da.from_array(np.array([[1, 65535]], np.uint16))
    found, fill = one_fill(data, {"_FillValue": -9999, "missing_value": 65535})
    assert fill == 65535
    np.testing.assert_array_equal(found.compute(), data.compute())
