"""Convolutions of trained networks on maps (N, H, W, C): whole, in parts, or their sums alone.

A nearest-neighbour doubling followed by a 3 x 3 convolution is four 2 x 2 convolutions of the small map,
one for each parity of row and column: 4 products in place of 9. Sums of a convolution's result over rows
and columns are linear functions of such sums of its input: they need no convolution.

Shapes: N window, H W rows and columns, C I O channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtmsd.winograd import Winograd


class Convolution:
    """A 3 x 3 convolution: by minimal filtering on a CPU where that is faster, else by the library.

    Args:
        conv: The trained layer.
        dtype: Of the products.
        stream: Of what is returned.
        also: Added to the bias.
        late: Whether little follows, so that larger rounding errors are worth their gain.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        dtype: torch.dtype,
        stream: torch.dtype,
        *,
        also: Tensor | None = None,
        late: bool = False,
    ) -> None:
        self._dtype, self._stream = dtype, stream
        self._exact = conv.weight.detach()
        self._weight = conv.weight.to(dtype).contiguous(memory_format=torch.channels_last)
        assert conv.bias is not None
        self._bias_O = conv.bias if also is None else conv.bias + also
        self._bias, self._stride = self._bias_O.to(dtype), conv.stride[0]
        self._fast = {}
        if conv.weight.device.type == "cpu" and self._stride == 1:
            tiles = _tiles(conv.in_channels, dtype, late)
            self._fast = {tile: Winograd(conv.weight, self._bias_O, tile, dtype) for tile in tiles}

    def __call__(self, x_NHWC: Tensor) -> Tensor:
        """(N, H, W, I) -> (N, H, W, O)."""
        for tile, fast in self._fast.items():
            if x_NHWC.shape[1] % tile == 0 and x_NHWC.shape[2] % tile == 0:
                return fast(x_NHWC)
        return self._library(x_NHWC, 1)

    def part(self, x_NHWC: Tensor, first: int, last: int) -> Tensor:
        """Rows and columns first..last (excluded) of the result alone."""
        y0, y1 = max(first - 1, 0), min(last + 1, x_NHWC.shape[1])
        before, after = y0 - (first - 1), last + 1 - y1
        return self._library(F.pad(x_NHWC[:, y0:y1, y0:y1], (0, 0, before, after, before, after)), 0)

    def sums(self, x_NHWC: Tensor) -> Tensor:
        """Sums of the result over all, the first and the last row, and so of columns: (N, 3, 3, O).

        A tap of the first line reads its input one line before: all lines but the last, nothing, the last
        but one; so for the others.
        """
        lines = torch.zeros((3, 3, 5), device=x_NHWC.device)  # tap, result line, line of the input's sums
        for tap, reads in enumerate((({0: 1, 4: -1}, {}, {3: 1}), ({0: 1}, {1: 1}, {4: 1}),
                                     ({0: 1, 1: -1}, {2: 1}, {}))):  # fmt: skip
            for result, weights in enumerate(reads):
                for line, weight in weights.items():
                    lines[tap, result, line] = weight
        seen = torch.einsum("kru,mcv,nuvi->nrckmi", lines, lines, edge_sums(x_NHWC, (0, 1, -2, -1)))
        count = torch.tensor([x_NHWC.shape[1], 1.0, 1.0], device=x_NHWC.device)
        bias = count[:, None, None] * count[:, None] * self._bias_O.float()
        return torch.einsum("nrckmi,oikm->nrco", seen, self._exact.float()) + bias

    def _library(self, x_NHWC: Tensor, padding: int) -> Tensor:
        x = x_NHWC.permute(0, 3, 1, 2).to(self._dtype)
        h = F.conv2d(x, self._weight, self._bias, stride=self._stride, padding=padding)
        return h.permute(0, 2, 3, 1).to(self._stream)


def _tiles(inputs: int, dtype: torch.dtype, late: bool) -> tuple[int, ...]:
    """Sides of the tiles by which a convolution of ``inputs`` channels is fastest, the best first."""
    if dtype == torch.float32:
        return (4, 2) if inputs >= 128 else ()
    if inputs < 192:
        return ()
    return (4, 2) if late else (2,)


class UpConvolution:
    """Nearest-neighbour doubling and a 3 x 3 convolution, as four convolutions of the small map."""

    def __init__(self, weight_OI33: Tensor, bias_O: Tensor, dtype: torch.dtype, stream: torch.dtype) -> None:
        w, self._dtype, self._stream = weight_OI33.double(), dtype, stream
        even = torch.stack([w[:, :, 0], w[:, :, 1] + w[:, :, 2]], dim=2)
        odd = torch.stack([w[:, :, 0] + w[:, :, 1], w[:, :, 2]], dim=2)
        phases = [
            torch.stack(pair, dim=3)
            for rows in (even, odd)
            for pair in (
                (rows[..., 0], rows[..., 1] + rows[..., 2]),
                (rows[..., 0] + rows[..., 1], rows[..., 2]),
            )
        ]
        self._outputs = len(bias_O)
        self._weight = torch.cat(phases).to(dtype).contiguous(memory_format=torch.channels_last)
        self._bias = bias_O.repeat(4).to(dtype)
        self._taps_KMIO = weight_OI33.float().permute(2, 3, 1, 0)
        self._bias_O = bias_O.float()

    def __call__(self, x_NHWC: Tensor) -> Tensor:
        """(N, H, W, I) -> (N, 2H, 2W, O)."""
        side = x_NHWC.shape[1]
        return self.region(x_NHWC, 0, side, 0, 2 * side)

    def reads(self, first: int, last: int, side: int) -> tuple[int, int]:
        """Rows of a map of ``side`` samples that rows first..last of the doubled map are made from."""
        return max(first // 2 - 1, 0), min((last + 1) // 2 + 1, side)

    def region(self, near_NHWC: Tensor, y0: int, side: int, first: int, last: int) -> Tensor:
        """Rows and columns first..last of the doubled map alone.

        Args:
            near_NHWC: What ``reads`` names of the small map, of ``side`` samples; it begins at ``y0``.
            y0: The first row and column.
            side: Of the whole small map.
            first: Of the doubled map.
            last: Of the doubled map, excluded.
        """
        low, high = first // 2, (last + 1) // 2
        y1 = y0 + near_NHWC.shape[1]
        before, after = y0 - (low - 1), high + 1 - y1
        near = near_NHWC.permute(0, 3, 1, 2).to(self._dtype)
        if before or after:
            near = F.pad(near, (before, after, before, after))
        phases = F.conv2d(near, self._weight, self._bias).permute(0, 2, 3, 1)
        phases = phases.reshape(*phases.shape[:3], 2, 2, self._outputs)
        n, rows = len(near), high - low
        result = torch.empty((n, 2 * rows, 2 * rows, self._outputs), dtype=self._stream, device=near.device)
        for a in (0, 1):
            for b in (0, 1):
                result[:, a::2, b::2] = phases[:, a : a + rows, b : b + rows, a, b]
        return result[:, first - 2 * low : last - 2 * low, first - 2 * low : last - 2 * low]

    def mean(self, sums_N33C: Tensor, side: int) -> Tensor:
        """Spatial mean (N, O) of the result, from the small map's ``edge_sums``.

        A tap reads the doubled map shifted by one: all but its last (tap 0) or first (tap 2) line.
        """
        lines = torch.tensor([[2.0, 0, -1], [2, 0, 0], [2, -1, 0]], device=sums_N33C.device)
        seen = torch.einsum("ka,mb,nabi->nkmi", lines, lines, sums_N33C)
        return torch.einsum("nkmi,kmio->no", seen, self._taps_KMIO) / (4 * side**2) + self._bias_O


def edge_sums(x_NHWC: Tensor, lines: Sequence[int]) -> Tensor:
    """Sums of a map over all its rows and over single rows, and so of its columns: (N, 1 + L, 1 + L, C).

    >>> edge_sums(torch.arange(4.0).reshape(1, 2, 2, 1), lines=[0, -1])[0, :, :, 0].tolist()
    [[6.0, 2.0, 4.0], [1.0, 0.0, 1.0], [5.0, 2.0, 3.0]]
    """
    x = x_NHWC.float()
    rows = torch.stack([x.sum(dim=1), *(x[:, line] for line in lines)], dim=1)
    return torch.stack([rows.sum(dim=2), *(rows[:, :, line] for line in lines)], dim=2)
