"""Bands of one sensor from another's: weights by hand, a straight spectrum kept, gaps refused."""

import json

import numpy as np
import pytest

from mtmsd.bands import BandMap, band_spacing, in_order, match_bands


def nm(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


def test_the_same_bands_in_another_order_are_taken_as_they_are() -> None:
    bands = match_bands(nm(400, 500, 600), nm(600.4, 555, 499.2, 400))
    assert bands.weights == (((3, 1.0),), ((2, 1.0),), ((0, 1.0),))
    assert bands.counts() == {"nearest": 3}
    assert bands.used == (0, 2, 3)


def test_one_band_beyond_the_tolerance_makes_it_another_sensor() -> None:
    there = nm(400, 410, 421.5)
    assert match_bands(nm(400, 410, 420.5), there).counts() == {"nearest": 3}
    bands = match_bands(nm(400, 410, 420), there)
    assert bands.how == ("linear",) * 3
    assert bands.weights[:2] == (((0, 1.0),), ((1, 1.0),))
    [(left, a), (right, b)] = bands.weights[2]
    assert (left, right) == (1, 2)
    assert (a, b) == pytest.approx((1.5 / 11.5, 10 / 11.5))
    assert match_bands(nm(400, 410, 420), there, tolerance_nm=1.5).counts() == {"nearest": 3}


def test_gaussian_weights_by_hand() -> None:
    # 20 nm wide; bands of 10 nm at -10, 0, +10: FWHM of what is left is sqrt(20^2 - 10^2),
    # so the weight at 10 nm is exp(-4 ln 2 x 100 / 300) = 2^(-4/3); at 20 nm 2^(-16/3); at 30 nm 2^-12.
    bands = match_bands(nm(500, 525), nm(*range(400, 601, 10)), fwhm_nm=nm(20, 20))
    assert bands.how == ("gaussian", "gaussian")
    weights = dict(bands.weights[0])
    assert sorted(weights) == [7, 8, 9, 10, 11, 12, 13]  # 470 to 530 nm: 1.5 widths to either side
    raw = {10: 1.0, 9: 2 ** (-4 / 3), 8: 2 ** (-16 / 3), 7: 2**-12}
    total = 1 + 2 * (raw[9] + raw[8] + raw[7])
    for index, value in raw.items():
        assert weights[index] == pytest.approx(value / total, rel=1e-12)
        assert weights[20 - index] == pytest.approx(value / total, rel=1e-12)
    halfway = dict(bands.weights[1])  # between the bands at 520 and 530 nm
    assert halfway[12] == pytest.approx(halfway[13])


@pytest.mark.parametrize("step", [2.0, 5.0, 9.0, 12.0])
def test_a_straight_spectrum_stays_straight(step: float) -> None:
    there = np.arange(400, 900.1, step)
    wanted = np.arange(430, 871, 14.0) + 0.3
    cube = (2 * there + 7).astype(np.float32).reshape(-1, 1, 1)
    made = match_bands(wanted, there, tolerance_nm=0.01)
    exact = made.counts().get("gaussian", 0) == 0
    np.testing.assert_allclose(made.apply(cube).ravel(), 2 * wanted + 7, atol=0.01 if exact else 0.5)
    for row in made.weights:
        assert sum(weight for _, weight in row) == pytest.approx(1)


def test_a_finer_sensor_is_averaged_over_the_width() -> None:
    there, wanted = np.arange(400.0, 701.0), nm(450.5, 500.5, 550.5)
    cube = np.zeros((len(there), 1, 1), np.float32)
    cube[there == 500] = 1
    made = match_bands(wanted, there, fwhm_nm=nm(10, 10, 10), tolerance_nm=0.1).apply(cube).ravel()
    # The density of a Gaussian with FWHM^2 = 100 - 1, half a nanometre from its centre.
    sigma = np.sqrt(99 / (8 * np.log(2)))
    density = np.exp(-(0.5**2) / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(made, [0, density, 0], rtol=2e-3)


def test_bands_outside_the_range_are_refused_with_what_is_missing() -> None:
    there = nm(*range(500, 601, 10))
    with pytest.raises(ValueError, match=r"2 of 3 bands \(490, 615 nm\).*11 bands.*500 to 600 nm"):
        match_bands(nm(490, 545, 615), there)
    at_the_edge = match_bands(nm(499.5, 545), there)
    assert at_the_edge.weights[0] == ((0, 1.0),)
    four = nm(100, 200, 300, 400)
    with pytest.raises(ValueError, match=r"4 of 4 bands \(100, 200, 300, … nm\)"):
        match_bands(four, there)


def test_a_gap_is_not_bridged() -> None:
    there = nm(500, 510, 520, 550, 560)
    wanted = nm(505, 515, 535, 555)
    with pytest.raises(ValueError, match=r"1 of 4 bands \(535 nm\)"):
        match_bands(wanted, there, fwhm_nm=nm(10, 10, 10, 10))
    bridged = match_bands(wanted, there, fwhm_nm=nm(15, 15, 15, 15))  # 30 nm is twice 15 nm
    assert bridged.weights[2] == ((2, 0.5), (3, 0.5))


def test_a_response_is_not_made_of_its_tails() -> None:
    """A gap of 160 nm, more than twice the 60 nm of the band in its middle, has bands on both sides."""
    there = np.arange(400.0, 2501.0, 5.0)
    with pytest.raises(ValueError, match="1 of 2 bands"):
        match_bands(
            nm(1000.3, 1880), there, fwhm_nm=nm(10, 60), usable=(there <= 1800) | (there >= 1960),
            tolerance_nm=0.1,
        )  # fmt: skip


def test_a_response_with_one_side_missing_falls_back_to_interpolation() -> None:
    there = np.concatenate([np.arange(400.0, 501, 5), np.arange(520.0, 601, 5)])
    bands = match_bands(nm(450, 502, 560), there, fwhm_nm=nm(20, 20, 20))
    assert bands.how == ("gaussian", "linear", "gaussian")
    assert bands.weights[1] == ((20, pytest.approx(0.9)), (21, pytest.approx(0.1)))


def test_bands_without_data_are_made_from_their_neighbours() -> None:
    there = nm(500, 510, 520, 530)
    usable = np.array([True, False, True, True])
    bands = match_bands(there, there, usable=usable)
    assert bands.weights[1] == ((0, 0.5), (2, 0.5))
    assert 1 not in bands.used
    with pytest.raises(ValueError, match="no band holds data"):
        match_bands(there, there, usable=np.zeros(4, bool))


def test_only_bands_with_a_weight_are_read() -> None:
    cube = np.array([1, np.nan, 3, 5], np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)
    bands = BandMap(weights=(((0, 1.0),), ((2, 0.5), (3, 0.5))), how=("nearest", "linear"), scale=10)
    made = bands.apply(cube)
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made[:, 1, 2], [10, 40])
    assert np.isnan(BandMap((((1, 1.0),),), ("nearest",)).apply(cube)).all()


def test_taking_bands_keeps_every_bit() -> None:
    cube = np.random.default_rng(0).normal(size=(5, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(in_order([4, 0]).apply(cube), cube[[4, 0]])


def test_json_keeps_full_precision() -> None:
    bands = match_bands(nm(500, 507, 521), nm(*range(490, 541, 3)))
    assert BandMap.from_json(json.loads(json.dumps(bands.as_json()))) == bands


def test_spacing_of_one_band_is_unknown() -> None:
    assert band_spacing(nm(500)).tolist() == [np.inf]
    assert band_spacing(nm(500, 500, 510)).tolist() == [10, 10, 10]
    assert match_bands(nm(505), nm(500, 510)).weights == (((0, 0.5), (1, 0.5)),)
