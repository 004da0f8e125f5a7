"""Fusion of a pixel's timesteps; here the selective one: weighed per channel, guided by pooled features.

Other kinds have a file each and a line in heads.py.
Source: MTMSD (arXiv 2306.08964). With centre features x_t and pooled features g_t of K channels:
u = sum_t x_t;  z = W2 BN(ReLU(W1 u));  v_t = G_t [F_t z ; g_t];  a = softmax over t of v, per channel;
fused = sum_t a_t * x_t. Shapes: N pixel, T timestep, S stage, K kept channel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtmsd.checks import check_ranges


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """The fusion of timesteps."""

    kind: str = "selective"
    """``selective``: weights for each pixel, timestep and channel (MTMSD); ``hyperfeatures``: one learned
    weight for each timestep and stage (hyperfeatures.py)."""
    hidden: int | None = 32
    """Selective: width of the layers that find the weights (z and F_t z); null: half of the kept channels, as
    in the paper. Hyperfeatures: inner width of a bottleneck; null: a quarter of ``width``, as in its own
    paper."""
    width: int = 128
    """Hyperfeatures: width of the mixed features (the paper: 384)."""
    keep_timesteps: int | None = None
    """Hyperfeatures: timesteps that remain, those of the largest mixing weights in a first training; the
    map reads no others. Absent: all."""

    def __post_init__(self) -> None:
        """Refuse an empty bottleneck, or no timestep."""
        check_ranges("fusion", self, hidden="[1, inf)", width="[1, inf)", keep_timesteps="[1, inf)")


class Fusion(nn.Module):
    """(N, T, K) centre and pooled features -> (N, width); this one stands where nothing is fused."""

    weighs_timesteps = False
    """Whether it learns one weight for each timestep and stage."""
    width: int = 0

    def mixing_weights(self) -> Tensor | None:
        """Weights (T, S) that sum to 1; None: the kind has none of its own."""
        return None


class SelectiveFusion(Fusion):
    """(N, T, K) centre and pooled features -> (N, K); parameter names as in the authors' checkpoints.

    Args:
        config: The fusion's settings.
        timesteps: T.
        stages: Kept channels of each tapped stage; here their sum K matters alone.
    """

    def __init__(self, config: FusionConfig, timesteps: int, stages: Sequence[int]) -> None:
        super().__init__()
        channels = self.width = sum(stages)
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
