"""The denoising U-Net, with its decoder stages as return values.

Architecture of Nichol & Dhariwal 2021 (improved diffusion, arXiv 2102.09672) as MTMSD uses it: residual
blocks with scale-shift (FiLM) conditioning on the timestep, attention in the middle block alone.
Parameter names are those of the authors' checkpoints. Shapes: N sample, C channel, H W rows and columns.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mtmsd.checks import check_ranges
from mtmsd.layers import Attention, Downsample, GroupNorm, Upsample, timestep_embedding, zero


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Widths and depths of the U-Net; the paper's has 128 channels."""

    kind: Literal["single", "multistage"] = "single"
    """``single``: one decoder for all timesteps; ``multistage``: one for each interval of them."""
    channels: int = 64
    """Width of the first resolution level, channels (the paper: 128)."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """Width of each resolution level, in units of ``channels``; all but the first halve the resolution."""
    res_blocks: int = 2
    """Residual blocks per level in the encoder (one more in the decoder)."""
    heads: int = 4
    """Heads of the attention in the middle block; they divide its width."""
    groups: int = 32
    """Groups of every group normalisation; ``channels`` is a multiple of them."""
    dropout: float = 0.0
    """Dropout inside the residual blocks while training."""
    cuts: tuple[int, ...] | None = None
    """Multistage: first timestep of each interval but the first, ascending; absent: two, found on the
    scene's patches when pretraining begins."""
    decoders: tuple[tuple[int, ...], ...] = ()
    """Multistage: multipliers of each interval's decoder, low noise first; empty: the encoder's."""
    cut_similarity: float = 0.9
    """Multistage, to find ``cuts``: share of an optimal denoiser's values (alpha) that agree within an outer
    interval."""
    cut_tolerance: float = 0.1
    """Multistage, to find ``cuts``: difference (eta), in units of the noise, up to which two values agree."""
    cut_window: int = 8
    """Multistage, to find ``cuts``: side of the windows whose optimal denoiser finds the cuts, pixels."""

    def __post_init__(self) -> None:
        """Refuse widths that groups and heads do not divide, and decoders without their interval."""
        if not self.multipliers:
            raise ValueError("unet.multipliers must hold positive integers, found none")
        one = "[1, inf)"
        check_ranges(
            "unet", self, multipliers=one, channels=one, groups=one, heads=one, res_blocks=one,
            dropout="[0, 1)",
        )  # fmt: skip
        if self.channels % self.groups or self.channels % 2:
            raise ValueError(
                f"unet.channels must be even and a multiple of unet.groups ({self.groups}), "
                f"found {self.channels}"
            )
        self._check_intervals()
        for multipliers in self.branches:
            if self.channels * multipliers[-1] % self.heads:
                raise ValueError(
                    f"unet.heads must divide the middle width {self.channels * multipliers[-1]}, "
                    f"found {self.heads}"
                )

    def _check_intervals(self) -> None:
        if self.kind == "single":
            for name in ("cuts", "decoders"):
                if getattr(self, name):
                    raise ValueError(f"unet.{name} needs unet.kind: multistage, found kind single")
        elif self.cuts is not None and (
            list(self.cuts) != sorted({*self.cuts}) or min(self.cuts, default=0) < 1
        ):
            raise ValueError(f"unet.cuts must be ascending timesteps above 0, found {list(self.cuts)}")
        levels = len(self.multipliers)
        if any(len(one) != levels or min(one) < 1 for one in self.decoders):
            raise ValueError(
                f"unet.decoders must hold {levels} positive integers each, as unet.multipliers does, "
                f"found {[list(one) for one in self.decoders]}"
            )
        if self.decoders and len(self.decoders) != self.intervals:
            cuts = (
                f"the {self.intervals - 1} of unet.cuts" if self.cuts else "two cuts, which are to be found"
            )
            raise ValueError(
                f"unet.decoders must name {self.intervals} decoders ({cuts}), found {len(self.decoders)}"
            )
        if not (0 < self.cut_similarity <= 1 and self.cut_tolerance > 0 and self.cut_window > 0):
            raise ValueError(
                "unet.cut_similarity must lie in (0, 1], cut_tolerance and cut_window above 0, found "
                f"{self.cut_similarity}, {self.cut_tolerance}, {self.cut_window}"
            )

    @property
    def intervals(self) -> int:
        """Number of intervals of timesteps, each with a decoder of its own."""
        if self.kind == "single":
            return 1
        return 3 if self.cuts is None else len(self.cuts) + 1

    @property
    def branches(self) -> tuple[tuple[int, ...], ...]:
        """Multipliers of each interval's decoder."""
        return self.decoders or (self.multipliers,) * self.intervals

    def interval(self, timestep: int) -> int:
        """The interval that holds a timestep.

        >>> config = UNetConfig(kind="multistage", cuts=(300, 600))
        >>> [config.interval(t) for t in (0, 299, 300, 999)]
        [0, 0, 1, 2]
        """
        return bisect_right(self.cuts or (), timestep)

    @property
    def stages(self) -> int:
        """Number of decoder stages (output blocks)."""
        return len(self.multipliers) * (self.res_blocks + 1)

    @property
    def downsampling(self) -> int:
        """A window's side must be a multiple of this."""
        return int(2 ** (len(self.multipliers) - 1))

    def stage_shape(self, stage: int, size: int) -> tuple[int, int]:
        """(channels, side in samples) of decoder stage ``stage`` for a window of ``size`` pixels.

        Raises:
            ValueError: The decoders differ in it: features have one width at all timesteps.
        """
        step, within = divmod(stage, self.res_blocks + 1)
        level = len(self.multipliers) - 1 - step
        upsampled = within == self.res_blocks and level > 0
        widths = [self.channels * multipliers[level] for multipliers in self.branches]
        if len(set(widths)) > 1:
            raise ValueError(
                f"features.stages: stage {stage} is {widths} channels wide in unet.decoders, and features "
                f"need one width at all timesteps; give level {level} of all decoders one multiplier, or "
                "read other stages"
            )
        return widths[0], size // 2**level * (2 if upsampled else 1)


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
        zero(last)
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


class Decoder(NamedTuple):
    """What follows the encoder: a record and no module, so that parameters keep their checkpoints' names."""

    middle_block: nn.ModuleList
    output_blocks: nn.ModuleList
    out: nn.Sequential

    @staticmethod
    def build(config: UNetConfig, components: int, multipliers: Sequence[int]) -> "Decoder":
        """A fresh decoder of the given widths for the encoder that ``config`` names."""
        widths = [config.channels * m for m in config.multipliers]
        skips = [config.channels]
        for level, width in enumerate(widths):
            skips += [width] * (config.res_blocks + (level < len(widths) - 1))
        current = config.channels * multipliers[-1]
        middle = nn.ModuleList(
            [
                ResBlock(config, widths[-1], current),
                Attention(current, config.heads, config.groups),
                ResBlock(config, current, current),
            ]
        )
        blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            width = config.channels * multiplier
            for i in range(config.res_blocks + 1):
                block = nn.ModuleList([ResBlock(config, current + skips.pop(), width)])
                if level > 0 and i == config.res_blocks:
                    block.append(Upsample(width))
                blocks.append(block)
                current = width
        last = nn.Conv2d(current, 2 * components, 3, padding=1)
        zero(last)
        return Decoder(middle, blocks, nn.Sequential(GroupNorm(config.groups, current), nn.SiLU(), last))

    def __call__(self, maps: Sequence[Tensor], embedding_NE: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """The stages ``taps`` (one more than the last: the output) from the encoder's maps."""
        h, skips = _run(self.middle_block, maps[-1], embedding_NE), list(maps)
        tapped = []
        for stage, block in enumerate(self.output_blocks[: taps[-1] + 1]):
            h = _run(block, torch.cat([h, skips.pop()], dim=1), embedding_NE)
            if stage in taps:
                tapped.append(h)
        return tapped + ([self.out(h)] if taps[-1] == len(self.output_blocks) else [])


class UNet(nn.Module):
    """Noise predictor with learned variance: (N, C, H, W) -> (N, 2C, H, W)."""

    def __init__(self, config: UNetConfig, components: int) -> None:
        super().__init__()
        self.config, self.components = config, components
        base = config.channels
        self.time_embed = nn.Sequential(nn.Linear(base, 4 * base), nn.SiLU(), nn.Linear(4 * base, 4 * base))
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(components, base, 3, padding=1)])])
        current = base
        for level, multiplier in enumerate(config.multipliers):
            for _ in range(config.res_blocks):
                self.input_blocks.append(nn.ModuleList([ResBlock(config, current, base * multiplier)]))
                current = base * multiplier
            if level < len(config.multipliers) - 1:
                self.input_blocks.append(nn.ModuleList([Downsample(current)]))
        self._add_decoders()

    def _add_decoders(self) -> None:
        decoder = Decoder.build(self.config, self.components, self.config.multipliers)
        self.middle_block, self.output_blocks, self.out = decoder

    def decoder(self, interval: int) -> Decoder:
        """The decoder of an interval of timesteps."""
        return Decoder(self.middle_block, self.output_blocks, self.out)

    def forward(self, x_NCHW: Tensor, t_N: Tensor) -> Tensor:
        """Predict the noise (first C channels) and the variance's interpolation (last C).

        Args:
            x_NCHW: Noisy patches; H and W multiples of ``config.downsampling``.
            t_N: Timesteps, 0-based.
        """
        return self._decode(*self.encode(x_NCHW, t_N), t_N, (self.config.stages,))[0]

    def stages(self, x_NCHW: Tensor, t_N: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """Outputs of the decoder stages ``taps`` (ascending); nothing after the last one is computed.

        Raises:
            ValueError: ``taps`` is empty, not ascending, or names a stage that does not exist.
        """
        self.check_taps(taps)
        return self._decode(*self.encode(x_NCHW, t_N), t_N, taps)

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

    def encode(self, x_NCHW: Tensor, t_N: Tensor) -> tuple[list[Tensor], Tensor]:
        """The encoder's maps, and the timesteps' embedding (N, E)."""
        embedding = self.time_embed(timestep_embedding(t_N, self.config.channels))
        maps = [x_NCHW]
        for block in self.input_blocks:
            maps.append(_run(block, maps[-1], embedding))
        return maps[1:], embedding

    def _decode(
        self, maps: list[Tensor], embedding_NE: Tensor, t_N: Tensor, taps: Sequence[int]
    ) -> list[Tensor]:
        return self.decoder(0)(maps, embedding_NE, taps)


def _run(block: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
    for layer in block.children():
        h = layer(h, embedding) if isinstance(layer, ResBlock) else layer(h)
    return h
