"""One step of pretraining: patches, timesteps and noise in, better weights out.

Timesteps and noise are drawn for the global batch from (seed, step), as all that steps.py draws.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mtmsd.diffusion import Schedule
from mtmsd.steps import PretrainConfig, draw_interval, learning_rate


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
    generator = torch.Generator().manual_seed(_entropy(seed, step, 1))
    first, last = draw_interval(seed, step, cuts, schedule.steps)
    t_N = torch.randint(first, last, (config.batch,), generator=generator)[share].to(device)
    noise = torch.randn((config.batch, *patches_NCWW.shape[1:]), generator=generator)[share].to(device)
    valid = (~patches_NCWW.isnan().any(dim=1, keepdim=True)).float()
    x0 = patches_NCWW.nan_to_num(0.0)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    x_t = schedule.q_sample(x0, t_N, noise).contiguous(memory_format=torch.channels_last)
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"),
    ):
        torch.manual_seed(_entropy(seed, step, 2, share.start))  # the U-Net's dropout
        output = model(x_t, t_N)
    loss = schedule.hybrid_loss(output, x0, t_N, noise, valid)
    optimizer.zero_grad(set_to_none=True)
    weight = (share.stop - share.start) * workers / config.batch
    (weight * loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    return float(loss.detach())


def _entropy(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
