"""Moments merge exactly however a scene is cut; the projection is the SVD's."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mtmsd.spectral import Moments, Projection, ReduceConfig, fit_projection

FloatArray = NDArray[np.float32]


def spectra_of(seed: int, pixels: int, bands: int, level: float = 0.0) -> FloatArray:
    """Draw correlated spectra whose bands differ in spread."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(pixels, bands)) @ rng.normal(size=(bands, bands))
    return (mixed * np.linspace(1, 5, bands) + level).astype(np.float32)


def moments_of(spectra_NB: FloatArray) -> Moments:
    moments = Moments(spectra_NB.shape[1])
    moments.update(spectra_NB)
    return moments


@given(
    seed=st.integers(0, 10_000),
    bands=st.integers(1, 5),
    level=st.sampled_from([0.0, 1e4]),
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 1),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_merging_any_cut_gives_the_moments_of_everything(
    seed: int, bands: int, level: float, sizes: list[int], data: st.DataObject
) -> None:
    spectra = spectra_of(seed, sum(sizes), bands, level)
    parts = [moments_of(part) for part in np.split(spectra, np.cumsum(sizes)[:-1])]
    while len(parts) > 1:
        taken = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        parts[data.draw(st.integers(0, len(parts) - 1))].merge(taken)
    [merged] = parts
    exact = spectra.astype(np.float64)
    assert merged.count == len(spectra)
    np.testing.assert_allclose(merged.mean_B, exact.mean(axis=0), rtol=1e-12, atol=1e-12)
    covariance = np.atleast_2d(np.cov(exact.T, bias=True))
    scale = np.trace(covariance)
    np.testing.assert_allclose(merged.scatter_BB / merged.count, covariance, atol=1e-9 * scale)


def test_moments_by_hand() -> None:
    moments = moments_of(np.array([[1, 2], [3, 6]], np.float32))
    other = moments_of(np.array([[5, 1]], np.float32))
    moments.merge(other)
    assert moments.count == 3
    assert moments.mean_B.tolist() == [3, 3]
    np.testing.assert_allclose(moments.scatter_BB, [[8, -2], [-2, 14]])


def test_pixels_with_a_nan_do_not_count() -> None:
    spectra = spectra_of(0, 50, 3)
    holed = np.insert(spectra, [0, 20, 50], np.nan, axis=0)
    holed[0, 1:] = 7  # NaN in one band alone
    holed[21, 1] = -np.inf
    holed[21, ::2] = 7
    whole, part = moments_of(spectra), moments_of(holed)
    part.update(np.full((4, 3), np.nan, np.float32))
    assert part.count == 50
    np.testing.assert_array_equal(part.mean_B, whole.mean_B)
    np.testing.assert_array_equal(part.scatter_BB, whole.scatter_BB)


def test_merging_with_nothing_changes_nothing() -> None:
    whole, empty = moments_of(spectra_of(1, 9, 2)), Moments(2)
    expected = moments_of(spectra_of(1, 9, 2))
    whole.merge(Moments(2))
    empty.merge(expected)
    empty.merge(Moments(2))
    for moments in (whole, empty):
        assert moments.count == 9
        np.testing.assert_array_equal(moments.mean_B, expected.mean_B)
        np.testing.assert_array_equal(moments.scatter_BB, expected.scatter_BB)


@pytest.mark.parametrize(("bands", "components"), [(6, 6), (6, 2), (1, 1)])
def test_projection_is_the_svd_up_to_sign(bands: int, components: int) -> None:
    spectra = spectra_of(2, 300, bands, level=100)
    projection = fit_projection(moments_of(spectra), ReduceConfig(components=components))
    exact = spectra.astype(np.float64)
    _, singular, directions = np.linalg.svd(exact - exact.mean(axis=0), full_matrices=False)
    cosine = (projection.loadings_BC * directions[:components].T).sum(axis=0)
    np.testing.assert_allclose(np.abs(cosine), 1, atol=1e-9)
    np.testing.assert_allclose(projection.scale_C, singular[:components] / np.sqrt(300))
    explained = singular**2 / (singular**2).sum()
    np.testing.assert_allclose(projection.explained_C, explained[:components])
    largest = np.abs(projection.loadings_BC).argmax(axis=0)
    assert (projection.loadings_BC[largest, np.arange(components)] > 0).all()


def test_scores_have_zero_mean_unit_variance_and_no_correlation() -> None:
    spectra = spectra_of(3, 400, 5, level=50)
    projection = fit_projection(moments_of(spectra), ReduceConfig(components=3))
    cube = np.ascontiguousarray(spectra.T).reshape(5, 16, 25)
    scores = projection.apply(cube)
    assert scores.dtype == np.float32
    assert scores.shape == (3, 16, 25)
    flat = scores.reshape(3, -1).astype(np.float64)
    np.testing.assert_allclose(flat.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(np.cov(flat, bias=True), np.eye(3), atol=1e-5)
    pixel = (cube[:, 4, 7] - projection.mean_B) @ projection.loadings_BC / projection.scale_C
    np.testing.assert_allclose(scores[:, 4, 7], pixel, rtol=1e-5)


def test_a_nan_in_any_band_makes_the_pixel_nan_and_no_other() -> None:
    spectra = spectra_of(4, 12, 4)
    projection = fit_projection(moments_of(spectra), ReduceConfig(components=2))
    cube = np.ascontiguousarray(spectra.T).reshape(4, 3, 4)
    cube[2, 1, 3] = np.nan
    hole = np.isnan(projection.apply(cube))
    assert hole[:, 1, 3].all()
    assert hole.sum() == 2


def test_json_keeps_full_precision() -> None:
    projection = fit_projection(moments_of(spectra_of(5, 40, 4)), ReduceConfig(components=3))
    again = Projection.from_json(json.loads(json.dumps(projection.as_json())))
    for name in ("mean_B", "loadings_BC", "scale_C", "explained_C"):
        np.testing.assert_array_equal(getattr(again, name), getattr(projection, name))


def test_impossible_projections_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at most the 3 usable bands, found 4"):
        fit_projection(moments_of(spectra_of(6, 30, 3)), ReduceConfig(components=4))
    with pytest.raises(ValueError, match=r"needs more valid pixels than that, found 3"):
        fit_projection(moments_of(spectra_of(6, 3, 3)), ReduceConfig(components=3))
    flat = spectra_of(6, 30, 2).round() @ np.array([[1, 0, 2, 1], [0, 1, 1, 3]], np.float32)
    with pytest.raises(ValueError, match=r"components = 3 exceeds the rank of the spectra, 2"):
        fit_projection(moments_of(flat), ReduceConfig(components=3))
    with pytest.raises(ValueError, match="exceeds the rank of the spectra, 0"):
        fit_projection(moments_of(np.ones((30, 2), np.float32)), ReduceConfig(components=1))
    with pytest.raises(ValueError, match=r"reduce\.components must be at least 1, found 0"):
        ReduceConfig(components=0)
