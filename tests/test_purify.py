"""Purification: the closed form against loops over pairs, constant features, mergeable class means."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mtmsd.purify import ClassMeans, PurifyConfig, Selection, channel_scores, select, select_channels
from tests import reference

FloatArray = NDArray[np.float64]


def means_of(seed: int, classes: int, timesteps: int, channels: int) -> FloatArray:
    return np.random.default_rng(seed).normal(size=(classes, timesteps, channels))


@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(2, 6),
    timesteps=st.integers(2, 5),
    similarity=st.floats(0, 1),
    timestep=st.floats(0, 2),
)
@settings(max_examples=30, deadline=None)
def test_closed_form_is_the_loop_over_pairs(
    seed: int, classes: int, timesteps: int, similarity: float, timestep: float
) -> None:
    means = means_of(seed, classes, timesteps, 7)
    config = PurifyConfig(similarity_weight=similarity, timestep_weight=timestep)
    expected = reference.purification_scores(means, similarity, timestep)
    np.testing.assert_allclose(channel_scores(means, config), expected, atol=1e-12)


def test_scores_by_hand() -> None:
    """One channel, three classes, two timesteps, lambda 1/2.

    Over classes: timestep 0 is 0, 1/2, 1 when scaled (S = V = 1/6, together 0); timestep 1 is 1, 0, 1
    (S = 1/3, V = 2/9, together -1/18). Over timesteps every class is 0 and 1 (S = 0, V = 1/4: 1/8).
    """
    means = np.array([[0.0, 8.0], [2.0, 1.0], [4.0, 8.0]])[:, :, None]
    for timestep, expected in ((0.0, -1 / 18), (2.0, -1 / 18 + 2 * 3 / 8)):
        config = PurifyConfig(similarity_weight=0.5, timestep_weight=timestep)
        assert channel_scores(means, config)[0] == pytest.approx(expected)


def test_a_constant_counts_as_wholly_similar() -> None:
    """A class that does not vary with the timestep: S = 1 and V = 0, together -lambda."""
    means = np.array([[0.0, 8.0], [2.0, 1.0], [8.0, 8.0]])[:, :, None]
    over_classes = -0.5 * (2 * 0.25 / 6) + 0.5 * np.var([0, 0.25, 1]) - 1 / 18
    config = PurifyConfig(similarity_weight=0.5, timestep_weight=1.0)
    assert channel_scores(means, config)[0] == pytest.approx(over_classes + 2 / 8 - 1 / 2)


@pytest.mark.parametrize("similarity", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize(("classes", "timesteps"), [(2, 1), (2, 2), (5, 3)])
def test_constant_channels_come_last(similarity: float, classes: int, timesteps: int) -> None:
    means = means_of(1, classes, timesteps, 12)
    constant = [0, 3, 4, 11]
    means[:, :, constant] = [0.0, 0.1, -7.3, 1e12]
    config = PurifyConfig(keep=8 / 12, similarity_weight=similarity)
    scores = channel_scores(means, config)
    assert np.isfinite(scores).all()
    assert scores[constant].max() < np.delete(scores, constant).min()
    if classes > 2:
        assert set(select_channels(means, config)) == set(range(12)) - set(constant)


def test_a_channel_that_is_constant_in_some_classes_only_gives_no_nan() -> None:
    means = means_of(2, 4, 3, 5)
    means[1, :, 2], means[:, 0, 3] = 0.5, -2.0
    scores = channel_scores(means, PurifyConfig())
    assert np.isfinite(scores).all()


def test_ties_go_to_the_lower_channel() -> None:
    means = np.repeat(means_of(3, 3, 2, 1), 6, axis=2)
    assert select_channels(means, PurifyConfig(keep=0.5)) == (0, 1, 2)
    constant = np.ones((3, 2, 4))
    assert select_channels(constant, PurifyConfig(keep=1.0)) == (0, 1, 2, 3)


@pytest.mark.parametrize(("keep", "count"), [(0.6, 768), (1.0, 1280), (0.0001, 1), (0.5, 640)])
def test_how_many_channels_are_kept(keep: float, count: int) -> None:
    means = means_of(4, 3, 2, 1280)
    kept = select_channels(means, PurifyConfig(keep=keep))
    assert len(kept) == len(set(kept)) == count
    scores = channel_scores(means, PurifyConfig(keep=keep))
    assert list(kept) == sorted(kept)
    dropped = np.setdiff1d(np.arange(1280), kept)
    assert not len(dropped) or scores[list(kept)].min() >= scores[dropped].max()


def test_of_two_classes_all_channels_are_kept() -> None:
    """Their scaled means are 0 and 1 in every channel, however far apart: the criterion cannot choose."""
    means = means_of(7, 2, 1, 10)
    means[1, :, 3] = means[0, :, 3] + 100
    assert np.ptp(channel_scores(means, PurifyConfig())) == 0
    assert select_channels(means, PurifyConfig(keep=0.5)) == tuple(range(10))


@given(seed=st.integers(0, 10_000), cuts=st.lists(st.integers(0, 30), max_size=4))
@settings(max_examples=30, deadline=None)
def test_merging_is_one_pass(seed: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(100, 1, size=(30, 2, 3)).astype(np.float32)
    label = np.concatenate([np.arange(4), rng.integers(0, 4, 26)])
    merged = ClassMeans(4, 2, 3)
    for part in np.split(np.arange(30), sorted(cuts)):
        one = ClassMeans(4, 2, 3)
        one.update(features[part], label[part])
        merged.merge(one)
    assert merged.count_K.tolist() == np.bincount(label).tolist()
    expected = [features[label == k].astype(np.float64).mean(axis=0) for k in range(4)]
    np.testing.assert_allclose(merged.finish(), expected, rtol=1e-13)


@given(seed=st.integers(0, 1_000), value=st.floats(-1e6, 1e6, width=32))
@settings(max_examples=30, deadline=None)
def test_a_constant_feature_stays_constant_through_sums(seed: int, value: float) -> None:
    """Rounding in the class means must not make a dead channel look informative."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(60, 2, 3)).astype(np.float32)
    features[:, :, 1] = value
    label = np.concatenate([np.arange(3), rng.integers(0, 3, 57)])
    means = ClassMeans(3, 2, 3)
    for part in np.array_split(np.arange(60), 7):
        means.update(features[part], label[part])
    assert select_channels(means.finish(), PurifyConfig(keep=0.6)) == (0, 2)


def test_a_class_without_pixels_is_refused() -> None:
    means = ClassMeans(3, 1, 2)
    means.update(np.ones((2, 1, 2), np.float32), np.array([0, 2]))
    with pytest.raises(ValueError, match=r"every class needs a training pixel, found none of .* \[1\]"):
        means.finish()


def test_centre_and_pooled_are_chosen_apart() -> None:
    centre, pooled = means_of(5, 4, 3, 20), means_of(6, 4, 3, 20)
    config = PurifyConfig(keep=0.25)
    selection = select([centre, pooled], config)
    assert selection == Selection(select_channels(centre, config), select_channels(pooled, config))
    assert selection.centre != selection.pooled
    assert Selection.from_json(json.loads(json.dumps(selection.as_json()))) == selection


def test_impossible_purifications_are_refused() -> None:
    for keep in (0.0, 1.1):
        with pytest.raises(ValueError, match=r"purify\.keep must lie in \(0, 1\]"):
            PurifyConfig(keep=keep)
    with pytest.raises(ValueError, match=r"purify\.similarity_weight must lie in \[0, 1\], found 2"):
        PurifyConfig(similarity_weight=2)
