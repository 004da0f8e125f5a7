"""What the tiles of ``reduce`` add up to, against plain numpy."""

import numpy as np

from mtmsd.spectral import Moments
from pipeline.reduction import UsedBands, tile_moments


def test_pixels_with_data_in_every_used_band_count() -> None:
    cube = np.random.default_rng(0).random((4, 6, 8), np.float32)
    cube[3] = np.nan  # a band without data anywhere
    cube[2, :, :2] = cube[1, :, 6:] = np.nan  # bands that are missing in some tiles
    cube[0, 2, 3] = np.nan
    sums = UsedBands(4)
    for left in range(0, 8, 2):
        tile = cube[:, :, left : left + 2]
        row = tile_moments({"cube": tile[None], "unit": np.array([left]), "bytes_read": np.array([0])})
        sums.add({key: value[0] for key, value in row.items()})
    plain = Moments(3)
    plain.update(cube[:3].reshape(3, -1).T)
    assert sums.valid_B.tolist() == [47, 36, 36, 0]
    assert sums.moments.count == plain.count == 23
    np.testing.assert_allclose(sums.moments.mean_B, plain.mean_B, rtol=1e-12)
    np.testing.assert_allclose(sums.moments.scatter_BB, plain.scatter_BB, rtol=1e-12)


def test_a_band_that_comes_late_makes_what_was_summed_void() -> None:
    cube = np.random.default_rng(1).random((2, 4, 4), np.float32)
    cube[1, :, :2] = np.nan
    sums = UsedBands(2)
    for left in (0, 2):
        tile = cube[:, :, left : left + 2]
        row = tile_moments({"cube": tile[None], "unit": np.array([left]), "bytes_read": np.array([0])})
        sums.add({key: value[0] for key, value in row.items()})
        assert sums.moments.count == 8
    np.testing.assert_allclose(sums.moments.mean_B, cube[:, :, 2:].mean(axis=(1, 2)), rtol=1e-6)
