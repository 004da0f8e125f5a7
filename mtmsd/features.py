"""Multi-timestep multi-stage features of pixels, read from the U-Net's decoder.

For a window x_0 and timestep t: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise, one noise
tensor for all windows and timesteps; each tapped stage gives two vectors: its value at the pixel, as
if bilinearly upsampled to the window (``centre``), and its spatial mean (``pooled``).
No map is upsampled: bilinear interpolation reads at most 2 x 2 samples a pixel, and the mean of an
upsampled map (align_corners off, integer factor) is the mean of the map.

Shapes: N window, P pixel of a window's block (row-major), T timestep, D channel of all tapped stages.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mtmsd.diffusion import Schedule, shared_noise
from mtmsd.unet import UNet, UNetConfig
from mtmsd.windows import PatchConfig


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """Which features are read, and how they are computed."""

    timesteps: tuple[int, ...] = (50, 150, 300, 500, 700)
    """Timesteps at which the U-Net is read, ascending (the paper: 50, 100, ..., 950)."""
    stages: tuple[int, ...] = (3, 5)
    """Decoder stages (output blocks) that are read, ascending (the paper: 0, 1, 2, 3, 5)."""
    noise_seed: int = 0
    """Seed of the noise tensor that all windows and timesteps share."""
    batch: int = 16
    """Windows x timesteps in one pass of the U-Net."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the convolutions; bfloat16 pays where the processor has it."""
    channels_last: bool = True
    """Memory order of the maps: channels last is faster; off (with batch 1) sums in the reference's order."""

    def __post_init__(self) -> None:
        """Refuse empty or unordered lists."""
        for name, values in (("timesteps", self.timesteps), ("stages", self.stages)):
            if not values or list(values) != sorted(set(values)) or values[0] < 0:
                raise ValueError(
                    f"features.{name} must be ascending non-negative integers, found {list(values)}"
                )
        if self.batch < 1:
            raise ValueError(f"features.batch must be at least 1, found {self.batch}")


class Features(NamedTuple):
    """Features of N windows, float32."""

    centre_NPTD: Tensor
    """Values at each pixel of the block."""
    pooled_NTD: Tensor
    """Spatial means over the window."""


def feature_width(unet: UNetConfig, stages: tuple[int, ...], size: int) -> int:
    """D: channels of all tapped stages together."""
    return sum(unet.stage_shape(stage, size)[0] for stage in stages)


def interpolation_rows(side: int, patches: PatchConfig) -> Tensor:
    """Bilinear weights (stride, side) that read a block's rows from a map of ``side`` samples.

    Row p of the window lies at (p + 0.5) side / size - 0.5 of the map, held inside it: the rule of
    bilinear upsampling with align_corners off.
    """
    pixel = torch.arange(patches.before, patches.before + patches.stride, dtype=torch.float64)
    source = ((pixel + 0.5) * side / patches.size - 0.5).clamp(min=0)
    low = source.floor().long().clamp(max=side - 1)
    high = (low + 1).clamp(max=side - 1)
    weights = torch.zeros((patches.stride, side), dtype=torch.float64)
    row = torch.arange(patches.stride)
    weights.index_put_((row, low), 1 - (source - low), accumulate=True)
    weights.index_put_((row, high), source - low, accumulate=True)
    return weights.float()


class Extractor:
    """Reads the features of windows; the same numbers for a window in whatever company it comes."""

    def __init__(self, unet: UNet, schedule: Schedule, features: FeatureConfig, patches: PatchConfig) -> None:
        if features.timesteps[-1] >= schedule.steps:
            raise ValueError(
                f"features.timesteps must be below diffusion.steps ({schedule.steps}), "
                f"found {features.timesteps[-1]}"
            )
        if features.stages[-1] >= unet.config.stages:
            raise ValueError(
                f"features.stages must be below {unet.config.stages}, found {list(features.stages)}"
            )
        self.features, self.patches = features, patches
        self.device = next(unet.parameters()).device
        self.dtype = getattr(torch, features.precision)
        self.layout = torch.channels_last if features.channels_last else torch.contiguous_format
        self.unet = unet.prepare(self.dtype, self.layout)
        self.timesteps = torch.tensor(features.timesteps, device=self.device)
        self.noise = shared_noise(features.noise_seed, unet.components, patches.size).to(self.device)
        self.signal_T = schedule.signal.to(self.device)[self.timesteps]
        self.noise_T = schedule.noise.to(self.device)[self.timesteps]
        self.rows = [
            interpolation_rows(unet.config.stage_shape(stage, patches.size)[1], patches).to(self.device)
            for stage in features.stages
        ]
        self.width = feature_width(unet.config, features.stages, patches.size)

    @torch.inference_mode()
    def __call__(self, windows_NCWW: Tensor) -> Features:
        """Features of clean windows (N, components, size, size), no data as 0.

        Windows and timesteps pass the U-Net in batches of one fixed shape (the last one is filled
        up), so that a window's features do not depend on its neighbours.
        """
        n, t = len(windows_NCWW), len(self.timesteps)
        pixels = self.patches.stride**2
        centre = torch.empty((n, pixels, t, self.width), device=self.device)
        pooled = torch.empty((n, t, self.width), device=self.device)
        batch = self.features.batch
        for start in range(0, n * t, batch):
            sample = torch.arange(start, start + batch, device=self.device).clamp(max=n * t - 1)
            window, step = sample // t, sample % t
            x0 = windows_NCWW[window].to(self.device)
            x_t = (
                self.signal_T[step, None, None, None] * x0 + self.noise_T[step, None, None, None] * self.noise
            )
            maps = self.unet.stages(
                x_t.to(self.dtype).contiguous(memory_format=self.layout),
                self.timesteps[step],
                self.features.stages,
            )
            used = min(batch, n * t - start)
            window, step = window[:used], step[:used]
            at_pixel, mean = self._read([stage[:used] for stage in maps])
            centre[window, :, step] = at_pixel
            pooled[window, step] = mean
        return Features(centre, pooled)

    def _read(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        centres, means = [], []
        for stage, rows_PS in zip(maps, self.rows, strict=True):
            touched = rows_PS.any(dim=0).nonzero().flatten()
            near = slice(int(touched[0]), int(touched[-1]) + 1)
            weights = rows_PS[:, near]
            values = torch.einsum("ph,bchw,qw->bpqc", weights, stage[..., near, near].float(), weights)
            centres.append(values.flatten(1, 2))
            means.append(stage.mean(dim=(2, 3), dtype=torch.float32))
        return torch.cat(centres, dim=-1), torch.cat(means, dim=-1)
