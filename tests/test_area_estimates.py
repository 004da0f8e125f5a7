"""Accuracy-adjusted areas: the published example, a case by hand, and a simulation of the coverage."""

import numpy as np
import pytest

from mtmsd.areas import estimate_areas

# Olofsson et al. 2014, tables 8 and 9: deforestation, forest gain, stable forest, stable non-forest.
# There the rows are the map's classes; ours are the truth.
PUBLISHED = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
PUBLISHED_HA = np.array([200_000, 150_000, 3_200_000, 6_450_000]) * 0.09


def test_the_published_example() -> None:
    found = estimate_areas(PUBLISHED.T, PUBLISHED_HA)
    np.testing.assert_allclose(found.area_K, [21_158, 11_686, 285_770, 581_386], atol=0.6)
    np.testing.assert_allclose(found.area_ci_K, [6_158, 3_756, 15_510, 16_282], atol=1.5)
    np.testing.assert_allclose(found.users_K, [0.88, 0.73, 0.93, 0.96], atol=0.005)
    np.testing.assert_allclose(found.users_ci_K, [0.07, 0.10, 0.04, 0.02], atol=0.005)
    np.testing.assert_allclose(found.producers_K, [0.75, 0.85, 0.93, 0.96], atol=0.005)
    assert found.overall == pytest.approx(0.95, abs=0.005)
    assert found.overall_ci == pytest.approx(0.02, abs=0.005)


def test_two_classes_by_hand() -> None:
    """30 ha mapped A, of which 8 of 10 test pixels are A; 70 ha mapped B, of which 19 of 20 are B."""
    found = estimate_areas(np.array([[8, 1], [2, 19]]), np.array([30.0, 70.0]))
    # A: 30 * 8/10 + 70 * 1/20 = 27.5; B: the other 72.5.
    np.testing.assert_allclose(found.area_K, [27.5, 72.5])
    # Variance: 30^2 * 0.8 * 0.2 / 9 + 70^2 * 0.05 * 0.95 / 19 = 16 + 12.25; its root is 5.31507.
    np.testing.assert_allclose(found.area_ci_K, [1.96 * 5.3150729] * 2, rtol=1e-6)
    assert found.overall == pytest.approx(0.3 * 0.8 + 0.7 * 0.95)
    assert found.overall_ci == pytest.approx(1.96 * 0.053150729)
    np.testing.assert_allclose(found.producers_K, [24 / 27.5, 66.5 / 72.5])
    # Equation 7 for A: (30^2 * (1 - P)^2 * 0.16 / 9 + P^2 * 70^2 * 0.0475 / 19) / 27.5^2.
    share = 24 / 27.5
    variance = (900 * (1 - share) ** 2 * 0.16 / 9 + share**2 * 4900 * 0.0475 / 19) / 27.5**2
    assert found.producers_ci_K[0] == pytest.approx(1.96 * variance**0.5)


def test_a_perfect_map_keeps_its_areas() -> None:
    found = estimate_areas(np.diag([5, 9]), np.array([3.0, 4.0]))
    np.testing.assert_array_equal(found.area_K, [3.0, 4.0])
    np.testing.assert_array_equal(found.area_ci_K, [0.0, 0.0])
    assert (found.overall, found.overall_ci) == (1.0, 0.0)


def test_a_map_class_with_one_test_pixel_is_left_out() -> None:
    found = estimate_areas(np.array([[4, 0, 0], [1, 6, 1], [0, 0, 0]]), np.array([10.0, 20.0, 5.0]))
    assert found.covered_K.tolist() == [True, True, False]
    np.testing.assert_allclose(found.area_K, [8.0, 22.0, 0.0])
    assert np.isnan(found.users_K[2])
    assert np.isnan(found.producers_K[2])
    assert np.isfinite(found.producers_ci_K[:2]).all()


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(ValueError, match="two test pixels"):
        estimate_areas(np.eye(2, dtype=int), np.ones(2))
    with pytest.raises(ValueError, match=r"must be \(3, 3\) for 3 mapped areas, found \(2, 2\)"):
        estimate_areas(np.eye(2, dtype=int), np.ones(3))


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """A known map and truth, 1000 stratified samples: 95 % of the intervals hold the true area."""
    rng = np.random.default_rng(0)
    joint_MT = np.array([[700.0, 100.0], [200.0, 3000.0]])  # area by map class and truth
    covered, producers, spread = [], [], []
    for _ in range(1000):
        n_MT = np.array([rng.multinomial(300, row / row.sum()) for row in joint_MT])
        found = estimate_areas(n_MT.T, joint_MT.sum(axis=1))
        covered.append(abs(found.area_K - joint_MT.sum(axis=0)) <= found.area_ci_K)
        producers.append(found.producers_K)
        spread.append(found.producers_ci_K / 1.96)
    assert 0.92 < np.mean(covered) < 0.98
    np.testing.assert_allclose(np.std(producers, axis=0), np.mean(spread, axis=0), rtol=0.1)
