"""What a pixel and its surroundings reflect: reduced spectra, beside the diffusion features.

The decoder's features describe texture and place; how the material itself reflects is stated most
directly by the spectrum. Each pixel gets the means of the reduced cube over boxes of few radii round it
(radius 0 is its own spectrum), and openings and closings by such boxes, which tell narrow things from wide
ones. An addition of this project, by measurement (docs/accuracy.md). Convolutional classifiers (ssftt.py)
read the whole patch instead.
Shapes: N window, C component, W side of a window, S side of its block, E spectral feature, P side of a
patch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mtmsd.windows import PatchConfig

PROFILED = 4
"""Components that get openings and closings."""


def spectra_width(components: int, radii: Sequence[int], profiles: Sequence[int], patch: int) -> int:
    """E, the spectral features of a pixel.

    >>> spectra_width(6, [0, 1, 2, 4], [1, 2, 4], patch=0), spectra_width(6, [], [], patch=9)
    (48, 486)
    """
    if patch:
        return patch**2 * components
    return len(radii) * components + 2 * len(profiles) * min(components, PROFILED)


def spectra_round(
    windows_NCWW: Tensor, radii: Sequence[int], profiles: Sequence[int], patch: int, patches: PatchConfig
) -> Tensor:
    """Patches of side ``patch`` round each pixel of the blocks; 0: means over boxes, and profiles."""
    if patch:
        return patches_round(windows_NCWW, patch, patches)
    means = box_means(windows_NCWW, radii, patches)
    return torch.cat([means, box_profiles(windows_NCWW, profiles, patches)], dim=-1) if profiles else means


def box_means(windows_NCWW: Tensor, radii: Sequence[int], patches: PatchConfig) -> Tensor:
    """Means over boxes of (2 r + 1) squared pixels round each pixel of the windows' blocks: (N, S, S, E).

    Boxes end at the window's edge. No data counts as 0, the mean of every component.

    >>> window = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> box_means(window, [0, 1], PatchConfig(size=4, stride=2))[0, 0, 0].tolist()
    [5.0, 5.0]
    """
    means = [F.avg_pool2d(windows_NCWW, 2 * r + 1, 1, r, count_include_pad=False) for r in radii]
    return _of_blocks([windows_NCWW[:, :0], *means], patches)


def box_profiles(windows_NCWW: Tensor, radii: Sequence[int], patches: PatchConfig) -> Tensor:
    """Openings and closings of the first ``PROFILED`` components by boxes of (2 r + 1) squared pixels.

    What is brighter than its surroundings and narrower than the box is gone from the opening, what is darker
    from the closing: the morphological profile (Pesaresi & Benediktsson 2001), plain instead of by
    reconstruction, so that it reaches no further than 2 r pixels. Boxes end at the window's edge.

    >>> window = torch.zeros(1, 1, 6, 6)
    >>> window[..., 2, 2] = 7  # a bright pixel
    >>> box_profiles(window, [1], PatchConfig(size=6, stride=2))[0, 0, 0].tolist()
    [0.0, 7.0]
    """
    image, layers = windows_NCWW[:, :PROFILED], []
    for r in radii:
        layers += [_highest(-_highest(-image, r), r), -_highest(-_highest(image, r), r)]
    return _of_blocks(layers, patches)


def _highest(image_NCWW: Tensor, radius: int) -> Tensor:
    """The highest value in the box round each pixel."""
    side = 2 * radius + 1
    rows = F.max_pool2d(image_NCWW, (side, 1), 1, (radius, 0))
    return F.max_pool2d(rows, (1, side), 1, (0, radius))


def _of_blocks(layers_NCWW: Sequence[Tensor], patches: PatchConfig) -> Tensor:
    """The pixels of the windows' blocks, channels last."""
    inner = slice(patches.before, patches.before + patches.stride)
    return torch.cat([layer[:, :, inner, inner] for layer in layers_NCWW], dim=1).permute(0, 2, 3, 1)


def patches_round(windows_NCWW: Tensor, side: int, patches: PatchConfig) -> Tensor:
    """Patches round each pixel of the windows' blocks: (N, S, S, C, P, P), a view.

    Args:
        windows_NCWW: Reduced spectra, no data as 0.
        side: P, odd; half of it must not reach beyond the windows.
        patches: The geometry.

    >>> window = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> patches_round(window, 3, PatchConfig(size=4, stride=2))[0, 0, 1, 0].tolist()
    [[1.0, 2.0, 3.0], [5.0, 6.0, 7.0], [9.0, 10.0, 11.0]]
    """
    near = slice(patches.before - side // 2, patches.before + patches.stride + side // 2)
    around = windows_NCWW[:, :, near, near].unfold(2, side, 1).unfold(3, side, 1)
    return around.permute(0, 2, 3, 1, 4, 5)
