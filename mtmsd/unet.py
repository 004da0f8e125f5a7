"""The denoising U-Net, with its decoder stages as return values.

Architecture of Nichol & Dhariwal 2021 (improved diffusion, arXiv 2102.09672) as MTMSD uses it: residual
blocks with scale-shift (FiLM) conditioning on the timestep, attention in the middle block alone.
Parameter names are those of the authors' checkpoints. Shapes: N sample, C channel, H W rows and columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Widths and depths of the U-Net; the paper's has 128 channels."""

    channels: int = 64
    """Base width."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """Width of each resolution level, in units of ``channels``; each level halves the resolution."""
    res_blocks: int = 2
    """Residual blocks per level in the encoder (one more in the decoder)."""
    heads: int = 4
    """Heads of the attention in the middle block."""
    groups: int = 32
    """Groups of every group normalisation."""
    dropout: float = 0.0
    """Dropout inside the residual blocks while training."""

    def __post_init__(self) -> None:
        """Refuse widths that groups and heads do not divide."""
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"unet.multipliers must hold positive integers, found {self.multipliers}")
        if self.channels % self.groups or self.channels % 2:
            raise ValueError(
                f"unet.channels must be even and a multiple of unet.groups ({self.groups}), "
                f"found {self.channels}"
            )
        if self.res_blocks < 1:
            raise ValueError(f"unet.res_blocks must be at least 1, found {self.res_blocks}")
        if self.channels * self.multipliers[-1] % self.heads:
            raise ValueError(
                f"unet.heads must divide the middle width {self.channels * self.multipliers[-1]}, "
                f"found {self.heads}"
            )

    @property
    def stages(self) -> int:
        """Number of decoder stages (output blocks)."""
        return len(self.multipliers) * (self.res_blocks + 1)

    @property
    def downsampling(self) -> int:
        """A window's side must be a multiple of this."""
        return int(2 ** (len(self.multipliers) - 1))

    def stage_shape(self, stage: int, size: int) -> tuple[int, int]:
        """(channels, side in samples) of decoder stage ``stage`` for a window of ``size`` pixels."""
        step, within = divmod(stage, self.res_blocks + 1)
        level = len(self.multipliers) - 1 - step
        upsampled = within == self.res_blocks and level > 0
        return self.channels * self.multipliers[level], size // 2**level * (2 if upsampled else 1)


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


class ResBlock(nn.Module):
    """GN, SiLU, conv; FiLM by the timestep; GN, SiLU, zero-initialised conv; skip."""

    def __init__(self, config: UNetConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        embedding = 4 * config.channels
        self.in_layers = nn.Sequential(
            GroupNorm(config.groups, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * outputs))
        last = nn.Conv2d(outputs, outputs, 3, padding=1)
        _zero(last)
        self.out_layers = nn.Sequential(
            GroupNorm(config.groups, outputs), nn.SiLU(), nn.Dropout(config.dropout), last
        )
        same = inputs == outputs
        self.skip_connection = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x_NCHW: Tensor, embedding_NE: Tensor) -> Tensor:
        """(N, inputs, H, W) and the timestep's embedding -> (N, outputs, H, W)."""
        h = self.in_layers(x_NCHW)
        scale, shift = self.emb_layers(embedding_NE)[:, :, None, None].to(h.dtype).chunk(2, dim=1)
        h = self.out_layers[0](h) * (1 + scale) + shift
        result: Tensor = self.skip_connection(x_NCHW) + self.out_layers[1:](h)
        return result


class Attention(nn.Module):
    """Self-attention over all positions of a map; heads stored one after another as (q, k, v)."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = GroupNorm(config.groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        _zero(self.proj_out)

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


class UNet(nn.Module):
    """Noise predictor with learned variance: (N, C, H, W) -> (N, 2C, H, W)."""

    def __init__(self, config: UNetConfig, components: int) -> None:
        super().__init__()
        self.config, self.components = config, components
        base = config.channels
        widths = [base * m for m in config.multipliers]
        self.time_embed = nn.Sequential(nn.Linear(base, 4 * base), nn.SiLU(), nn.Linear(4 * base, 4 * base))
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(components, base, 3, padding=1)])])
        skips, current = [base], base
        for level, width in enumerate(widths):
            for _ in range(config.res_blocks):
                self.input_blocks.append(nn.ModuleList([ResBlock(config, current, width)]))
                current = width
                skips.append(current)
            if level < len(widths) - 1:
                self.input_blocks.append(nn.ModuleList([Downsample(current)]))
                skips.append(current)
        self.middle_block = nn.ModuleList(
            [
                ResBlock(config, current, current),
                Attention(config, current),
                ResBlock(config, current, current),
            ]
        )
        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for i in range(config.res_blocks + 1):
                block = nn.ModuleList([ResBlock(config, current + skips.pop(), width)])
                if level > 0 and i == config.res_blocks:
                    block.append(Upsample(width))
                self.output_blocks.append(block)
                current = width
        last = nn.Conv2d(current, 2 * components, 3, padding=1)
        _zero(last)
        self.out = nn.Sequential(GroupNorm(config.groups, current), nn.SiLU(), last)

    def forward(self, x_NCHW: Tensor, t_N: Tensor) -> Tensor:
        """Predict the noise (first C channels) and the variance's interpolation (last C).

        Args:
            x_NCHW: Noisy patches; H and W multiples of ``config.downsampling``.
            t_N: Timesteps, 0-based.
        """
        last = self._decode(x_NCHW, t_N, range(self.config.stages))[-1]
        return self.out(last)  # type: ignore[no-any-return]

    def stages(self, x_NCHW: Tensor, t_N: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """Outputs of the decoder stages ``taps`` (ascending); nothing after the last one is computed.

        Raises:
            ValueError: ``taps`` is empty, not ascending, or names a stage that does not exist.
        """
        self.check_taps(taps)
        return self._decode(x_NCHW, t_N, taps)

    def check_taps(self, taps: Sequence[int]) -> None:
        """Refuse stages that cannot be tapped.

        Raises:
            ValueError: ``taps`` is empty, not ascending, or names a stage that does not exist.
        """
        if list(taps) != sorted(set(taps)) or not taps or not 0 <= taps[0] <= taps[-1] < self.config.stages:
            raise ValueError(
                f"features.stages must be ascending stage numbers below {self.config.stages}, "
                f"found {list(taps)}"
            )

    def _decode(self, x_NCHW: Tensor, t_N: Tensor, taps: Sequence[int]) -> list[Tensor]:
        embedding = self.time_embed(timestep_embedding(t_N, self.config.channels))
        h, skips = x_NCHW, []
        for block in self.input_blocks:
            h = _run(block, h, embedding)
            skips.append(h)
        h = _run(self.middle_block, h, embedding)
        tapped = []
        for stage, block in enumerate(self.output_blocks[: taps[-1] + 1]):
            h = _run(block, torch.cat([h, skips.pop()], dim=1), embedding)
            if stage in taps:
                tapped.append(h)
        return tapped


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _run(block: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
    for layer in block.children():
        h = layer(h, embedding) if isinstance(layer, ResBlock) else layer(h)
    return h
