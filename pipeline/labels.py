"""The labelled pixels of a scene, and what each one is used for."""

import numpy as np
from numpy.typing import NDArray

from mtmsd.split import UNUSED, make_split
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.scene import Scene


def labelled_split(
    config: Config, scene: Scene
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """y, x, label and split of the labelled pixels that train or test, ordered by their windows.

    Raises:
        UserError: The labels cannot serve the split.
    """
    y, x, label = scene.labelled_pixels()
    if len(y) == 0:
        raise UserError(
            f"scene {scene.url}: expected labelled pixels (labels > 0), found none; "
            "add labels, or use --model RUN_DIR to map with an earlier run's classifier"
        )
    seed = config.seed if config.split.seed is None else config.split.seed
    try:
        split = make_split(y, x, label, config.split, seed)
    except ValueError as error:
        raise UserError(f"scene {scene.url}: {error}") from None
    used = np.flatnonzero(split != UNUSED)
    stride = config.patches.stride
    order = used[np.lexsort((x[used], y[used], x[used] // stride, y[used] // stride))]
    return y[order], x[order], label[order], split[order]
