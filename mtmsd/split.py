"""Which labelled pixels train and which test: stratified random, or spatially disjoint blocks.

Random splits of single pixels are the field's custom and flatter every method that sees context, for
test pixels then lie inside training patches; blocks with a guard distance keep them apart.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mtmsd.checks import check_ranges

IntArray = NDArray[np.int64]
TRAIN, TEST, UNUSED = 0, 1, 2
_ATTEMPTS = 10  # draws of blocks before a split is refused


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """The protocol of an accuracy figure."""

    protocol: Literal["random", "blocks"] = "random"
    """``random``: pixels drawn by class; ``blocks``: training and test pixels from different blocks."""
    train_fraction: float = 0.05
    """Share of each class that trains (at least ``min_train`` pixels); not used with ``train_per_class``."""
    train_per_class: int | None = None
    """Training pixels of each class instead of a share; at most half of a class (``blocks``: what its
    training blocks hold)."""
    min_train: int = 3
    """No class trains on fewer pixels."""
    min_class: int = 10
    """Classes with fewer labelled pixels are left out."""
    block: int = 32
    """Side of a block, pixels (protocol ``blocks``)."""
    guard_px: int = 0
    """Test pixels within this distance (rows or columns) of a training pixel are not used."""
    untested: Literal["refuse", "keep"] = "refuse"
    """Classes for which no test pixel is left, as one that lies in a single block: ``refuse`` the split, or
    ``keep`` them; they then train and are mapped, but nothing scores them."""
    inductive: bool = False
    """Hide the blocks that hold test pixels from all that learns without labels, reduction and pretraining;
    without it they see the whole scene (transductive, as in the paper)."""
    seed: int | None = None
    """Seed of the split; the run's own when absent."""
    max_train_per_class: int = 5_000
    """Upper bound on training pixels of a class."""
    max_test: int = 20_000
    """Upper bound on test pixels, a random sample over all classes."""

    def __post_init__(self) -> None:
        """Refuse shares outside (0, 1) and negative distances."""
        one = "[1, inf)"
        check_ranges(
            "split", self, train_fraction="(0, 1)", train_per_class=one, min_train=one, min_class="[2, inf)",
            block=one, guard_px="[0, inf)", max_train_per_class=one, max_test=one, seed="[0, inf)",
        )  # fmt: skip
        if self.inductive and self.protocol != "blocks":
            raise ValueError(
                f"split.inductive hides whole blocks and needs split.protocol=blocks, found {self.protocol}"
            )


def make_split(y: IntArray, x: IntArray, label: IntArray, config: SplitConfig, seed: int) -> IntArray:
    """TRAIN, TEST or UNUSED for each labelled pixel.

    Args:
        y: Row of each labelled pixel.
        x: Column.
        label: Class code, > 0.
        config: The protocol.
        seed: The same seed gives the same split.

    Raises:
        ValueError: Fewer than two classes remain, a class has no training pixel, or one has no test pixel
            and ``config.untested`` does not keep such classes.

    >>> y, x = (axis.ravel() for axis in np.mgrid[:20, :20])
    >>> label = np.where(x < 10, 1, 2)
    >>> split = make_split(y, x, label, SplitConfig(train_fraction=0.1), seed=0)
    >>> [int((split[label == code] == TRAIN).sum()) for code in (1, 2)]
    [20, 20]
    >>> int((split == TEST).sum())
    360
    """
    codes, counts = np.unique(label, return_counts=True)
    kept = codes[counts >= config.min_class]
    if len(kept) < 2:
        raise ValueError(
            f"at least two classes with split.min_class = {config.min_class} labelled pixels are "
            f"needed, found {dict(zip(codes.tolist(), counts.tolist(), strict=True))}; label more pixels, "
            "or lower split.min_class"
        )
    best, fewest = None, len(kept)
    for attempt in range(_ATTEMPTS if config.protocol == "blocks" else 1):
        rng = np.random.default_rng([seed, 2, attempt] if attempt else [seed, 2])
        split = _draw(y, x, label, kept, config, rng)
        untrained, untested = (np.setdiff1d(kept, label[split == part]) for part in (TRAIN, TEST))
        if not len(untrained) and not len(untested):
            return split
        if config.untested == "keep" and not len(untrained) and len(untested) < fewest:
            best, fewest = split, len(untested)
    if best is None:
        raise ValueError(_refusal(y, x, label, untrained, untested, config))
    return best


def _refusal(
    y: IntArray, x: IntArray, label: IntArray, untrained: IntArray, untested: IntArray, config: SplitConfig
) -> str:
    """What is missing in the last draw, where the class lies, and what helps."""
    name, missing = ("training", untrained) if len(untrained) else ("test", untested)
    block = block_of(y, x, config)
    lying = []
    for code in missing.tolist():
        mine = label == code
        count = len(np.unique(block[mine]))
        places = f" in {count} block{'s' * (count > 1)}" if config.protocol == "blocks" else ""
        lying.append(f"{code} ({int(mine.sum())} pixels{places})")
    keep = "; split.untested=keep trains and maps such a class without scoring it"
    return (
        f"split.protocol={config.protocol} leaves no {name} pixel for class {', '.join(lying)}: "
        "change split.block, split.guard_px, split.max_test or split.min_class"
        f"{keep if config.untested == 'refuse' else ''}"
    )


def _draw(
    y: IntArray,
    x: IntArray,
    label: IntArray,
    kept: IntArray,
    config: SplitConfig,
    rng: np.random.Generator,
) -> IntArray:
    """One draw of the split, in which a class may be missing on a side."""
    pool = eligible = np.isin(label, kept)
    if config.protocol == "blocks":
        pool = eligible & _training_side(y, x, label, kept, config, rng)
    split = np.full(len(label), UNUSED)
    for code in kept:
        mine, count = np.flatnonzero(pool & (label == code)), int((label == code).sum())
        if len(mine):
            split[rng.permutation(mine)[: _train_count(count, len(mine), config)]] = TRAIN
    rest = eligible & ~pool if config.protocol == "blocks" else eligible & (split != TRAIN)
    candidates, train = np.flatnonzero(rest), split == TRAIN
    if config.guard_px:
        reach = config.guard_px
        near = near_any(y[candidates], x[candidates], y[train], x[train], reach, reach)
        candidates = candidates[~near]
    split[np.sort(rng.permutation(candidates)[: config.max_test])] = TEST
    return split


def _train_count(count: int, available: int, config: SplitConfig) -> int:
    """Training pixels of a class with ``count`` labelled pixels; of a random split at most half of those."""
    wanted = config.train_per_class or max(config.min_train, round(config.train_fraction * count))
    limit = available // 2 if config.protocol == "random" else available
    return max(min(wanted, limit, config.max_train_per_class), 1)


def block_of(y: IntArray, x: IntArray, config: SplitConfig) -> IntArray:
    """A number for the block in which each pixel lies, ascending by row, then by column."""
    return (y.astype(np.int64) // config.block << 32) + x // config.block


@dataclass(frozen=True)
class HiddenBlocks:
    """Blocks of a scene whose pixels count as no data.

    >>> y, x = np.array([0, 0, 5]), np.array([0, 4, 0])
    >>> split, config = np.array([TRAIN, TEST, TRAIN]), SplitConfig(protocol="blocks", block=4)
    >>> HiddenBlocks.of_test(y, x, split, config).mask(2, 5, 2, 6).astype(int).tolist()
    [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]
    """

    side: int
    """Of a block, pixels."""
    blocks: frozenset[tuple[int, int]]
    """Row and column of each, counted in blocks."""

    @staticmethod
    def of_test(y: IntArray, x: IntArray, split: IntArray, config: SplitConfig) -> "HiddenBlocks":
        """The blocks that hold a test pixel."""
        places = np.stack([y, x])[:, split == TEST] // config.block
        return HiddenBlocks(config.block, frozenset(zip(*places.tolist(), strict=True)))

    def mask(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.bool_]:
        """Which pixels of rows y0..y1 and columns x0..x1 (excluded) are hidden."""
        rows, columns = np.arange(y0, y1) // self.side, np.arange(x0, x1) // self.side
        hidden = np.zeros((y1 - y0, x1 - x0), bool)
        for row in np.unique(rows):
            for column in np.unique(columns):
                if (int(row), int(column)) in self.blocks:
                    hidden[np.ix_(rows == row, columns == column)] = True
        return hidden


def _training_side(
    y: IntArray, x: IntArray, label: IntArray, kept: IntArray, config: SplitConfig,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:  # fmt: skip
    """Which pixels lie in training blocks: about half of the blocks, every class on both sides.

    Blocks are taken in random order, those that hold much of a rare class tend to come first; a block
    joins the side on which its classes are worse represented so far, relative to their total. A block that
    is a class's only one trains where untested classes are kept.
    """
    names, member = np.unique(block_of(y, x, config), return_inverse=True)
    position = np.searchsorted(kept, np.where(np.isin(label, kept), label, kept[0]))
    table = np.zeros((len(names), len(kept)))
    np.add.at(table, (member, position), np.isin(label, kept).astype(float))
    share = table / table.sum(axis=0)
    rarity = 1 / (table > 0).sum(axis=0)
    weight = (share * rarity).sum(axis=1) * rng.lognormal(sigma=1.0, size=len(names))
    order = np.argsort(-weight, kind="stable")
    whole_classes = table[:, np.count_nonzero(table, axis=0) == 1].sum(axis=1)
    have = np.zeros((2, len(kept)))
    on_train = np.zeros(len(names), bool)
    for b in order:
        gain = [(share[b] * rarity * (1 - have[side])).sum() for side in (0, 1)]
        side = int(gain[1] > gain[0]) if gain[0] != gain[1] else int(rng.integers(2))
        if whole_classes[b] and config.untested == "keep":
            side = 0
        have[side] += share[b]
        on_train[b] = side == 0
    return on_train[member]


def near_any(
    y: IntArray,
    x: IntArray,
    other_y: IntArray,
    other_x: IntArray,
    reach_before: int,
    reach_after: int,
) -> NDArray[np.bool_]:
    """Whether a point (y, x) has another point in rows and columns -reach_before .. +reach_after.

    Memory: the points are taken in bands of rows against the others that such a band can reach.

    >>> near_any(np.array([0, 9]), np.array([0, 9]), np.array([2]), np.array([2]), 2, 2).tolist()
    [True, False]
    """
    order = np.argsort(other_y, kind="stable")
    other_y, other_x = other_y[order], other_x[order]
    result = np.zeros(len(y), bool)
    by_row = np.argsort(y, kind="stable")
    for chunk in np.array_split(by_row, max(1, len(y) // 512)):
        if not len(chunk):
            continue
        first = np.searchsorted(other_y, y[chunk].min() - reach_before)
        last = np.searchsorted(other_y, y[chunk].max() + reach_after, side="right")
        dy = other_y[None, first:last] - y[chunk, None]
        dx = other_x[None, first:last] - x[chunk, None]
        near = (dy >= -reach_before) & (dy <= reach_after) & (dx >= -reach_before) & (dx <= reach_after)
        result[chunk] = near.any(axis=1)
    return result


def overlap(
    y: IntArray, x: IntArray, split: IntArray, first_y: IntArray, first_x: IntArray, side: int
) -> float:
    """Share of test pixels whose patch, side x side from (first_y, first_x) on, holds a training pixel.

    >>> x, zero = np.arange(4), np.zeros(4, int)
    >>> split = np.array([TRAIN, TEST, TEST, TEST])
    >>> round(overlap(zero, x, split, zero, first_x=np.array([0, 0, 0, 2]), side=4), 3)
    0.667
    """
    test, train = split == TEST, split == TRAIN
    if not test.any():
        return 0.0
    return float(near_any(first_y[test], first_x[test], y[train], x[train], 0, side - 1).mean())
