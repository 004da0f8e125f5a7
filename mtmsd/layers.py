"""Layers of the U-Net that know nothing of its configuration.

Shapes: N sample, C channel, H W rows and columns.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(t_N: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding (N, dim) of timesteps: cosines, then sines, periods up to 2 pi 10^4."""
    half = dim // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=t_N.device) / half)
    angle = t_N[:, None].float() * frequency[None]
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class GroupNorm(nn.GroupNorm):
    """Group normalisation in float32, whatever the maps' type.

    The library's bfloat16 kernel for maps below 32 x 32 samples took seven times as long.
    """

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, ...) of any floating type -> the same shape, float32."""
        return super().forward(x_NCHW.float())


class Attention(nn.Module):
    """Self-attention over all positions of a map; heads stored one after another as (q, k, v)."""

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = GroupNorm(groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        zero(self.proj_out)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        n, c, height, width = x_NCHW.shape
        flat = x_NCHW.reshape(n, c, height * width)
        qkv = self.qkv(self.norm(flat)).reshape(n, self.heads, 3, c // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(2)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        result: Tensor = x_NCHW + self.proj_out(mixed.reshape(n, c, -1)).reshape(x_NCHW.shape)
        return result


class Downsample(nn.Module):
    """Strided 3 x 3 convolution: half the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H/2, W/2)."""
        result: Tensor = self.op(x_NCHW)
        return result


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3 x 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 2H, 2W)."""
        result: Tensor = self.conv(F.interpolate(x_NCHW, scale_factor=2, mode="nearest"))
        return result


def zero(layer: nn.Module) -> None:
    """Set a layer's weights to zero: it adds nothing until it has learnt."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
