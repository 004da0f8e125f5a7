"""Diffusion Hyperfeatures: one bottleneck per stage, one learned weight for each timestep and stage.

Source: Luo et al. (NeurIPS 2023, arXiv 2305.14334), on a pixel's vectors instead of maps. With centre
features r_ts of timestep t and stage s: fused = sum_ts w_ts B_s(r_ts), w the softmax of T x S numbers that
begin equal. B_s is shared by the timesteps:
B_s(r) = ReLU(norm(W2 ReLU(norm(W1 r))) + norm(W0 r)). The authors' 3 x 3 convolution between W1 and W2 has
no counterpart, for a pixel comes without its neighbours; norms are those of one pixel's values. The
pooled features are not read.
Shapes: N pixel, T timestep, S stage, K kept channel of all stages.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtmsd.fusion import Fusion, FusionConfig


class Hyperfeatures(Fusion):
    """(N, T, K) centre features -> (N, width), summed one (timestep, stage) after the other.

    At inference the memory for the sum does not grow with the timesteps. A stage of which purification
    kept nothing takes no part.

    Args:
        config: The fusion's settings.
        timesteps: T.
        stages: Kept channels of each tapped stage, in the order of the features.
    """

    weighs_timesteps = True

    def __init__(self, config: FusionConfig, timesteps: int, stages: Sequence[int]) -> None:
        super().__init__()
        self.width, self._stages = config.width, tuple(stages)
        hidden = config.hidden or max(config.width // 4, 1)
        self.bottlenecks = nn.ModuleList(
            _Bottleneck(channels, hidden, config.width) for channels in stages if channels
        )
        self.mixing = nn.Parameter(torch.zeros(timesteps, len(self.bottlenecks)))

    def mixing_weights(self) -> Tensor:
        """Weights (T, S), 0 for a stage without channels."""
        used = torch.tensor([channels > 0 for channels in self._stages], device=self.mixing.device)
        table = self.mixing.new_zeros(len(self.mixing), len(self._stages))
        table[:, used] = self._weights()
        return table

    def forward(self, centre_NTK: Tensor, pooled_NTK: Tensor) -> Tensor:
        """Fused features (N, width)."""
        weights, fused = self._weights(), centre_NTK.new_zeros(len(centre_NTK), self.width)
        used = [channels for channels in self._stages if channels]
        for t, centre_NK in enumerate(centre_NTK.unbind(dim=1)):
            parts = torch.split(centre_NK, used, dim=1)
            for s, (bottleneck, part) in enumerate(zip(self.bottlenecks, parts, strict=True)):
                fused = fused + weights[t, s] * bottleneck(part)
        return fused

    def _weights(self) -> Tensor:
        return self.mixing.flatten().softmax(dim=0).view_as(self.mixing)


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, hidden: int, width: int) -> None:
        super().__init__()
        self.narrow = nn.Sequential(
            nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.ReLU(),
            nn.Linear(hidden, width), nn.LayerNorm(width),
        )  # fmt: skip
        self.shortcut = nn.Sequential(nn.Linear(channels, width), nn.LayerNorm(width))

    def forward(self, values_NK: Tensor) -> Tensor:
        return F.relu(self.narrow(values_NK) + self.shortcut(values_NK))


def heaviest(mixing_TS: Tensor, keep: int) -> tuple[int, ...]:
    """The ``keep`` timesteps with the largest weights over all stages, ascending; ties go to the lower.

    >>> heaviest(torch.tensor([[0.1, 0.1], [0.3, 0.0], [0.2, 0.3]]), 2)
    (1, 2)
    """
    order = mixing_TS.sum(dim=1).sort(descending=True, stable=True).indices
    return tuple(sorted(order[:keep].tolist()))
