"""Spectral supertokens: soft clusters of neighbouring pixels, and what they say of a map's pixels.

After DSTC (Liu et al., ECCV 2024, arXiv 2407.07307). A fixed grid of square cells covers the scene; every
cell holds one token, which starts as the mean of the cell's pixels. A pixel belongs to the nine tokens
round it by a softmax of squared distances; tokens become the means of their pixels, among which they count
themselves as one, and so on a few times.
A pixel's features are its reduced spectrum under a linear projection. Spectra are linear in their reduced
components, and so is their derivative along wavelength: a metric on the components holds both
(``spectral_metric``).

All is local: a pixel's answer depends on pixels at most ``SupertokenConfig.halo`` cells away, and positions
are counted from the pixel's own cell, so that any cut of the scene along cells gives the same answer.
Shapes: H W rows and columns of a region, whole cells; h w its cells; G = h w; P pixel of a cell; K reduced
component; E projected feature; F = E + 2, with the position; J = 9 tokens round a pixel; C class; B band.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtmsd.checks import check_ranges

_ROUND = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
_LIKELIEST = 1.01
_FAR = -1e30
"""Logit of a token that has no pixels."""


@dataclass(frozen=True, kw_only=True)
class SupertokenConfig:
    """How pixels cluster, and what the clusters say.

    >>> SupertokenConfig(iterations=2).halo
    7
    """

    cell: int = 8
    """Side of a cell, pixels: one token each."""
    iterations: int = 2
    """Times that tokens move to the mean of their pixels."""
    derivative: float = 1.0
    """Weight of the spectral derivative against the reduced spectrum, 0 = none."""
    compactness: float = 0.5
    """Weight of a distance of one cell against one standard deviation of the components."""
    temperature: float = 1.0
    """Divides squared distances: small = each pixel belongs to one token."""
    own: float = 0.3
    """Power of the pixel's own probabilities beside its tokens': 0 = the tokens decide alone."""
    steps: int = 0
    """Steps of training a classifier of tokens; 0 = a token says the mean of its pixels' probabilities."""

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        check_ranges(
            "supertokens", self, cell="[2, inf)", iterations="[0, inf)", derivative="[0, inf)",
            compactness="[0, inf)", own="[0, inf)", temperature="(0, inf)", steps="[0, inf)",
        )  # fmt: skip

    @property
    def halo(self) -> int:
        """Cells round a cell that its pixels' answers depend on.

        A pixel reads the votes of tokens one cell away, which count pixels two cells away, which look at
        tokens three cells away; every iteration adds two.
        """
        return 3 + 2 * self.iterations

    def side(self, tile: int) -> int:
        """Side of whole cells that hold any tile of this side and its halo, pixels."""
        return (-(-tile // self.cell) + 1 + 2 * self.halo) * self.cell


def spectral_metric(
    loadings_BK: Tensor, scale_K: Tensor, wavelength_B: Tensor | None, derivative: float
) -> Tensor:
    """Projection (K, K) of reduced components whose squared length is |z|^2 + derivative * |dx/dl|^2.

    x = loadings (scale z) + mean is the spectrum, dx/dl its difference quotient between neighbouring bands
    (DSTC's spectral derivative), in units in which it counts as much as z: the mean of its squared length
    over standard normal z is K. The projection is the Cholesky factor of I + derivative * D^T D.

    Args:
        loadings_BK: Of the used bands, in the order of wavelength.
        scale_K: Standard deviations of the components.
        wavelength_B: Of the used bands; None counts bands instead. Bands at the same wavelength have no
            slope.
        derivative: Weight of the slope.
    """
    spectrum_BK = loadings_BK.double() * scale_K.double()
    step = torch.ones(len(loadings_BK) - 1) if wavelength_B is None else wavelength_B.diff()
    apart = step > 0
    slope_BK = spectrum_BK.diff(dim=0)[apart] / step.double()[apart, None]
    gram_KK = slope_BK.T @ slope_BK
    identity = torch.eye(len(gram_KK), dtype=torch.float64)
    share = derivative * len(gram_KK) / gram_KK.trace().clamp(min=1e-300)
    projection_KK: Tensor = torch.linalg.cholesky(identity + share * gram_KK)
    return projection_KK.T.float()


class Clusters(NamedTuple):
    """Soft clusters of a region."""

    share_GPJ: Tensor
    """Share of each pixel in the nine tokens round its cell, row by row; 0 throughout without data."""
    token_hwF: Tensor
    """Tokens: projected features, then the position in cells from the cell's middle times the compactness."""


class Supertokens(nn.Module):
    """Clusters of pixels and their vote; ``projection`` may learn."""

    def __init__(self, config: SupertokenConfig, projection_EK: Tensor) -> None:
        super().__init__()
        self.config = config
        self.projection_EK = nn.Parameter(projection_EK.clone())

    def forward(self, cube_KHW: Tensor, valid_HW: Tensor) -> Clusters:
        """Cluster a region of whole cells; components without data must be finite."""
        cell, config = self.config.cell, self.config
        height, width = (side // cell for side in valid_HW.shape)
        mask_GP1 = cells(valid_HW[None].to(cube_KHW.dtype), cell)
        features_GPE = cells(cube_KHW, cell) @ self.projection_EK.T
        middle = (torch.arange(cell, device=cube_KHW.device, dtype=cube_KHW.dtype) + 0.5) / cell - 0.5
        place_P2 = torch.cartesian_prod(middle, middle) * config.compactness
        features_GPF = torch.cat([features_GPE, place_P2.expand(len(features_GPE), -1, -1)], dim=2) * mask_GP1
        count_G1 = mask_GP1.sum(dim=1)
        token_hwF = (features_GPF.sum(dim=1) / count_G1.clamp(min=1)).reshape(height, width, -1)
        there_GJ = _neighbours(count_G1.reshape(height, width, 1))[..., 0] > 0
        offset_J2 = torch.tensor(_ROUND, device=cube_KHW.device, dtype=cube_KHW.dtype) * config.compactness
        offset_JF = F.pad(offset_J2, (token_hwF.shape[2] - 2, 0))
        for _ in range(config.iterations):
            share_GPJ = self._share(features_GPF, token_hwF, offset_JF, there_GJ) * mask_GP1
            weight_GJ1 = share_GPJ.sum(dim=1)[..., None]
            sums_GJF = share_GPJ.transpose(1, 2) @ features_GPF - weight_GJ1 * offset_JF
            weight_hw1 = received(weight_GJ1, height, width)
            token_hwF = (received(sums_GJF, height, width) + token_hwF) / (weight_hw1 + 1)
        return Clusters(self._share(features_GPF, token_hwF, offset_JF, there_GJ) * mask_GP1, token_hwF)

    def _share(self, features_GPF: Tensor, token_hwF: Tensor, offset_JF: Tensor, there_GJ: Tensor) -> Tensor:
        """Softmax of minus the squared distances; the pixel's own squared length cancels in it."""
        token_GJF = _neighbours(token_hwF) + offset_JF
        logits_GPJ = 2 * features_GPF @ token_GJF.transpose(1, 2) - (token_GJF**2).sum(dim=2)[:, None]
        logits_GPJ = (logits_GPJ / self.config.temperature).masked_fill(~there_GJ[:, None], _FAR)
        return logits_GPJ.softmax(dim=2)

    def said(self, token_hwF: Tensor, mean_hwC: Tensor) -> Tensor:
        """What tokens say of the classes (h, w, C): the mean of their pixels' probabilities."""
        return mean_hwC

    def vote(self, cube_KHW: Tensor, probability_CHW: Tensor) -> Tensor:
        """Class probabilities (C, H, W) of pixels after the vote of their tokens.

        A pixel's are those of its tokens (``said``), by share, times its own to the power ``own``, made to
        add up to 1.

        Args:
            cube_KHW: Reduced components of a region of whole cells.
            probability_CHW: The pixels' own probabilities; 0 throughout where there is no data.
        """
        shape, cell = probability_CHW.shape, self.config.cell
        own_GPC = cells(probability_CHW, cell)
        clusters: Clusters = self(cube_KHW, probability_CHW.sum(dim=0) > 0)
        share_GPJ, token_hwF = clusters
        height, width = token_hwF.shape[:2]
        said_hwC = self.said(token_hwF, means(share_GPJ, own_GPC, height, width))
        mixed_GPC = (share_GPJ @ _neighbours(said_hwC)) * own_GPC**self.config.own
        mixed_GPC = mixed_GPC / mixed_GPC.sum(dim=2, keepdim=True).clamp(min=1e-30)
        return mixed_GPC.reshape(height, width, cell, cell, -1).permute(4, 0, 2, 1, 3).reshape(shape)


def means(share_GPJ: Tensor, values_GPC: Tensor, height: int, width: int) -> Tensor:
    """A token's mean (h, w, C) of its pixels' class probabilities, by share; 0 where they have none."""
    sums_hwC = received(share_GPJ.transpose(1, 2) @ values_GPC, height, width)
    return sums_hwC / sums_hwC.sum(dim=2, keepdim=True).clamp(min=1e-30)


def pixel_probabilities(position_HW: Tensor, confidence_HW: Tensor, classes: int) -> Tensor:
    """Probabilities (C, H, W) as a map keeps them: of the class shown, the rest shared by all others.

    Args:
        position_HW: Class positions, -1 = no data, which gets 0 throughout.
        confidence_HW: Probability of that class; one that a majority of members chose against the mean of
            their probabilities still counts as the likeliest.
        classes: C.
    """
    there = position_HW >= 0
    confidence_HW = confidence_HW.clamp(min=min(1.0, _LIKELIEST / classes))
    rest_HW = (1 - confidence_HW) / max(1, classes - 1) * there
    result = rest_HW.expand(classes, -1, -1).clone()
    chosen = torch.where(there, confidence_HW, 0.0)
    return result.scatter_(0, position_HW.clamp(min=0)[None], chosen[None])


def cells(values_CHW: Tensor, cell: int) -> Tensor:
    """(C, H, W) -> (G, P, C), cells and their pixels row by row."""
    count, height, width = values_CHW.shape
    split = values_CHW.reshape(count, height // cell, cell, width // cell, cell)
    return split.permute(1, 3, 2, 4, 0).reshape(-1, cell**2, count)


def _neighbours(values_hwX: Tensor) -> Tensor:
    """The nine cells' values round each cell: (G, J, X), zeros beyond the region."""
    height, width, _ = values_hwX.shape
    padded = F.pad(values_hwX, (0, 0, 1, 1, 1, 1))
    parts = [padded[1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in _ROUND]
    return torch.stack(parts, dim=2).flatten(0, 1)


def received(values_GJX: Tensor, height: int, width: int) -> Tensor:
    """Sums (h, w, X) of what the cells round each cell give it; the reverse of ``_neighbours``."""
    padded = F.pad(values_GJX.reshape(height, width, len(_ROUND), -1), (0, 0, 0, 0, 1, 1, 1, 1))
    parts = [padded[1 - y : 1 - y + height, 1 - x : 1 - x + width, j] for j, (y, x) in enumerate(_ROUND)]
    return torch.stack(parts).sum(dim=0)
