"""3 x 3 convolutions on a CPU by minimal filtering: the same sums from fewer products.

Winograd's F(m x m, 3 x 3) as Lavin & Gray 2016 (arXiv 1509.09308) use it for networks: a tile of
(m + 2)^2 inputs gives m^2 outputs through (m + 2)^2 products per pair of channels, where the direct
way takes 9 m^2: a quarter for m = 4, 4/9 for m = 2. With B, G and A the transforms of one axis,

    Y = A^T [ (G w G^T) * (B^T d B) ] A,

and both transforms of the data are matrix products too, by kron(B^T, B^T) and kron(A^T, A^T).
In bfloat16 a convolution is off by 3e-3 directly, by 5e-3 with m = 2, by 1.5e-2 with m = 4.

Shapes: N sample, H W rows and columns, I O channels in and out.
"""

import torch
from torch import Tensor

_POINTS = {
    2: (0.0, 1.0, -1.0),
    4: (0.0, 0.625, -0.625, 1.5, -1.5),
}
"""Where the polynomials are evaluated (and at infinity), by tile: chosen for small bfloat16 errors."""
_PART_BYTES = 8 << 20
"""Transformed data of a part of the tiles that is worked on at once: it should stay in the cache."""


class Winograd:
    """A 3 x 3 convolution, padding 1, of maps whose sides are multiples of ``tile``."""

    def __init__(self, weight_OI33: Tensor, bias_O: Tensor, tile: int, dtype: torch.dtype) -> None:
        self.tile, self.dtype, self.bias_O = tile, dtype, bias_O.float()
        side = tile + 2
        g, b_t, a_t = _transforms(tile)
        inputs = weight_OI33.shape[1]
        self.weight_KIO = (
            torch.einsum("ak,oikl,bl->abio", g, weight_OI33.double(), g)
            .reshape(side**2, inputs, -1)
            .to(dtype)
            .contiguous()
        )
        self._into, self._back = (torch.kron(m, m).to(dtype) for m in (b_t, a_t))

    def __call__(self, x_NHWI: Tensor) -> Tensor:
        """(N, H, W, I) -> (N, H, W, O), float32."""
        n, height, width, inputs = x_NHWI.shape
        tile, side, outputs = self.tile, self.tile + 2, self.weight_KIO.shape[2]
        padded = torch.empty((n, height + 2, width + 2, inputs), dtype=self.dtype)
        for edge in (padded[:, 0], padded[:, -1], padded[:, :, 0], padded[:, :, -1]):
            edge.zero_()
        padded[:, 1:-1, 1:-1] = x_NHWI
        rows, columns = height // tile, width // tile
        along_n, along_y, along_x, _ = padded.stride()
        tiles = padded.as_strided(
            (side, side, n, rows, columns, inputs),
            (along_y, along_x, along_n, tile * along_y, tile * along_x, 1),
        )
        result = torch.empty((n, height, width, outputs))
        placed = result.view(n, rows, tile, columns, tile, outputs).permute(2, 4, 0, 1, 3, 5)
        row_bytes = side**2 * columns * max(inputs, outputs) * tiles.element_size()
        at_once = max(1, _PART_BYTES // row_bytes)
        samples, strip = max(1, at_once // rows), min(rows, at_once)
        for i in range(0, n, samples):
            for j in range(0, rows, strip):
                part = tiles[:, :, i : i + samples, j : j + strip]
                inner = torch.mm(self._into, part.reshape(side**2, -1))
                products = torch.bmm(inner.view(side**2, -1, inputs), self.weight_KIO)
                outer = torch.mm(self._back, products.view(side**2, -1))
                target = placed[:, :, i : i + samples, j : j + strip]
                torch.add(outer.view(target.shape), self.bias_O, out=target)
        return result


def _transforms(tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """G (m + 2, 3), B^T (m + 2, m + 2) and A^T (m, m + 2): Toom and Cook's, for points p_i and infinity.

    A filter and m outputs are evaluated as polynomials at the points; B^T is what makes it a convolution:
    the transposed inverse of the evaluation of m + 2 inputs. Rows of B^T are scaled to at most 1.
    """
    side = tile + 2
    points = torch.tensor(_POINTS[tile], dtype=torch.float64)

    def evaluate(coefficients: int) -> Tensor:
        infinity = torch.zeros((1, coefficients), dtype=torch.float64)
        infinity[0, -1] = 1
        return torch.cat([points[:, None] ** torch.arange(coefficients), infinity])

    b_t = torch.linalg.inv(evaluate(side)).T
    scale = b_t.abs().amax(dim=1, keepdim=True)
    return evaluate(3) * scale, b_t / scale, evaluate(tile).T
