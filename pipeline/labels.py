"""The labelled pixels of a scene, and what each one is used for."""

import sys

import numpy as np
from numpy.typing import NDArray

from mtmsd.split import TEST, TRAIN, UNUSED, HiddenBlocks, make_split, overlap
from mtmsd.windows import PatchConfig
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.readers import Reduced
from pipeline.scene import Scene


def labelled_split(
    config: Config, scene: Scene, reduced: Reduced | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """y, x, label and split of the labelled pixels that train or test, ordered by their windows.

    Args:
        config: The run's configuration.
        scene: The scene with the labels.
        reduced: Its reduced cube, once there is one: labelled pixels without data are then left out, and
            what was left out is told on stderr.

    Raises:
        UserError: The labels cannot serve the split.
    """
    y, x, label = _labelled(scene)
    split = _split(config, scene, y, x, label) if config.split.inductive else None
    if reduced is not None:
        there = reduced.has_data(y, x)
        if not there.any():
            raise UserError(
                f"scene {scene.url}: expected data at the labelled pixels, found none at all {len(y)}; "
                "check that labels and image lie in the same place"
            )
        if split is not None:
            _check_left(scene, label, split, there)
            split = split[there]
        y, x, label = y[there], x[there], label[there]
        for note in _left_out(label, config.split.min_class, int((~there).sum())):
            print(f"left out: {note}", file=sys.stderr)
    if split is None:
        split = _split(config, scene, y, x, label)
    used = np.flatnonzero(split != UNUSED)
    unscored = np.setdiff1d(label[used], label[split == TEST])
    if reduced is not None and len(unscored):
        print(f"not scored: no test pixel is left for class {unscored.tolist()}", file=sys.stderr)
    order = used[by_block(y[used], x[used], config.patches)]
    return y[order], x[order], label[order], split[order]


def overlap_of(config: Config, y: NDArray[np.int64], x: NDArray[np.int64], split: NDArray[np.int64]) -> float:
    """Share of test pixels whose patch holds a training pixel.

    The patch is what answers for the pixel: the window of its block, in which it need not be in the middle,
    or without diffusion features the classifier's own patch round it.
    """
    patches, side = config.patches, config.patch
    if config.reads_features:
        first_y, first_x = (patches.corner(patches.block(along)) for along in (y, x))
        return overlap(y, x, split, first_y, first_x, patches.side)
    return overlap(y, x, split, y - side // 2, x - side // 2, side)


def hidden_blocks(config: Config, scene: Scene) -> HiddenBlocks | None:
    """What reduction and pretraining must not see: the blocks with test pixels, if the split is inductive.

    They are drawn before anyone can know which labelled pixels hold data, as ``labelled_split`` then does.

    Raises:
        UserError: The labels cannot serve the split.
    """
    if not config.split.inductive:
        return None
    y, x, label = _labelled(scene)
    return HiddenBlocks.of_test(y, x, _split(config, scene, y, x, label), config.split)


def _labelled(scene: Scene) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    y, x, label = scene.labelled_pixels()
    if len(y) == 0:
        raise UserError(
            f"scene {scene.url}: expected labelled pixels (labels > 0), found none; "
            "add labels, or use --model RUN_DIR to map with an earlier run's classifier"
        )
    return y, x, label


def _split(
    config: Config, scene: Scene, y: NDArray[np.int64], x: NDArray[np.int64], label: NDArray[np.int64]
) -> NDArray[np.int64]:
    seed = config.seed if config.split.seed is None else config.split.seed
    try:
        return make_split(y, x, label, config.split, seed)
    except ValueError as error:
        raise UserError(f"scene {scene.url}: {error}") from None


def _check_left(
    scene: Scene, label: NDArray[np.int64], split: NDArray[np.int64], there: NDArray[np.bool_]
) -> None:
    """Refuse a split that was drawn from all labels and loses a class's last pixels for want of data."""
    for name, part in (("training", TRAIN), ("test", TEST)):
        lost = np.setdiff1d(label[split == part], label[(split == part) & there])
        if len(lost):
            raise UserError(
                f"scene {scene.url}: expected data at the {name} pixels of class {lost.tolist()}, found "
                "none; with split.inductive the split is drawn before data are looked for: change "
                "split.seed, or remove labels where there is no data"
            )


def by_block(y: NDArray[np.int64], x: NDArray[np.int64], patches: PatchConfig) -> NDArray[np.int64]:
    """The order of pixels in which they are kept: by block, then by row."""
    return np.lexsort((x, y, patches.block(x), patches.block(y)))


def _left_out(label: NDArray[np.int64], min_class: int, without_data: int) -> list[str]:
    codes, counts = np.unique(label, return_counts=True)
    rare = {int(code): int(n) for code, n in zip(codes, counts, strict=True) if n < min_class}
    notes = [f"{without_data} labelled pixels without data"] if without_data else []
    if rare:
        notes.append(f"classes with fewer than split.min_class = {min_class} labelled pixels: {rare}")
    return notes
