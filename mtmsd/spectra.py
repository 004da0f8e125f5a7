"""What a pixel and its surroundings reflect: reduced spectra, beside the diffusion features.

The decoder's features describe texture and place; how the material itself reflects is stated most
directly by the spectrum. Each pixel gets the means of the reduced cube over boxes of few radii round it;
radius 0 is its own spectrum. An addition of this project, by measurement (docs/accuracy.md). Convolutional
classifiers (ssftt.py) read the whole patch instead.
Shapes: N window, C component, W side of a window, S side of its block, E = radii x components, P side of a
patch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mtmsd.windows import PatchConfig


def spectra_round(
    windows_NCWW: Tensor, radii: Sequence[int], patch: int, patches: PatchConfig
) -> Tensor:  # fmt: skip
    """Patches of side ``patch`` round each pixel of the windows' blocks; 0: means over boxes."""
    return patches_round(windows_NCWW, patch, patches) if patch else box_means(windows_NCWW, radii, patches)


def box_means(windows_NCWW: Tensor, radii: Sequence[int], patches: PatchConfig) -> Tensor:
    """Means over boxes of (2 r + 1) squared pixels round each pixel of the windows' blocks: (N, S, S, E).

    Boxes end at the window's edge. No data counts as 0, the mean of every component.

    >>> window = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> box_means(window, [0, 1], PatchConfig(size=4, stride=2))[0, 0, 0].tolist()
    [5.0, 5.0]
    """
    means = [F.avg_pool2d(windows_NCWW, 2 * r + 1, 1, r, count_include_pad=False) for r in radii]
    stacked = torch.cat([windows_NCWW[:, :0], *means], dim=1)
    inner = slice(patches.before, patches.before + patches.stride)
    return stacked[:, :, inner, inner].permute(0, 2, 3, 1)


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
