"""The trained U-Net, read only and as cheap as exactness allows.

What depends on the timestep alone is computed once: the FiLM layers are folded into the weights of the
norms that they follow. Maps are kept channels last. Nothing behind the last tapped stage is computed,
and of that stage's up-convolution only what is read: samples near the pixels, and the spatial mean,
which is a linear function of sums over the map before it. A nearest-neighbour doubling followed by a
3 x 3 convolution is four 2 x 2 convolutions of the small map, one for each parity of row and column:
4 products in place of 9.

Shapes: N window, H W rows and columns, C I O channels; maps are (N, H, W, C).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtmsd.unet import Attention, Downsample, ResBlock, UNet, Upsample, timestep_embedding
from mtmsd.winograd import Winograd

Map = Callable[[Tensor], Tensor]


class Stage:
    """A decoder stage of N windows; its last up-convolution, where there is one, is not done yet."""

    def __init__(self, before_NHWC: Tensor, up: "UpConvolution | None") -> None:
        self._before, self._up = before_NHWC, up
        self.side = before_NHWC.shape[1] * (2 if up else 1)

    def region(self, first: int, last: int) -> Tensor:
        """Rows and columns first..last (excluded): (N, last - first, last - first, C)."""
        if self._up is None:
            return self._before[:, first:last, first:last]
        return self._up.region(self._before, first, last)

    def mean(self) -> Tensor:
        """Spatial mean (N, C), float32."""
        if self._up is None:
            return self._before.mean(dim=(1, 2), dtype=torch.float32)
        return self._up.mean(self._before)


class FrozenUNet:
    """Decoder stages of a trained U-Net at given timesteps, each sample as if it came alone.

    Args:
        unet: The trained network; it is not changed.
        timesteps: Timesteps that will be asked for.
        taps: Decoder stages that are returned, ascending.
        dtype: Arithmetic of the convolutions; on a CPU everything else is float32.
    """

    def __init__(self, unet: UNet, timesteps: Sequence[int], taps: Sequence[int], dtype: torch.dtype) -> None:
        unet.check_taps(taps)
        self.taps = tuple(taps)
        device = next(unet.parameters()).device
        self._stream = torch.float32 if device.type == "cpu" else dtype
        t = torch.tensor(timesteps, device=device)
        with torch.no_grad():
            embedding = unet.time_embed(timestep_embedding(t, unet.config.channels))
            freeze = _Freezer(embedding, dtype, self._stream)
            self._down = [freeze(block) for block in unet.input_blocks]
            self._middle = freeze(unet.middle_block)
            self._up = [freeze(block) for block in unet.output_blocks[: taps[-1] + 1]]

    @torch.inference_mode()
    def stages(self, x_NCHW: Tensor, step: int) -> list[Stage]:
        """The tapped stages of noisy windows, all at the ``step``-th of the given timesteps."""
        h = x_NCHW.permute(0, 2, 3, 1).to(self._stream).contiguous()
        skips, tapped = [], []
        for block in self._down:
            h = _run(block, h, step)
            skips.append(h)
        h = _run(self._middle, h, step)
        for number, block in enumerate(self._up):
            h = torch.cat([h, skips.pop()], dim=-1)
            last = block[-1] if isinstance(block[-1], UpConvolution) else None
            h = _run(block[:-1] if last else block, h, step)
            if number in self.taps:
                tapped.append(Stage(h, last))
            if last and number < self.taps[-1]:
                h = last(h)
                if number in self.taps:
                    tapped[-1] = Stage(h, None)
        return tapped


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
        self._taps_KIO = weight_OI33.float().permute(2, 3, 1, 0).flatten(0, 1)
        self._bias_O = bias_O.float()

    def __call__(self, x_NHWC: Tensor) -> Tensor:
        """(N, H, W, I) -> (N, 2H, 2W, O)."""
        return self.region(x_NHWC, 0, 2 * x_NHWC.shape[1])

    def region(self, x_NHWC: Tensor, first: int, last: int) -> Tensor:
        """Rows and columns first..last of the doubled map alone."""
        side = x_NHWC.shape[1]
        low, high = first // 2, (last + 1) // 2
        y0, y1 = max(low - 1, 0), min(high + 1, side)
        before, after = y0 - (low - 1), high + 1 - y1
        near = x_NHWC[:, y0:y1, y0:y1].permute(0, 3, 1, 2).to(self._dtype)
        if before or after:
            near = F.pad(near, (before, after, before, after))
        phases = F.conv2d(near, self._weight, self._bias).permute(0, 2, 3, 1)
        phases = phases.reshape(*phases.shape[:3], 2, 2, self._outputs)
        n, rows = len(x_NHWC), high - low
        result = torch.empty((n, 2 * rows, 2 * rows, self._outputs), dtype=self._stream, device=x_NHWC.device)
        for a in (0, 1):
            for b in (0, 1):
                result[:, a::2, b::2] = phases[:, a : a + rows, b : b + rows, a, b]
        return result[:, first - 2 * low : last - 2 * low, first - 2 * low : last - 2 * low]

    def mean(self, x_NHWC: Tensor) -> Tensor:
        """Spatial mean (N, O) of the result, from sums over the small map and its border."""
        x = x_NHWC.float()
        side, rows, columns = x.shape[1], x.sum(dim=2), x.sum(dim=1)
        total = 4 * rows.sum(dim=1)
        # A tap reads the doubled map shifted by one: all but its last (tap 0) or first (tap 2) line.
        lost = {0: -1, 2: 0}
        seen = []
        for k in range(3):
            for m in range(3):
                part = total.clone()
                if k in lost:
                    part -= 2 * rows[:, lost[k]]
                if m in lost:
                    part -= 2 * columns[:, lost[m]]
                if k in lost and m in lost:
                    part += x[:, lost[k], lost[m]]
                seen.append(part)
        sums = torch.einsum("kni,kio->no", torch.stack(seen), self._taps_KIO)
        return sums / (4 * side**2) + self._bias_O


class _Freezer:
    """Turns the layers of a block into functions of maps (N, H, W, C)."""

    def __init__(self, embedding_TE: Tensor, dtype: torch.dtype, stream: torch.dtype) -> None:
        self._embedding, self._dtype, self._stream = embedding_TE, dtype, stream

    def __call__(self, block: nn.Module) -> list["_Frozen"]:
        return [self._layer(layer) for layer in block.children()]

    def _layer(self, layer: nn.Module) -> "_Frozen":
        if isinstance(layer, ResBlock):
            return _FrozenResBlock(layer, self._embedding, self._dtype, self._stream)
        if isinstance(layer, Attention):
            return _FrozenAttention(layer, self._stream)
        if isinstance(layer, Upsample):
            return UpConvolution(layer.conv.weight, layer.conv.bias, self._dtype, self._stream)  # type: ignore[arg-type]
        conv = layer.op if isinstance(layer, Downsample) else layer
        assert isinstance(conv, nn.Conv2d)
        return _Convolution(conv, self._dtype, self._stream)


class _Convolution:
    """A 3 x 3 convolution: by minimal filtering on a CPU where that is faster, else by the library."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype, stream: torch.dtype) -> None:
        self._dtype, self._stream = dtype, stream
        self._weight = conv.weight.to(dtype).contiguous(memory_format=torch.channels_last)
        assert conv.bias is not None
        self._bias, self._stride = conv.bias.to(dtype), conv.stride[0]
        least = 128 if dtype == torch.float32 else 192
        self._fast = {
            tile: Winograd(conv.weight, conv.bias, tile, dtype)
            for tile in ((4, 2) if dtype == torch.float32 else (2,))
            if conv.weight.device.type == "cpu" and self._stride == 1 and conv.in_channels >= least
        }

    def __call__(self, x_NHWC: Tensor) -> Tensor:
        for tile, fast in self._fast.items():
            if x_NHWC.shape[1] % tile == 0 and x_NHWC.shape[2] % tile == 0:
                return fast(x_NHWC)
        x = x_NHWC.permute(0, 3, 1, 2).to(self._dtype)
        h = F.conv2d(x, self._weight, self._bias, stride=self._stride, padding=1)
        return h.permute(0, 2, 3, 1).to(self._stream)


class _FrozenResBlock:
    def __init__(
        self, block: ResBlock, embedding_TE: Tensor, dtype: torch.dtype, stream: torch.dtype
    ) -> None:
        first, second = block.in_layers[0], block.out_layers[0]
        assert isinstance(first, nn.GroupNorm)
        assert isinstance(second, nn.GroupNorm)
        self._groups, self._dtype = first.num_groups, dtype
        scale, shift = block.emb_layers(embedding_TE).chunk(2, dim=1)
        self._norm = first.weight.to(stream), first.bias.to(stream)
        self._film = (
            (second.weight * (1 + scale)).to(stream),
            (second.bias * (1 + scale) + shift).to(stream),
        )
        self._convolve = _Convolution(block.in_layers[2], dtype, stream)  # type: ignore[arg-type]
        self._and_again = _Convolution(block.out_layers[3], dtype, stream)  # type: ignore[arg-type]
        skip = block.skip_connection
        self._skip = None
        if isinstance(skip, nn.Conv2d):
            assert skip.bias is not None
            self._skip = skip.weight[:, :, 0, 0].to(dtype), skip.bias.to(dtype)

    def __call__(self, x_NHWC: Tensor, step: int) -> Tensor:
        scale, shift = self._film
        h = self._convolve(_norm_silu(x_NHWC, self._groups, *self._norm))
        h = self._and_again(_norm_silu(h, self._groups, scale[step], shift[step]))
        through = x_NHWC if self._skip is None else F.linear(x_NHWC.to(self._dtype), *self._skip)
        return h.add_(through)


class _FrozenAttention:
    def __init__(self, layer: Attention, stream: torch.dtype) -> None:
        self._heads, self._groups = layer.heads, layer.norm.num_groups
        parts = (layer.norm.weight, layer.norm.bias, layer.qkv.weight[..., 0], layer.qkv.bias,
                 layer.proj_out.weight[..., 0], layer.proj_out.bias)  # fmt: skip
        self._parts = [part.to(stream) for part in parts if part is not None]

    def __call__(self, x_NHWC: Tensor) -> Tensor:
        gain, bias, qkv_weight, qkv_bias, out_weight, out_bias = self._parts
        n, height, width, c = x_NHWC.shape
        h = F.group_norm(x_NHWC.permute(0, 3, 1, 2), self._groups, gain, bias).permute(0, 2, 3, 1)
        qkv = F.linear(h, qkv_weight, qkv_bias).reshape(n, height * width, self._heads, 3, c // self._heads)
        q, k, v = qkv.permute(3, 0, 2, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x_NHWC.shape)
        return x_NHWC + F.linear(mixed, out_weight, out_bias)


_Frozen = _FrozenResBlock | _FrozenAttention | _Convolution | UpConvolution


def _norm_silu(x_NHWC: Tensor, groups: int, weight_C: Tensor, bias_C: Tensor) -> Tensor:
    normed = F.group_norm(x_NHWC.permute(0, 3, 1, 2), groups, weight_C, bias_C)
    return F.silu(normed, inplace=True).permute(0, 2, 3, 1)


def _run(block: Sequence[_Frozen], h_NHWC: Tensor, step: int) -> Tensor:
    for layer in block:
        h_NHWC = layer(h_NHWC, step) if isinstance(layer, _FrozenResBlock) else layer(h_NHWC)
    return h_NHWC
