"""Features of windows' pixels, interpolated from the maps of the tapped stages where they are read.

Bilinear interpolation reads at most 2 x 2 samples a pixel; no map is upsampled.
Shapes: N window, n P pixel of a window's block (row-major), Q side of the block, T timestep, S stage,
H W rows and columns of a stage's map, C its channels that are kept, K those of all stages, E spectral
feature, R row of a linear map.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtmsd.windows import PatchConfig


def interpolation_rows(side: int, patches: PatchConfig) -> Tensor:
    """Bilinear weights (stride, side) that read a block's rows from a map of ``side`` samples.

    Row p of the window lies at (p + 0.5) side / size - 0.5 of the map, held inside it: the rule of
    bilinear upsampling with align_corners off.
    """
    pixel = torch.arange(patches.before, patches.before + patches.stride, dtype=torch.float64)
    source = ((pixel + 0.5) * side / patches.side - 0.5).clamp(min=0)
    low = source.floor().long().clamp(max=side - 1)
    high = (low + 1).clamp(max=side - 1)
    weights = torch.zeros((patches.stride, side), dtype=torch.float64)
    row = torch.arange(patches.stride)
    weights.index_put_((row, low), 1 - (source - low), accumulate=True)
    weights.index_put_((row, high), source - low, accumulate=True)
    return weights.float()


class Features:
    """Features of N windows, float32: pooled ones, spectra of the pixels, maps that give centre features."""

    def __init__(
        self,
        pooled_NTK: Tensor,
        spectra_NSS_: Tensor,
        maps_SNTHWC: Sequence[Tensor],
        weights_SPH: Sequence[Tensor],
    ) -> None:
        self.pooled_NTK, self._spectra = pooled_NTK, spectra_NSS_
        self._maps, self._weights = maps_SNTHWC, weights_SPH

    def region(self, window: int, rows: slice, columns: slice) -> Tensor:
        """Centre features of some rows and columns of a block's pixels: (T, P, K)."""
        parts = []
        for maps_NTHWC, weights_PH in zip(self._maps, self._weights, strict=True):
            maps = maps_NTHWC[window]
            if _is_identity(weights_PH):
                parts.append(maps[:, rows, columns].flatten(1, 2))
                continue
            near = touched(weights_PH[rows])
            down = torch.matmul(weights_PH[rows, near], maps[:, near].flatten(2))
            down_TPWC = down.reshape(*down.shape[:2], *maps.shape[2:])
            parts.append(torch.matmul(weights_PH[columns], down_TPWC).flatten(1, 2))
        return torch.cat(parts, dim=-1)

    def mapped(self, window: int, map_TKR: Tensor) -> Tensor:
        """Centre features of all pixels of a block under a linear map, summed over timesteps: (Q, Q, R).

        A linear map and interpolation may change places: samples are mapped, fewer than there are pixels.
        """
        found = torch.zeros((), device=map_TKR.device)
        parts = torch.split(map_TKR, [maps.shape[-1] for maps in self._maps], dim=1)
        for maps_NTHWC, weights_QH, part_TCR in zip(self._maps, self._weights, parts, strict=True):
            maps = maps_NTHWC[window]
            mapped = maps.new_zeros((maps.shape[1] * maps.shape[2], part_TCR.shape[2]))
            for map_HWC, of_step_CR in zip(maps, part_TCR, strict=True):
                mapped.addmm_(map_HWC.flatten(0, 1), of_step_CR)
            mapped_HWR = mapped.reshape(*maps.shape[1:3], -1)
            if not _is_identity(weights_QH):
                down_QWR = torch.matmul(weights_QH, mapped_HWR.flatten(1)).reshape(-1, *mapped_HWR.shape[1:])
                mapped_HWR = torch.matmul(weights_QH, down_QWR)
            found = found + mapped_HWR
        return found

    def at(self, window_n: Tensor, offset_n: Tensor) -> Tensor:
        """Centre features of single pixels, by window and index in its block: (n, T, K)."""
        parts = []
        window_n, offset_n = (index.to(self.pooled_NTK.device) for index in (window_n, offset_n))
        for maps_NTHWC, weights_PH in zip(self._maps, self._weights, strict=True):
            stride = len(weights_PH)
            row, column = offset_n // stride, offset_n % stride
            low_P, high_P, share_P = _neighbours(weights_PH)
            value = torch.zeros((), device=maps_NTHWC.device)
            for y, weight_y in ((low_P[row], 1 - share_P[row]), (high_P[row], share_P[row])):
                for x, weight_x in ((low_P[column], 1 - share_P[column]), (high_P[column], share_P[column])):
                    value = value + maps_NTHWC[window_n, :, y, x] * (weight_y * weight_x)[:, None, None]
            parts.append(value)
        return torch.cat(parts, dim=-1)

    def spectra_region(self, window: int, rows: slice, columns: slice) -> Tensor:
        """Spectra of some rows and columns of a block's pixels: (P, E)."""
        return self._spectra[window, rows, columns].flatten(0, 1).flatten(1)

    def spectra_at(self, window_n: Tensor, offset_n: Tensor) -> Tensor:
        """Spectra of single pixels, by window and index in its block: (n, E)."""
        window_n, offset_n = (index.to(self._spectra.device) for index in (window_n, offset_n))
        stride = self._spectra.shape[1]
        return self._spectra[window_n, offset_n // stride, offset_n % stride].flatten(1)

    @property
    def centre_NPTK(self) -> Tensor:
        """Centre features of all pixels of all windows: small blocks only."""
        stride, whole = len(self._weights[0]), slice(None)
        blocks = [self.region(i, whole, whole).transpose(0, 1) for i in range(len(self.pooled_NTK))]
        return torch.stack(blocks) if blocks else self.pooled_NTK[:, None].expand(-1, stride**2, -1, -1)


def touched(weights_PH: Tensor) -> slice:
    """The samples that any of these rows reads."""
    columns = weights_PH.any(dim=0).nonzero()
    return slice(int(columns[0]), int(columns[-1]) + 1)


def _is_identity(weights_PH: Tensor) -> bool:
    return weights_PH.shape[0] == weights_PH.shape[1] and bool((weights_PH.diagonal() == 1).all())


def _neighbours(weights_PH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two samples that each row reads, and the weight of the second."""
    low = (weights_PH > 0).int().argmax(dim=1)
    high = (low + 1).clamp(max=weights_PH.shape[1] - 1)
    return low, high, 1 - weights_PH.gather(1, low[:, None])[:, 0]
