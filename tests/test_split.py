"""Splits: disjoint, complete, repeatable, and as far apart as the guard says."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mtmsd.split import (
    TEST,
    TRAIN,
    UNUSED,
    HiddenBlocks,
    SplitConfig,
    _draw,
    block_of,
    make_split,
    near_any,
    overlap,
)

IntArray = NDArray[np.int64]
CODES = (3, 7, 20, 21)
RANDOM = SplitConfig(protocol="random", train_fraction=0.2, min_train=2, min_class=6, guard_px=0)
BLOCKS = replace(RANDOM, protocol="blocks", block=4)


def scattered(seed: int, n: int, side: int = 30) -> tuple[IntArray, IntArray, IntArray]:
    """Draw n distinct pixels of a scene with four classes, the last one rare."""
    rng = np.random.default_rng(seed)
    place = rng.permutation(side * side)[:n]
    label = rng.choice(CODES, n, p=[0.4, 0.3, 0.26, 0.04])
    return place // side, place % side, label


def fields(seed: int) -> tuple[IntArray, IntArray, IntArray]:
    """Label every pixel of a scene of square fields, three classes."""
    rng = np.random.default_rng(seed)
    label = rng.choice(CODES[:3], (8, 8)).repeat(5, axis=0).repeat(5, axis=1)
    y, x = np.indices(label.shape)
    return y.ravel(), x.ravel(), label.ravel()


def distances(y: IntArray, x: IntArray, split: IntArray) -> IntArray:
    """Return the largest of row and column distance from each test to its nearest training pixel."""
    test, train = split == TEST, split == TRAIN
    dy = np.abs(y[test][:, None] - y[train])
    dx = np.abs(x[test][:, None] - x[train])
    return np.maximum(dy, dx).min(axis=1)


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(60, 300),
    fraction=st.floats(0.01, 0.9),
    guard=st.integers(0, 2),
    protocol=st.sampled_from(["random", "blocks"]),
)
@settings(max_examples=80, deadline=None)
def test_every_split_is_sound_or_refused(
    seed: int, n: int, fraction: float, guard: int, protocol: str
) -> None:
    y, x, label = scattered(seed, n)
    config = replace(BLOCKS, protocol=protocol, train_fraction=fraction, guard_px=guard)  # type: ignore[arg-type]
    codes, counts = np.unique(label, return_counts=True)
    kept = codes[counts >= config.min_class]
    try:
        split = make_split(y, x, label, config, seed)
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert f"split.protocol={protocol} leaves no" in refusal
        assert guard or protocol == "blocks"
        return
    assert split.shape == label.shape
    assert np.isin(split, [TRAIN, TEST, UNUSED]).all()
    for part in (TRAIN, TEST):
        assert set(label[split == part]) == set(kept)
    assert (split[~np.isin(label, kept)] == UNUSED).all()
    for code, count in zip(codes, counts, strict=True):
        trained = int(((split == TRAIN) & (label == code)).sum())
        if code in kept and protocol == "random":
            assert trained == min(max(2, round(fraction * count)), count // 2)
        elif code in kept:
            assert 1 <= trained <= max(2, round(fraction * count))
    assert distances(y, x, split).min() > guard
    if protocol == "blocks":
        assert not blocks(y, x, split, TRAIN) & blocks(y, x, split, TEST)
    elif not guard:
        assert ((split == UNUSED) == ~np.isin(label, kept)).all()


def blocks(y: IntArray, x: IntArray, split: IntArray, part: int) -> set[tuple[int, int]]:
    mine = split == part
    return set(zip((y[mine] // BLOCKS.block).tolist(), (x[mine] // BLOCKS.block).tolist(), strict=True))


@pytest.mark.parametrize("config", [RANDOM, BLOCKS], ids=["random", "blocks"])
def test_the_same_seed_gives_the_same_split(config: SplitConfig) -> None:
    pixels = fields(1)
    first = make_split(*pixels, config, 5)
    np.testing.assert_array_equal(make_split(*pixels, config, 5), first)
    assert (make_split(*pixels, config, 6) != first).any()


def test_blocks_of_narrow_integers_are_those_of_wide_ones() -> None:
    y, x = np.array([0, 5, 40]), np.array([33, 2, 70])
    wide = block_of(y, x, SplitConfig(block=32))
    assert len(set(wide.tolist())) == 3
    np.testing.assert_array_equal(
        block_of(y.astype(np.int32), x.astype(np.int32), SplitConfig(block=32)), wide
    )


def test_fractions_by_hand() -> None:
    y, x = (axis.ravel() for axis in np.indices((10, 20)))
    label = np.repeat([5, 9, 4], [100, 93, 7])
    config = SplitConfig(protocol="random", train_fraction=0.1, min_train=3, min_class=8, guard_px=0)
    split = make_split(y, x, label, config, 0)
    assert np.bincount(split[label == 5]).tolist() == [10, 90]
    assert np.bincount(split[label == 9]).tolist() == [9, 84]
    assert set(split[label == 4]) == {UNUSED}
    split = make_split(y, x, label, replace(config, min_class=7), 0)
    assert np.bincount(split[label == 4]).tolist() == [3, 4]  # min_train, at most half
    split = make_split(y, x, label, replace(config, min_class=7, train_per_class=60), 0)
    assert [int((split[label == c] == TRAIN).sum()) for c in (5, 9, 4)] == [50, 46, 3]
    capped = replace(config, train_fraction=0.5, max_train_per_class=20, max_test=30)
    split = make_split(y, x, label, capped, 0)
    assert [int((split[label == c] == TRAIN).sum()) for c in (5, 9)] == [20, 20]
    assert int((split == TEST).sum()) == 30


def test_the_guard_empties_the_surroundings() -> None:
    y, x, label = fields(2)
    config = replace(BLOCKS, guard_px=3, train_fraction=0.02)
    split, plain = make_split(y, x, label, config, 0), make_split(y, x, label, replace(config, guard_px=0), 0)
    np.testing.assert_array_equal(split == TRAIN, plain == TRAIN)
    far = np.zeros(len(y), bool)
    far[plain == TEST] = distances(y, x, plain) > 3
    np.testing.assert_array_equal(split == TEST, far)
    assert far.sum() < (plain == TEST).sum()


def test_both_sides_of_a_block_split_hold_about_half_the_scene() -> None:
    y, x, label = fields(3)
    split = make_split(y, x, label, replace(BLOCKS, train_fraction=0.9), 0)
    for code in CODES[:3]:
        share = (split[label == code] == TEST).mean()
        assert 0.35 < share < 0.65


@pytest.mark.parametrize("seed", range(5))
def test_a_block_split_finds_both_sides_for_every_class(seed: int) -> None:
    y, x, label = fields(seed)
    split = make_split(y, x, label, BLOCKS, seed)
    for part in (TRAIN, TEST):
        assert set(label[split == part]) == set(CODES[:3])


def test_a_class_in_a_single_block_is_refused() -> None:
    y, x, label = fields(4)
    label[(y < 4) & (x < 4)] = 99
    message = r"blocks leaves no (training|test) pixel for class 99 \(16 pixels in 1 block\): .*=keep"
    with pytest.raises(ValueError, match=message):
        make_split(y, x, label, BLOCKS, 0)


@pytest.mark.parametrize("seed", range(5))
def test_classes_that_nothing_can_test_are_kept_for_training(seed: int) -> None:
    """Eight classes in one block each: by luck alone all of them train in one draw of 256."""
    y, x, label = fields(4)
    for column in range(8):
        label[(y < 4) & (x // 4 == column)] = 90 + column
    split = make_split(y, x, label, replace(BLOCKS, untested="keep"), seed)
    assert set(label[split == TRAIN]) == {*CODES[:3], *range(90, 98)}
    assert set(label[split == TEST]) == set(CODES[:3])
    assert not blocks(y, x, split, TRAIN) & blocks(y, x, split, TEST)


def test_keeping_changes_no_split_that_tests_every_class() -> None:
    y, x, label = fields(4)
    for seed in range(10):
        kept = make_split(y, x, label, replace(BLOCKS, untested="keep"), seed)
        np.testing.assert_array_equal(kept, make_split(y, x, label, BLOCKS, seed))


@pytest.mark.parametrize("seed", [0, 4, 7, 8])
def test_of_draws_with_untested_classes_the_one_that_tests_most_is_taken(seed: int) -> None:
    y, x, label = fields(4)
    config = replace(BLOCKS, guard_px=12, train_per_class=6, untested="keep")
    kept = np.unique(label)
    streams = [[seed, 2], *([seed, 2, attempt] for attempt in range(1, 10))]
    draws = [_draw(y, x, label, kept, config, np.random.default_rng(stream)) for stream in streams]
    tested = [len(set(label[draw == TEST])) for draw in draws]
    assert tested[0] < max(tested), "the first would do as well"
    split = make_split(y, x, label, config, seed)
    np.testing.assert_array_equal(split, draws[tested.index(max(tested))])


def test_a_guard_that_swallows_a_class_is_refused() -> None:
    y, x, label = fields(4)
    config = replace(RANDOM, guard_px=6)
    with pytest.raises(ValueError, match=r"leaves no test pixel for class .*split\.guard_px"):
        make_split(y, x, label, config, 0)
    with pytest.raises(ValueError, match=r"leaves no test pixel for class 3 \(.*split\.min_class$"):
        make_split(y, x, label, replace(config, untested="keep"), 0)


@given(seed=st.integers(0, 1000), corner=st.tuples(st.integers(0, 35), st.integers(0, 35)))
@settings(max_examples=40, deadline=None)
def test_hidden_blocks_hold_all_test_and_no_training_pixels(seed: int, corner: tuple[int, int]) -> None:
    """Of any part of the scene; against one pixel after the other."""
    y, x, label = fields(seed)
    config = replace(BLOCKS, block=7, inductive=True)
    split = make_split(y, x, label, config, seed)
    hidden = HiddenBlocks.of_test(y, x, split, config)
    whole = hidden.mask(0, 40, 0, 40)
    assert whole[y, x][split == TEST].all()
    assert not whole[y, x][split == TRAIN].any()
    expected = np.array([[(r // 7, c // 7) in hidden.blocks for c in range(40)] for r in range(40)])
    (top, left), (bottom, right) = corner, (min(40, corner[0] + 9), min(40, corner[1] + 11))
    part = hidden.mask(top, bottom, left, right)
    assert np.array_equal(part, expected[top:bottom, left:right])


def test_inductive_needs_blocks() -> None:
    with pytest.raises(ValueError, match=r"split\.inductive .* needs split\.protocol=blocks, found random"):
        replace(RANDOM, inductive=True)


def test_fewer_than_two_classes_are_refused() -> None:
    y, x, label = scattered(0, 100)
    message = r"at least two classes with split\.min_class = 100 .* found \{3: \d+, 7: \d+"
    with pytest.raises(ValueError, match=message):
        make_split(y, x, label, replace(RANDOM, min_class=100), 0)
    with pytest.raises(ValueError, match=r"at least two classes"):
        make_split(y, x, np.full_like(label, 3), RANDOM, 0)


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(0, 1200),
    others=st.integers(0, 40),
    reach=st.tuples(st.integers(0, 6), st.integers(0, 6)),
)
@settings(max_examples=40, deadline=None)
def test_near_any_is_brute_force(seed: int, n: int, others: int, reach: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    y, x = rng.integers(0, 60, (2, n))
    other_y, other_x = rng.integers(-8, 68, (2, others))
    before, after = reach
    dy, dx = other_y - y[:, None], other_x - x[:, None]
    inside = (-before <= dy) & (dy <= after) & (-before <= dx) & (dx <= after)
    found = near_any(y, x, other_y, other_x, before, after)
    np.testing.assert_array_equal(found, inside.any(axis=1))


@given(seed=st.integers(0, 10_000), before=st.integers(0, 8), after=st.integers(0, 8))
@settings(max_examples=30, deadline=None)
def test_overlap_is_the_share_of_patches_with_a_training_pixel(seed: int, before: int, after: int) -> None:
    y, x, _ = scattered(seed, 80)
    split = np.random.default_rng(seed).integers(0, 3, 80)
    test = [
        any(
            split[j] == TRAIN and -before <= y[j] - y[i] <= after and -before <= x[j] - x[i] <= after
            for j in range(80)
        )
        for i in range(80)
        if split[i] == TEST
    ]
    found = overlap(y, x, split, y - before, x - before, before + after + 1)
    assert found == pytest.approx(np.mean(test))


def test_overlap_by_hand() -> None:
    y, x = np.array([0, 0, 5, 9]), np.array([0, 2, 5, 9])
    split = np.array([TRAIN, TEST, TEST, UNUSED])
    assert overlap(y, x, split, y - 2, x - 2, 3) == 0.5  # (0, 2) sees two columns back
    assert overlap(y, x, split, y - 1, x - 1, 11) == 0.0
    assert overlap(y, x, split, y - 5, x - 5, 6) == 1.0
    assert overlap(y, x, np.full(4, UNUSED), y - 5, x - 5, 11) == 0.0


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"train_fraction": 0.0}, r"split\.train_fraction must lie in \(0, 1\), found 0\.0"),
        ({"train_fraction": 1.0}, r"split\.train_fraction"),
        ({"train_per_class": 0}, r"split\.train_per_class must be at least 1, found 0"),
        ({"min_train": 0}, r"split\.min_train must be at least 1"),
        ({"min_class": 1}, r"split\.min_class must be at least 2, found 1"),
        ({"block": 0}, r"split\.block must be at least 1"),
        ({"guard_px": -1}, r"split\.guard_px must be at least 0, found -1"),
        ({"max_train_per_class": 0}, r"split\.max_train_per_class must be at least 1"),
        ({"max_test": 0}, r"split\.max_test must be at least 1"),
    ],
)
def test_impossible_protocols_are_refused(settings_: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitConfig(**settings_)  # type: ignore[arg-type]
