"""Temperature and calibration error: hand-computed values, known temperatures, merging."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtmsd.calibration import Reliability, fit_temperature, fold_of

torch.set_num_threads(1)


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_the_temperature_of_overstated_logits_is_found(true: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn((20_000, 5), generator=generator)
    drawn = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    assert fit_temperature(logits * true, drawn) == pytest.approx(true, rel=0.05)


def test_temperatures_stay_in_bounds_where_the_likelihood_has_none() -> None:
    logits = torch.eye(3)
    assert fit_temperature(logits, torch.arange(3)) == pytest.approx(0.1, rel=1e-6)  # all right
    assert fit_temperature(logits, torch.tensor([1, 2, 0])) == pytest.approx(10, rel=1e-6)  # all wrong
    assert fit_temperature(torch.empty((0, 3)), torch.empty(0, dtype=torch.long)) == 1.0


def test_folds_share_out_every_class() -> None:
    position = np.repeat([0, 1, 2, 3], [10, 7, 2, 1])
    fold = fold_of(position, 5, seed=3)
    assert np.bincount(fold[position == 0]).tolist() == [2] * 5
    assert np.bincount(fold[position == 1]).tolist() == [2, 2, 1, 1, 1]
    assert sorted(fold[position == 2]) == [0, 1]
    assert fold[position == 3].tolist() == [-1]
    assert np.array_equal(fold, fold_of(position, 5, seed=3))
    assert not np.array_equal(fold, fold_of(position, 5, seed=4))


def test_calibration_error_by_hand() -> None:
    reliability = Reliability(bins=4)
    reliability.update(np.array([0.25, 0.5, 0.45, 1.0]), np.array([True, False, True, True]))
    assert reliability.rows() == [[0.25, 1.0, 1], [0.475, 0.5, 2], [1.0, 1.0, 1]]
    assert reliability.error() == pytest.approx((0.75 + 2 * 0.025 + 0) / 4)
    assert Reliability().error() == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1), st.integers(0, 50))
def test_sums_merge(pixels: list[tuple[float, bool]], cut: int) -> None:
    confidence, right = (np.array(column) for column in zip(*pixels, strict=True))
    whole, parts = Reliability(), Reliability()
    whole.update(confidence, right)
    for part in (slice(cut), slice(cut, None)):
        parts.update(confidence[part], right[part])
    np.testing.assert_allclose(whole.sums_B3, parts.sums_B3)
    assert 0 <= whole.error() <= 1
