"""The trained U-Net, read only and as cheap as exactness allows.

What depends on the timestep alone is computed once: the FiLM layers are folded into the weights of the
norms that they follow. Maps are kept channels last. Nothing behind the last tapped stage is computed,
and of that stage's last convolutions only what is read: samples near the pixels, and the spatial mean,
which is a linear function of sums over the map before them.

Shapes: N window, H W rows and columns, C I O channels; maps are (N, H, W, C).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtmsd.convolutions import Convolution, UpConvolution, edge_sums
from mtmsd.layers import Attention, Downsample, Upsample, timestep_embedding
from mtmsd.unet import ResBlock, UNet


class Stage:
    """A decoder stage of N windows, of which only what is asked for is computed."""

    def __init__(self, block: "Tensor | Opened", up: "UpConvolution | None" = None) -> None:
        self._block, self._up = block, up
        self.side = block.shape[1] * (2 if up else 1)

    def region(self, first: int, last: int) -> Tensor:
        """Rows and columns first..last (excluded): (N, last - first, last - first, C)."""
        if self._up is None:
            return self._part(first, last)
        y0, y1 = self._up.reads(first, last, self._block.shape[1])
        return self._up.region(self._part(y0, y1), y0, self._block.shape[1], first, last)

    def mean(self) -> Tensor:
        """Spatial mean (N, C), float32."""
        if self._up is None and isinstance(self._block, Tensor):
            return self._block.mean(dim=(1, 2), dtype=torch.float32)
        block = self._block
        sums = block.sums() if isinstance(block, Opened) else edge_sums(block, (0, -1))
        if self._up is not None:
            return self._up.mean(sums, self._block.shape[1])
        return sums[:, 0, 0] / self._block.shape[1] ** 2

    def _part(self, first: int, last: int) -> Tensor:
        if isinstance(self._block, Opened):
            return self._block.part(first, last)
        return self._block[:, first:last, first:last]


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
            self._interval = [unet.config.interval(t) for t in timesteps]
            self._decoders = {}
            for interval in set(self._interval):
                decoder = unet.decoder(interval)
                blocks = decoder.output_blocks[: taps[-1] + 1]
                up = [freeze(block, late=True) for block in blocks]
                self._decoders[interval] = freeze(decoder.middle_block), up

    @torch.inference_mode()
    def stages(self, x_NCHW: Tensor, step: int) -> list[Stage]:
        """The tapped stages of noisy windows, all at the ``step``-th of the given timesteps."""
        h = x_NCHW.permute(0, 2, 3, 1).to(self._stream).contiguous()
        skips, tapped = [], []
        for block in self._down:
            h = _run(block, h, step)
            skips.append(h)
        middle, up_blocks = self._decoders[self._interval[step]]
        h = _run(middle, h, step)
        for number, block in enumerate(up_blocks):
            h = torch.cat([h, skips.pop()], dim=-1)
            up = block[-1] if isinstance(block[-1], UpConvolution) else None
            if number == self.taps[-1]:
                assert isinstance(block[0], FrozenResBlock)
                tapped.append(Stage(block[0].opened(h, step), up))
                break
            h = _run(block, h, step)
            if number in self.taps:
                tapped.append(Stage(h))
        return tapped


class Opened:
    """A residual block's output that is not computed yet: its last convolution and skip are to come."""

    def __init__(self, inner_NHWI: Tensor, x_NHWC: Tensor, block: "FrozenResBlock") -> None:
        self._inner, self._x, self._block = inner_NHWI, x_NHWC, block
        self.shape = inner_NHWI.shape

    def whole(self) -> Tensor:
        """The map (N, H, W, O)."""
        return self._block.last(self._inner).add_(self._block.skip(self._x))

    def part(self, first: int, last: int) -> Tensor:
        """Rows and columns first..last (excluded); the map's middle half or less costs less than all."""
        inside = slice(first, last)
        if 2 * (last - first) > self.shape[1]:
            return self.whole()[:, inside, inside]
        skip = self._block.skip(self._x[:, inside, inside])
        return self._block.last.part(self._inner, first, last) + skip

    def sums(self) -> Tensor:
        """Sums over all, the first and the last row, and so of columns: (N, 3, 3, O)."""
        if self.shape[1] == 1:
            return edge_sums(self.whole(), (0, -1))
        x_N33C = self._block.skip(edge_sums(self._x, (0, -1)), exact=True)
        return x_N33C + self._block.last.sums(self._inner)


class _Freezer:
    """Turns the layers of a block into functions of maps (N, H, W, C)."""

    def __init__(self, embedding_TE: Tensor, dtype: torch.dtype, stream: torch.dtype) -> None:
        self._embedding, self._dtype, self._stream = embedding_TE, dtype, stream

    def __call__(self, block: nn.Module, *, late: bool = False) -> list["_Frozen"]:
        return [self._layer(layer, late) for layer in block.children()]

    def _layer(self, layer: nn.Module, late: bool) -> "_Frozen":
        if isinstance(layer, ResBlock):
            return FrozenResBlock(layer, self._embedding, self._dtype, self._stream, late=late)
        if isinstance(layer, Attention):
            return _FrozenAttention(layer, self._dtype, self._stream)
        if isinstance(layer, Upsample):
            return UpConvolution(layer.conv.weight, layer.conv.bias, self._dtype, self._stream)  # type: ignore[arg-type]
        conv = layer.op if isinstance(layer, Downsample) else layer
        assert isinstance(conv, nn.Conv2d)
        return Convolution(conv, self._dtype, self._stream)


class FrozenResBlock:
    """A residual block at given timesteps."""

    def __init__(
        self,
        block: ResBlock,
        embedding_TE: Tensor,
        dtype: torch.dtype,
        stream: torch.dtype,
        *,
        late: bool,
    ) -> None:
        first, second = block.in_layers[0], block.out_layers[0]
        assert isinstance(first, nn.GroupNorm)
        assert isinstance(second, nn.GroupNorm)
        self._groups = first.num_groups
        scale, shift = block.emb_layers(embedding_TE).chunk(2, dim=1)
        self._norm = first.weight.to(stream), first.bias.to(stream)
        self._film = (
            (second.weight * (1 + scale)).to(stream),
            (second.bias * (1 + scale) + shift).to(stream),
        )
        inner, last = block.in_layers[2], block.out_layers[3]
        assert isinstance(inner, nn.Conv2d)
        assert isinstance(last, nn.Conv2d)
        self._convolve = Convolution(inner, dtype, stream, late=late)
        skip = block.skip_connection
        self._skip = self._exact_skip = bias = None
        if isinstance(skip, nn.Conv2d):
            bias, weight = skip.bias, skip.weight.detach().flatten(1)
            self._skip, self._exact_skip = weight.to(dtype), weight.to(stream)
        self.last = Convolution(last, dtype, stream, also=bias, late=late)

    def __call__(self, x_NHWC: Tensor, step: int) -> Tensor:
        """The block's output (N, H, W, O) at the ``step``-th timestep."""
        return self.opened(x_NHWC, step).whole()

    def opened(self, x_NHWC: Tensor, step: int) -> Opened:
        """The block up to its last convolution."""
        scale, shift = self._film
        h = self._convolve(_norm_silu(x_NHWC, self._groups, *self._norm))
        return Opened(_norm_silu(h, self._groups, scale[step], shift[step]), x_NHWC, self)

    def skip(self, x_NHWC: Tensor, *, exact: bool = False) -> Tensor:
        """What goes past the convolutions (its bias is in the last one's): any shape (..., C)."""
        weight = self._exact_skip if exact else self._skip
        return x_NHWC if weight is None else F.linear(x_NHWC.to(weight.dtype), weight)


class _FrozenAttention:
    def __init__(self, layer: Attention, dtype: torch.dtype, stream: torch.dtype) -> None:
        self._heads, self._groups, self._dtype = layer.heads, layer.norm.num_groups, dtype
        self._norm = layer.norm.weight.to(stream), layer.norm.bias.to(stream)
        parts = layer.qkv.weight[..., 0], layer.qkv.bias, layer.proj_out.weight[..., 0], layer.proj_out.bias
        self._parts = [part.to(dtype) for part in parts if part is not None]

    def __call__(self, x_NHWC: Tensor) -> Tensor:
        qkv_weight, qkv_bias, out_weight, out_bias = self._parts
        n, height, width, c = x_NHWC.shape
        h = F.group_norm(x_NHWC.permute(0, 3, 1, 2), self._groups, *self._norm).permute(0, 2, 3, 1)
        qkv = F.linear(h.to(self._dtype), qkv_weight, qkv_bias).reshape(
            n, height * width, self._heads, 3, c // self._heads
        )
        q, k, v = qkv.permute(3, 0, 2, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x_NHWC.shape)
        return x_NHWC + F.linear(mixed, out_weight, out_bias)


_Frozen = FrozenResBlock | _FrozenAttention | Convolution | UpConvolution


def _norm_silu(x_NHWC: Tensor, groups: int, weight_C: Tensor, bias_C: Tensor) -> Tensor:
    normed = F.group_norm(x_NHWC.permute(0, 3, 1, 2), groups, weight_C, bias_C)
    return F.silu(normed, inplace=True).permute(0, 2, 3, 1)


def _run(block: Sequence[_Frozen], h_NHWC: Tensor, step: int) -> Tensor:
    for layer in block:
        h_NHWC = layer(h_NHWC, step) if isinstance(layer, FrozenResBlock) else layer(h_NHWC)
    return h_NHWC
