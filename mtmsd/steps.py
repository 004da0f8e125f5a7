"""Pretraining by arithmetic: what step k sees is a function of (seed, k), and so is its learning rate.

Nothing depends on the worker, the order of arrival or an earlier interruption: patch origins, turns and the
interval of timesteps of a step are drawn for the global batch, and a worker takes its share of them. Workers
that only read patches import this and no torch.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtmsd.checks import check_ranges


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The diffusion model's training."""

    steps: int = 2_000
    """Optimiser steps (the paper: 40,000)."""
    batch: int = 16
    """Patches per step, over all workers."""
    learning_rate: float = 2e-4
    """Peak learning rate of AdamW (the paper: 1e-4 throughout)."""
    warmup: int = 100
    """Steps, at the start, over which the learning rate rises linearly."""
    decay: float = 0.3
    """Share of the steps, at the end, over which the learning rate falls to zero."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    clip_norm: float = 1.0
    """Largest norm of the gradients; longer ones are scaled down to it."""
    ema: float = 0.999
    """Decay of the averaged weights; at an early step k, (1 + k) / (10 + k) where that is smaller."""
    turns: bool = True
    """Flip and turn patches by multiples of 90 degrees."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward and backward pass (autocast)."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        """Refuse empty training, and what no optimiser takes."""
        check_ranges(
            "pretrain", self, steps="[1, inf)", batch="[1, inf)", learning_rate="[0, inf)",
            warmup="[0, inf)", decay="[0, 1]", weight_decay="[0, inf)", clip_norm="(0, inf)", ema="[0, 1)",
            checkpoint_every="[1, inf)",
        )  # fmt: skip


class PatchDraw(NamedTuple):
    """Where the patches of a step lie, and how each is turned."""

    y: NDArray[np.int64]
    """First row of each window (may lie before the scene's edge)."""
    x: NDArray[np.int64]
    """First column."""
    turn: NDArray[np.int64]
    """0..7: quarter turns in the low two bits, a flip in the third."""


def draw_patches(
    seed: int, step: int, config: PretrainConfig, height: int, width: int, before: int
) -> PatchDraw:
    """The patches of a step: windows round pixels drawn evenly from the scene."""
    rng = np.random.default_rng([seed, step, 0])
    y = rng.integers(0, height, config.batch) - before
    x = rng.integers(0, width, config.batch) - before
    turn = rng.integers(0, 8 if config.turns else 1, config.batch)
    return PatchDraw(y, x, turn)


def turned(patch_CWW: NDArray[np.float32], turn: int) -> NDArray[np.float32]:
    """One of the eight symmetries of the square, applied to a patch."""
    patch = np.rot90(patch_CWW, turn & 3, axes=(1, 2))
    return patch[:, :, ::-1] if turn & 4 else patch


def draw_interval(seed: int, step: int, cuts: Sequence[int], timesteps: int) -> tuple[int, int]:
    """First and last timestep (excluded) of the interval that a step trains.

    An interval is drawn as often as it has timesteps, so that over many steps every timestep is.

    >>> draw_interval(seed=0, step=0, cuts=(), timesteps=1000)
    (0, 1000)
    """
    edges = (0, *cuts, timesteps)
    t = int(np.random.default_rng([seed, step, 2]).integers(timesteps))
    interval = bisect_right(cuts, t)
    return edges[interval], edges[interval + 1]


def learning_rate(config: PretrainConfig, step: int) -> float:
    """Linear warm-up, constant, linear decay to zero: a function of progress alone."""
    rise = (step + 1) / max(config.warmup, 1)
    fall = (config.steps - step) / max(config.decay * config.steps, 1)
    return config.learning_rate * min(1.0, rise, fall)


def share_of(batch: int, worker: int, workers: int) -> slice:
    """Which samples of a batch are a worker's: the same number for all, or one more for some."""
    return slice(batch * worker // workers, batch * (worker + 1) // workers)
