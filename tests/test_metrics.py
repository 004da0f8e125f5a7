"""Accuracy figures against scikit-learn, by hand, and merged from parts."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    recall_score,
)

from mtmsd.metrics import Confusion, boundary_f_score

IntArray = NDArray[np.int64]


@st.composite
def predictions(draw: st.DrawFn) -> tuple[int, IntArray, IntArray]:
    classes = draw(st.integers(2, 5))
    pairs = st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1))
    drawn = np.array(draw(st.lists(pairs, min_size=1, max_size=40)))
    return classes, drawn[:, 0], drawn[:, 1]


def counted(classes: int, truth: IntArray, predicted: IntArray) -> Confusion:
    confusion = Confusion(classes)
    confusion.update(truth, predicted)
    return confusion


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@given(case=predictions())
@settings(max_examples=60, deadline=None)
def test_figures_are_scikit_learns(case: tuple[int, IntArray, IntArray]) -> None:
    classes, truth, predicted = case
    assume(len(np.unique(np.concatenate([truth, predicted]))) > 1)  # kappa is 0 / 0 otherwise
    found = counted(*case).finish()
    labels = np.arange(classes)
    assert found["oa"] == pytest.approx(accuracy_score(truth, predicted))
    assert found["aa"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert found["kappa"] == pytest.approx(cohen_kappa_score(truth, predicted))
    recall = recall_score(truth, predicted, labels=labels, average=None, zero_division=0)
    known = np.isin(labels, truth)
    assert found["per_class"] == [pytest.approx(r) if k else None for r, k in zip(recall, known, strict=True)]
    assert found["confusion"] == confusion_matrix(truth, predicted, labels=labels).tolist()


@given(case=predictions(), cuts=st.lists(st.integers(0, 40), max_size=4))
@settings(max_examples=40, deadline=None)
def test_merging_any_cut_is_one_pass(case: tuple[int, IntArray, IntArray], cuts: list[int]) -> None:
    classes, truth, predicted = case
    merged = Confusion(classes)
    for part in np.split(np.arange(len(truth)), sorted(cuts)):
        merged.merge(counted(classes, truth[part], predicted[part]))
    assert merged.finish() == counted(classes, truth, predicted).finish()


def test_figures_by_hand() -> None:
    found = counted(3, np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 2])).finish()
    assert found["confusion"] == [[3, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert found["oa"] == pytest.approx(4 / 6)
    assert found["aa"] == pytest.approx((3 / 4 + 1 / 2) / 2)  # the third class has no pixel
    assert found["per_class"] == [0.75, 0.5, None]
    chance = (4 * 3 + 2 * 2) / 36
    assert found["kappa"] == pytest.approx((4 / 6 - chance) / (1 - chance))


def test_a_single_class_that_is_always_right() -> None:
    found = counted(2, np.zeros(5, int), np.zeros(5, int)).finish()
    assert (found["oa"], found["aa"], found["kappa"]) == (1, 1, 1)


def test_counts_of_a_city_do_not_overflow() -> None:
    confusion = counted(2, np.array([0, 1]), np.array([0, 1]))
    confusion.counts *= 2**31
    found = confusion.finish()
    assert (found["oa"], found["kappa"]) == (1, 1)


def test_no_pixel_no_accuracy() -> None:
    with pytest.raises(ValueError, match="accuracy needs at least one test pixel, found none"):
        Confusion(3).finish()


def test_boundary_f_score_by_hand() -> None:
    """The truth's border lies between columns 2 and 3; the map's between 4 and 5, and round a wrong pixel."""
    truth, found = np.ones((2, 7, 9), np.uint8)
    truth[:, 3:], found[:, 5:] = 2, 2
    found[0, 0] = 3
    # Border pixels: of the truth 14, columns 2 and 3; of the map 14, columns 4 and 5, and 3 in the corner.
    # One pixel apart: columns 3 and 4, and in row 0 columns 1 and 2.
    exact = boundary_f_score(truth, found, tolerance=0)
    assert exact == {"f_score": 0, "precision": 0, "recall": 0}
    near = boundary_f_score(truth, found, tolerance=1)
    assert (near["precision"], near["recall"]) == pytest.approx((8 / 17, 8 / 14))
    assert near["f_score"] == pytest.approx(2 * 8 / (17 + 14))
    assert boundary_f_score(truth, truth, tolerance=0)["f_score"] == 1


def test_boundaries_are_compared_where_the_truth_is_known() -> None:
    truth, found = np.ones((2, 4, 8), np.uint8)
    truth[:, 2:], found[:, 2:], found[:, 6:] = 2, 2, 1
    assert boundary_f_score(truth, found, tolerance=1)["precision"] == 0.5
    truth[:, 5:] = 0
    assert boundary_f_score(truth, found, tolerance=1)["precision"] == 1
    assert boundary_f_score(truth * 0, found, tolerance=1)["f_score"] == 0
    with pytest.raises(ValueError, match="one shape"):
        boundary_f_score(truth, found[1:], tolerance=1)
