"""Temperature and calibration error: hand-computed values, known temperatures, merging."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from mtmsd.calibration import PRIOR_MARGIN, PRIOR_WIDTH, Reliability, fit_temperature, fold_of, twin_folds

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


def test_without_pixels_the_margin_decides() -> None:
    nothing = torch.empty((0, 3)), torch.empty(0, dtype=torch.long)
    assert fit_temperature(*nothing, margin=3.0) == pytest.approx(3 / PRIOR_MARGIN, rel=0.01)
    assert fit_temperature(*nothing, margin=0.0) == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize("pixels", [5, 40, 2_000])
def test_pixels_outweigh_the_margin_as_they_grow_in_number(pixels: int) -> None:
    """The cost by hand for two classes, and its minimum by a library."""
    generator = torch.Generator().manual_seed(pixels)
    gap = 2 * torch.randn(pixels, generator=generator).abs()
    right = torch.rand(pixels, generator=generator) < torch.sigmoid(gap / 1.5)
    logits = torch.stack([gap, torch.zeros(pixels)], dim=1)

    def cost(log_t: float) -> float:
        likely = 1 / (1 + np.exp(-gap.numpy() * np.where(right, 1, -1) / np.exp(log_t)))
        return float(-np.log(likely).sum() + (log_t - np.log(0.5)) ** 2 / 2 / PRIOR_WIDTH**2)

    found = fit_temperature(logits, (~right).long(), margin=0.5 * PRIOR_MARGIN)
    assert found == pytest.approx(np.exp(minimize_scalar(cost, (-1, 0)).x), rel=0.01)
    assert 0.5 < found < 1.6
    if pixels == 2_000:
        assert found == pytest.approx(1.5, rel=0.1)


def test_folds_share_out_every_class() -> None:
    position = np.repeat([0, 1, 2, 3], [10, 7, 2, 1])
    fold = fold_of(position, 5, seed=3)
    assert np.bincount(fold[position == 0]).tolist() == [2] * 5
    assert np.bincount(fold[position == 1]).tolist() == [2, 2, 1, 1, 1]
    assert sorted(fold[position == 2]) == [0, 1]
    assert fold[position == 3].tolist() == [-1]
    assert np.array_equal(fold, fold_of(position, 5, seed=3))
    assert not np.array_equal(fold, fold_of(position, 5, seed=4))


def test_folds_of_blocks_hold_out_all_of_a_class_in_a_block() -> None:
    position, block = np.repeat([0, 1, 2], [12, 6, 4]), np.repeat([3, 8, 9, 3, 8, 5], [4, 4, 4, 3, 3, 4])
    pixels, blocks = twin_folds(position, 2, 3, block)
    np.testing.assert_array_equal(pixels, fold_of(position, 2, 3))
    whole = [blocks[(position == k) & (block == b)] for k, b in ((0, 3), (0, 8), (0, 9), (1, 3), (1, 8))]
    assert all(len(set(fold.tolist())) == 1 for fold in whole)
    assert sorted(fold[0] for fold in whole[:3]) in ([0, 0, 1], [0, 1, 1])
    assert sorted(fold[0] for fold in whole[3:]) == [0, 1]
    assert set(blocks[position == 2]) == {-1}  # in one block only: nothing would be left to learn from
    assert len(twin_folds(position, 2, 3)) == 1


def test_a_lone_twin_has_pixels_to_learn_from() -> None:
    (fold,) = twin_folds(np.repeat([0, 1], 10), 1, 3)
    assert np.bincount(fold).tolist() == [10, 10]


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
