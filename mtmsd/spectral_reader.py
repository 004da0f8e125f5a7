"""Features of windows for classifiers that read spectra alone: no U-Net, nothing fused.

It stands where the ``Extractor`` stands, so that training, scoring and map are the same for both.
Shapes: N window, T timestep, S side of a window's block.
"""

import torch
from torch import Tensor

from mtmsd.features import FeatureConfig, windows_at_once
from mtmsd.interpolation import Features
from mtmsd.spectra import spectra_round
from mtmsd.windows import PatchConfig


class SpectralReader:
    """Reads pixels' spectra; of the diffusion features there are no channels."""

    def __init__(self, features: FeatureConfig, patches: PatchConfig, patch: int, device: str) -> None:
        self.batch, self._timesteps = (
            windows_at_once(features, patches, device == "cuda"),
            len(features.timesteps),
        )
        self._boxes, self._patch, self._patches = features.boxes, patch, patches
        self._device = device

    def __call__(self, windows_NCWW: Tensor) -> Features:
        """Features of clean windows (N, components, side, side), no data as 0."""
        windows, stride = windows_NCWW.to(self._device), self._patches.stride
        spectra = spectra_round(windows, *self._boxes, self._patch, self._patches)
        nothing = windows.new_empty(len(windows), self._timesteps, stride, stride, 0)
        return Features(nothing[:, :, 0, 0], spectra, [nothing], [torch.eye(stride, device=windows.device)])
