"""Pretraining by arithmetic: what step k sees and does is a function of (seed, k).

Nothing depends on the worker, the order of arrival or an earlier interruption: patch origins, turns,
timesteps and noise of a step are drawn for the global batch, and a worker takes its share of them.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtmsd.diffusion import Schedule


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
    """Steps of linear warm-up."""
    decay: float = 0.3
    """Share of the steps, at the end, over which the learning rate falls to zero."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    ema: float = 0.999
    """Decay of the averaged weights; early on, (1 + k) / (10 + k) when that is smaller."""
    turns: bool = True
    """Flip and turn patches by multiples of 90 degrees."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward and backward pass (autocast)."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        """Refuse empty training."""
        for name in ("steps", "batch", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"pretrain.{name} must be at least 1, found {getattr(self, name)}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"pretrain.decay must lie in [0, 1], found {self.decay}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"pretrain.ema must lie in [0, 1), found {self.ema}")


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


def make_optimizer(model: nn.Module, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW over all parameters."""
    return torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )


class Averaged:
    """Exponential moving average of a model's parameters (float32)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            self.weights[name].lerp_(value, 1 - decay)


def share_of(batch: int, worker: int, workers: int) -> slice:
    """Which samples of a batch are a worker's: the same number for all, or one more for some."""
    return slice(batch * worker // workers, batch * (worker + 1) // workers)


def pretrain_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    config: PretrainConfig,
    patches_NCWW: Tensor,
    *,
    seed: int,
    step: int,
    share: slice,
    workers: int = 1,
    cuts: Sequence[int] = (),
) -> float:
    """One optimiser step on this worker's share of the global batch.

    Args:
        model: The U-Net, bare or wrapped for data-parallel training (which averages gradients).
        optimizer: Of the same model.
        schedule: Of the diffusion process.
        config: The training's settings.
        patches_NCWW: This worker's patches, NaN = no data.
        seed: Of the run.
        step: 0-based.
        share: Which samples of the global batch the patches are.
        workers: Over how many the model averages gradients; a larger share than others' weighs more.
        cuts: First timesteps of the model's intervals but the first; the step draws from one interval.

    Returns:
        The loss on this worker's share.
    """
    device = patches_NCWW.device
    generator = torch.Generator().manual_seed(
        int(np.random.SeedSequence([seed, step, 1]).generate_state(1)[0])
    )
    first, last = draw_interval(seed, step, cuts, schedule.steps)
    t_N = torch.randint(first, last, (config.batch,), generator=generator)[share].to(device)
    noise = torch.randn((config.batch, *patches_NCWW.shape[1:]), generator=generator)[share].to(device)
    valid = (~patches_NCWW.isnan().any(dim=1, keepdim=True)).float()
    x0 = patches_NCWW.nan_to_num(0.0)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    x_t = schedule.q_sample(x0, t_N, noise).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        output = model(x_t, t_N)
    loss = schedule.hybrid_loss(output, x0, t_N, noise, valid)
    optimizer.zero_grad(set_to_none=True)
    weight = (share.stop - share.start) * workers / config.batch
    (weight * loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    return float(loss.detach())
