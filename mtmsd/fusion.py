"""Selective timestep fusion: a pixel's timesteps are weighed per channel, guided by pooled features.

Source: MTMSD (arXiv 2306.08964). With centre features x_t and pooled features g_t of K channels:
u = sum_t x_t;  z = W2 BN(ReLU(W1 u));  v_t = G_t [F_t z ; g_t];  a = softmax over t of v, per channel;
fused = sum_t a_t * x_t. Shapes: N pixel, T timestep, K kept channel.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """The fusion of timesteps."""

    hidden: int | None = 32
    """Width of z and F_t z; null: half of the kept channels, as in the paper."""

    def __post_init__(self) -> None:
        """Refuse an empty bottleneck."""
        if self.hidden is not None and self.hidden < 1:
            raise ValueError(f"fusion.hidden must be at least 1, found {self.hidden}")


class SelectiveFusion(nn.Module):
    """(N, T, K) centre and pooled features -> (N, K); parameter names as in the authors' checkpoints."""

    def __init__(self, config: FusionConfig, timesteps: int, channels: int) -> None:
        super().__init__()
        hidden = config.hidden or max(channels // 2, 1)
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.ReLU(),
            nn.BatchNorm1d(hidden),
            nn.Linear(hidden, hidden),
        )
        self.fcs = nn.ModuleList([nn.Linear(hidden, hidden) for _ in range(timesteps)])
        self.g_fcs = nn.ModuleList([nn.Linear(hidden + channels, channels) for _ in range(timesteps)])

    def weights(self, centre_NTK: Tensor, pooled_NTK: Tensor) -> Tensor:
        """Fusion weights (N, T, K); they sum to 1 over timesteps."""
        z = self.fc(centre_NTK.sum(dim=1))
        votes = [
            guide(torch.cat([lift(z), pooled_NTK[:, t]], dim=1))
            for t, (lift, guide) in enumerate(zip(self.fcs, self.g_fcs, strict=True))
        ]
        return torch.stack(votes, dim=1).softmax(dim=1)

    def forward(self, centre_NTK: Tensor, pooled_NTK: Tensor) -> Tensor:
        """Fused features (N, K)."""
        return (self.weights(centre_NTK, pooled_NTK) * centre_NTK).sum(dim=1)
