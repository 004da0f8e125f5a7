"""What a pixel and its surroundings reflect: mean reduced spectra of boxes, beside the diffusion features.

The decoder's features describe texture and place; how the material itself reflects is stated most
directly by the spectrum. Each pixel gets the means of the reduced cube over boxes of few radii round it;
radius 0 is its own spectrum. An addition of this project, by measurement (docs/accuracy.md).
Shapes: N window, C component, W side of a window, S side of its block, E = radii x components.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mtmsd.windows import PatchConfig


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
