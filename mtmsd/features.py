"""Multi-timestep multi-stage features of pixels, read from the U-Net's decoder.

For a window x_0 and timestep t: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise, one noise
tensor for all windows and timesteps; each tapped stage gives two vectors: its value at the pixel, as
if bilinearly upsampled to the window (``centre``), and its spatial mean (``pooled``).
No map is upsampled: bilinear interpolation reads at most 2 x 2 samples a pixel, and the mean of an
upsampled map (align_corners off, integer factor) is the mean of the map. Channels that purification
drops are dropped before anything is interpolated.

Shapes: N window, P pixel of a window's block (row-major), T timestep, S stage, K channel of all tapped
stages that is kept (all of them when nothing is said).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mtmsd.checks import check_ranges
from mtmsd.diffusion import Schedule, shared_noise
from mtmsd.inference import FrozenUNet, Stage
from mtmsd.interpolation import Features, interpolation_rows, touched
from mtmsd.spectra import spectra_round
from mtmsd.unet import UNet, UNetConfig
from mtmsd.windows import PatchConfig


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """Which features are read, and how they are computed."""

    timesteps: tuple[int, ...] = (50, 150, 300, 500, 700)
    """Timesteps at which the U-Net is read, ascending (the paper: 50, 100, ..., 950); ``auto``: two of these,
    by the weights of ``fusion.kind: hyperfeatures``."""
    stages: tuple[int, ...] = (3, 5)
    """Decoder stages (output blocks) that are read, ascending (the paper: 0, 1, 2, 3, 5)."""
    spectra: tuple[int, ...] = (0, 1, 2, 4)
    """Radii of the boxes, pixels, whose mean reduced spectra stand beside the diffusion features; 0: the
    pixel's own (the paper: none)."""
    profiles: tuple[int, ...] = (1, 2, 4)
    """Radii of the boxes, pixels, whose openings and closings of the first components stand beside the mean
    spectra (the paper: none); without ``spectra`` there are none."""
    noise_seed: int = 0
    """Seed of the noise tensor that all windows and timesteps share."""
    batch: int | None = None
    """Windows in one pass of the U-Net; absent: as a processor's cache holds, on a GPU 16 times as many."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the convolutions; bfloat16 pays where the processor has it."""
    arithmetic: Literal["fast", "reference"] = "fast"
    """The cheapest order of operations, or (to compare roundings) the published one, window by window."""

    def __post_init__(self) -> None:
        """Refuse empty or unordered lists."""
        for name, values in (("timesteps", self.timesteps), ("stages", self.stages)):
            if not values or list(values) != sorted(set(values)) or values[0] < 0:
                raise ValueError(
                    f"features.{name} must be ascending non-negative integers, found {list(values)}"
                )
        for name, radii, least in (("spectra", self.spectra, 0), ("profiles", self.profiles, 1)):
            if list(radii) != sorted(set(radii)) or (radii and radii[0] < least):
                raise ValueError(
                    f"features.{name} must be ascending integers from {least}, found {list(radii)}"
                )
        check_ranges("features", self, batch="[1, inf)", noise_seed="[0, 4294967296)")
        if self.arithmetic == "reference" and self.precision != "float32":
            raise ValueError(
                f"features.arithmetic: reference needs precision float32, found {self.precision}"
            )

    @property
    def boxes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Radii of the means, and of the openings and closings."""
        return self.spectra, self.profiles if self.spectra else ()


class Readout(NamedTuple):
    """What is kept of the features, and how it is scaled: (value - mean) x scale."""

    centre: Sequence[int]
    """Channels of the centre features, ascending."""
    pooled: Sequence[int]
    """Channels of the pooled features, ascending."""
    mean_TK: Tensor
    """Of the centre features."""
    scale_TK: Tensor


_CACHED_PIXELS = 18432
"""Pixels of the windows in one pass: their maps should stay in the processor's cache."""
_GPU_PIXELS = 16 * _CACHED_PIXELS  # at most 6 GB of maps at the paper's size (computed)


def stage_widths(unet: UNetConfig, stages: tuple[int, ...], size: int) -> list[int]:
    """Channels of each tapped stage."""
    return [unet.stage_shape(stage, size)[0] for stage in stages]


def feature_width(unet: UNetConfig, stages: tuple[int, ...], size: int) -> int:
    """D: channels of all tapped stages together."""
    return sum(stage_widths(unet, stages, size))


def windows_at_once(features: FeatureConfig, patches: PatchConfig, gpu: bool = False) -> int:
    """Windows in one pass of the U-Net."""
    return features.batch or max(1, (_GPU_PIXELS if gpu else _CACHED_PIXELS) // patches.side**2)


class Extractor:
    """Reads the features of windows; the same numbers for a window in whatever company it comes.

    With ``patch`` pixels' spectra are the patches of that side round them (spectra.py), not boxes' means.
    """

    def __init__(
        self,
        unet: UNet,
        schedule: Schedule,
        features: FeatureConfig,
        patches: PatchConfig,
        readout: Readout | None = None,
        patch: int = 0,
    ) -> None:
        if features.timesteps[-1] >= schedule.steps:
            raise ValueError(
                f"features.timesteps must be below diffusion.steps ({schedule.steps}), "
                f"found {features.timesteps[-1]}"
            )
        unet.check_taps(features.stages)
        self.device = next(unet.parameters()).device
        self._timesteps, self._stages = features.timesteps, features.stages
        self._boxes, self._patch, self._patches = features.boxes, patch, patches
        self.batch = windows_at_once(features, patches, self.device.type == "cuda")
        self._plain = unet.eval() if features.arithmetic == "reference" else None
        if self._plain is None:
            dtype = getattr(torch, features.precision)
            self._frozen = FrozenUNet(unet, features.timesteps, features.stages, dtype)
        self.noise = shared_noise(features.noise_seed, unet.components, patches.side).to(self.device)
        steps = torch.tensor(features.timesteps)
        self._signal_T = schedule.signal[steps].to(self.device)
        self._noise_T = schedule.noise[steps].to(self.device)
        weights = [
            interpolation_rows(unet.config.stage_shape(stage, patches.side)[1], patches)
            for stage in features.stages
        ]
        self._near = [touched(w) for w in weights]
        self._weights = [w[:, near].to(self.device) for w, near in zip(weights, self._near, strict=True)]
        self._keep(stage_widths(unet.config, features.stages, patches.side), readout)

    def _keep(self, widths: list[int], readout: Readout | None) -> None:
        """Channels of each stage that are read, with their mean and scale."""
        total, steps = sum(widths), len(self._timesteps)
        if readout is None:
            everything = range(total)
            readout = Readout(everything, everything, torch.zeros(steps, total), torch.ones(steps, total))
        kept, ends = np.asarray(readout.centre), np.cumsum([0, *widths])
        self._pooled = torch.as_tensor(list(readout.pooled), device=self.device)
        self._mean, self._scale = readout.mean_TK.to(self.device), readout.scale_TK.to(self.device)
        cuts = np.searchsorted(kept, ends)
        self._slices = [slice(int(a), int(b)) for a, b in itertools.pairwise(cuts)]
        self._channels = [
            torch.as_tensor(kept[part] - start, device=self.device)
            for part, start in zip(self._slices, ends, strict=False)
        ]

    @torch.inference_mode()
    def __call__(self, windows_NCWW: Tensor) -> Features:
        """Features of clean windows (N, components, side, side), no data as 0.

        Windows pass the U-Net in batches of one fixed shape (the last one is filled up), so that a
        window's features do not depend on its neighbours.
        """
        n, steps = len(windows_NCWW), len(self._timesteps)
        pooled = torch.empty((n, steps, len(self._pooled)), device=self.device)
        maps = [
            torch.empty(
                (n, steps, near.stop - near.start, near.stop - near.start, len(channels)), device=self.device
            )
            for near, channels in zip(self._near, self._channels, strict=True)
        ]
        for start in range(0, n, self.batch):
            index = torch.arange(start, start + self.batch).clamp(max=n - 1)
            x0, used = windows_NCWW[index].to(self.device), min(self.batch, n - start)
            mine = slice(start, start + used)
            for step in range(steps):
                x_t = self._signal_T[step] * x0 + self._noise_T[step] * self.noise
                stages = self._run(x_t, step)
                mean = torch.cat([stage.mean() for stage in stages], dim=1)
                pooled[mine, step] = mean[:used, self._pooled]
                for s, stage in enumerate(stages):
                    part = self._slices[s]
                    near = stage.region(self._near[s].start, self._near[s].stop)[:used]
                    value = near[..., self._channels[s]].float()
                    value -= self._mean[step, part]
                    value *= self._scale[step, part]
                    maps[s][mine, step] = value
        spectra = spectra_round(windows_NCWW.to(self.device), *self._boxes, self._patch, self._patches)
        return Features(pooled, spectra, maps, self._weights)

    def _run(self, x_t_NCHW: Tensor, step: int) -> list[Stage]:
        if self._plain is None:
            return self._frozen.stages(x_t_NCHW, step)
        t = torch.full((1,), self._timesteps[step], device=self.device)
        each = [self._plain.stages(x[None], t, self._stages) for x in x_t_NCHW]
        return [Stage(torch.cat(maps).permute(0, 2, 3, 1), None) for maps in zip(*each, strict=True)]
