"""Slow reference implementations, written from the formulas and independent of ``mtmsd``.

Plain loops and float64: what the tests compare the product with and what ``make_golden`` computes.
Sources: arXiv 2102.09672 (diffusion, U-Net) and arXiv 2306.08964 (features, purification, fusion).
"""

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

FloatArray = NDArray[np.float64]
State = Mapping[str, Tensor]
GROUPS, EPSILON = 32, 1e-5


def relative_error(value: ArrayLike, expected: ArrayLike) -> float:
    """Return the L2 norm of the difference over the norm of what was expected."""
    exact = np.asarray(expected, np.float64)
    return float(np.linalg.norm(np.asarray(value, np.float64) - exact) / np.linalg.norm(exact))


def recipe_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Fill a state dict from the tensors' names alone (the rule stands in tests/golden/README.md)."""
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
        elif name.endswith(("running_mean", "running_var")):
            state[name] = torch.full(tuple(shape), float(name.endswith("var")))
        else:
            k = np.arange(math.prod(shape), dtype=np.float64)
            wave = np.cos(12.9898 * k + zlib.crc32(name.encode()) % 10007).reshape(shape)
            if len(shape) > 1:
                wave /= math.sqrt(math.prod(shape[1:]))
            else:
                wave = 1 + 0.1 * wave if name.endswith("weight") else 0.1 * wave
            state[name] = torch.from_numpy(wave.astype(np.float32))
    return state


def random_weights(model: nn.Module, seed: int) -> None:
    """Give every parameter values as training leaves them: no layer is zero, norms are near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim > 1:
                value.copy_(noise / math.sqrt(math.prod(value.shape[1:])))
            else:
                value.copy_(0.1 * noise + float(name.endswith("weight")))


def alpha_bars(steps: int) -> list[float]:
    """Return the cosine schedule, eq. 17, with no step's variance above 0.999."""
    product, result = 1.0, []
    for i in range(steps):
        now = math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        after = math.cos(((i + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        product *= 1 - min(1 - after / now, 0.999)
        result.append(product)
    return result


def hybrid_loss(
    output: FloatArray,
    x0: FloatArray,
    t: Sequence[int],
    noise: FloatArray,
    valid: NDArray[np.bool_],
    steps: int,
) -> float:
    """Noise MSE + T / 1000 x variational term in bits: mean over each patch's valid values, then patches."""
    bars, total, counts = alpha_bars(steps), [0.0] * len(x0), [0] * len(x0)
    components = x0.shape[1]
    for n, c, i, j in np.ndindex(*x0.shape):
        if not valid[n, i, j]:
            continue
        k = t[n]
        bar, before = bars[k], bars[k - 1] if k else 1.0
        beta = 1 - bar / before
        guess_noise, v = float(output[n, c, i, j]), float(output[n, components + c, i, j])
        clean, eps = float(x0[n, c, i, j]), float(noise[n, c, i, j])
        x_t = math.sqrt(bar) * clean + math.sqrt(1 - bar) * eps
        guess = (x_t - math.sqrt(1 - bar) * guess_noise) / math.sqrt(bar)
        from_clean = math.sqrt(before) * beta / (1 - bar)
        from_noisy = math.sqrt(1 - beta) * (1 - before) / (1 - bar)
        mean = from_clean * guess + from_noisy * x_t
        at = max(k, 1)  # the posterior's variance at t = 0 is zero: that of t = 1 stands in
        posterior = (1 - bars[at] / bars[at - 1]) * (1 - bars[at - 1]) / (1 - bars[at])
        variance = beta ** ((v + 1) / 2) * posterior ** ((1 - v) / 2)
        if k:
            gap = from_clean * clean + from_noisy * x_t - mean
            nats = 0.5 * (math.log(variance / posterior) + (posterior + gap**2) / variance - 1)
        else:
            nats = 0.5 * (math.log(2 * math.pi * variance) + (clean - mean) ** 2 / variance)
        total[n] += (eps - guess_noise) ** 2 + steps / 1000 * nats / math.log(2)
        counts[n] += 1
    return sum(s / max(count, 1) for s, count in zip(total, counts, strict=True)) / len(x0)


def unet(state: State, x_NCHW: Tensor, t: int, heads: int = 4) -> tuple[list[Tensor], Tensor]:
    """Run the U-Net that a state dict describes.

    Returns:
        The outputs of all decoder stages, and the model's output, float64.
    """
    stages = unet_stages(state, x_NCHW, t, heads)
    p = {name: value.detach().double() for name, value in state.items()}
    return stages, _conv(p, "out.2", _silu(_norm(p, "out.0", stages[-1])))


def unet_stages(state: State, x_NCHW: Tensor, t: int, heads: int = 4, last: int = -1) -> list[Tensor]:
    """Return the outputs of the decoder stages up to ``last``, float64."""
    p = {name: value.detach().double() for name, value in state.items()}
    width = p["time_embed.0.weight"].shape[1]
    angles = [t * 10_000 ** (-i / (width // 2)) for i in range(width // 2)]
    waves = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    embedding = _linear(p, "time_embed.0", torch.tensor(waves, dtype=torch.float64))
    embedding = _linear(p, "time_embed.2", _silu(embedding))

    h, kept, stages = x_NCHW.double(), [], []
    for block in _children(p, "input_blocks"):
        h = _run(p, block, h, embedding, heads)
        kept.append(h)
    h = _run(p, "middle_block", h, embedding, heads)
    decoder = _children(p, "output_blocks")
    for block in decoder[: last % len(decoder) + 1]:
        h = _run(p, block, torch.cat([h, kept.pop()], dim=1), embedding, heads)
        stages.append(h)
    return stages


def _children(p: State, prefix: str) -> list[str]:
    dots = prefix.count(".") + 2
    names = {".".join(name.split(".")[:dots]) for name in p if name.startswith(f"{prefix}.")}
    return sorted(names, key=lambda name: int(name.rsplit(".", 1)[1]))


def _run(p: State, block: str, h: Tensor, embedding: Tensor, heads: int) -> Tensor:
    for layer in _children(p, block):
        if f"{layer}.in_layers.0.weight" in p:
            h = _residual(p, layer, h, embedding)
        elif f"{layer}.qkv.weight" in p:
            h = _attention(p, layer, h, heads)
        elif f"{layer}.op.weight" in p:
            h = _conv(p, f"{layer}.op", h, stride=2)
        elif f"{layer}.conv.weight" in p:
            h = _conv(p, f"{layer}.conv", h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
        else:
            h = _conv(p, layer, h)
    return h


def _residual(p: State, name: str, x: Tensor, embedding: Tensor) -> Tensor:
    h = _conv(p, f"{name}.in_layers.2", _silu(_norm(p, f"{name}.in_layers.0", x)))
    film = _linear(p, f"{name}.emb_layers.1", _silu(embedding))
    scale, shift = film[: len(film) // 2, None, None], film[len(film) // 2 :, None, None]
    h = _norm(p, f"{name}.out_layers.0", h) * (1 + scale) + shift
    h = _conv(p, f"{name}.out_layers.3", _silu(h))
    skip = f"{name}.skip_connection"
    return h + (_conv(p, skip, x) if f"{skip}.weight" in p else x)


def _attention(p: State, name: str, x: Tensor, heads: int) -> Tensor:
    n, channels = x.shape[:2]
    flat = _norm(p, f"{name}.norm", x).reshape(n, channels, -1)
    qkv = p[f"{name}.qkv.weight"][:, :, 0] @ flat + p[f"{name}.qkv.bias"][:, None]
    mixed, per_head = [], channels // heads
    for head in range(heads):
        start = 3 * per_head * head
        q, k, v = (qkv[:, start + i * per_head : start + (i + 1) * per_head] for i in range(3))
        score = torch.einsum("nci,ncj->nij", q, k) / math.sqrt(per_head)
        weight = score.exp() / score.exp().sum(dim=2, keepdim=True)
        mixed.append(torch.einsum("nij,ncj->nci", weight, v))
    out = p[f"{name}.proj_out.weight"][:, :, 0] @ torch.cat(mixed, dim=1)
    return x + (out + p[f"{name}.proj_out.bias"][:, None]).reshape(x.shape)


def _norm(p: State, name: str, x: Tensor) -> Tensor:
    grouped = x.reshape(len(x), GROUPS, -1)
    centred = grouped - grouped.mean(dim=2, keepdim=True)
    scaled = centred / ((centred**2).mean(dim=2, keepdim=True) + EPSILON).sqrt()
    return scaled.reshape(x.shape) * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]


def _conv(p: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = p[f"{name}.weight"]
    return F.conv2d(x, weight, p[f"{name}.bias"], stride, padding=weight.shape[-1] // 2)


def _linear(p: State, name: str, x: Tensor) -> Tensor:
    return p[f"{name}.weight"] @ x + p[f"{name}.bias"]


def _silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def features(
    state: State, x_NCWW: Tensor, noise_CWW: Tensor, timesteps: Sequence[int], stages: Sequence[int],
    block: slice,
) -> tuple[FloatArray, FloatArray]:  # fmt: skip
    """Upsample every tapped map to the window, then read it.

    Args:
        state: Of the U-Net.
        x_NCWW: Clean windows.
        noise_CWW: The noise of all windows and timesteps.
        timesteps: Of a process with 1,000 steps.
        stages: Decoder stages.
        block: Rows, and columns, that the window answers for.

    Returns:
        centre (N, P, T, D) and pooled (N, T, D).
    """
    bars, size = alpha_bars(1000), x_NCWW.shape[-1]
    centre, pooled = [], []
    for t in timesteps:
        x_t = math.sqrt(bars[t]) * x_NCWW.double() + math.sqrt(1 - bars[t]) * noise_CWW.double()
        maps = unet_stages(state, x_t, t, last=stages[-1])
        large = [F.interpolate(maps[s], (size, size), mode="bilinear", align_corners=False) for s in stages]
        upsampled = torch.cat(large, dim=1)
        centre.append(upsampled[:, :, block, block].flatten(2).transpose(1, 2))
        pooled.append(upsampled.mean(dim=(2, 3)))
    return torch.stack(centre, dim=2).numpy(), torch.stack(pooled, dim=1).numpy()


def purification_scores(means_KTD: FloatArray, similarity: float = 0.8, timestep: float = 0.5) -> FloatArray:
    """Score each channel by loops over pairs of classes and of timesteps; no constant features."""
    classes, steps, channels = means_KTD.shape

    def separation(values: FloatArray) -> float:
        b = ((values - values.min()) / (values.max() - values.min())).tolist()
        n = len(b)
        products = [b[i] * b[j] for i in range(n) for j in range(n) if i != j]
        variance = sum((value - sum(b) / n) ** 2 for value in b) / n
        return float(-similarity * sum(products) / (n * (n - 1)) + (1 - similarity) * variance)

    scores = np.zeros(channels)
    for d in range(channels):
        scores[d] = sum(separation(means_KTD[:, t, d]) for t in range(steps))
        scores[d] += timestep * sum(separation(means_KTD[k, :, d]) for k in range(classes))
    return scores


def fusion(state: State, centre_NTK: FloatArray, pooled_NTK: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Fuse timesteps pixel by pixel, batch normalisation in eval mode: weights (N, T, K), fused (N, K)."""
    p = {name: value.double().numpy() for name, value in state.items()}
    weights = np.zeros(centre_NTK.shape)
    for n, (x, g) in enumerate(zip(centre_NTK, pooled_NTK, strict=True)):
        hidden = np.maximum(p["fc.0.weight"] @ x.sum(axis=0) + p["fc.0.bias"], 0)
        z = p["fc.3.weight"] @ _batch_norm(p, "fc.2", hidden) + p["fc.3.bias"]
        for t in range(len(x)):
            lifted = p[f"fcs.{t}.weight"] @ z + p[f"fcs.{t}.bias"]
            weights[n, t] = p[f"g_fcs.{t}.weight"] @ np.concatenate([lifted, g[t]]) + p[f"g_fcs.{t}.bias"]
        weights[n] = np.exp(weights[n]) / np.exp(weights[n]).sum(axis=0)
    return weights, (weights * centre_NTK).sum(axis=1)


def head(state: State, fused_NK: FloatArray) -> FloatArray:
    """Run the layers of linear, ReLU and batch normalisation, and the last linear: logits (N, C)."""
    p = {name: value.double().numpy() for name, value in state.items()}
    linear = [int(name.split(".")[1]) for name in p if p[name].ndim == 2]
    logits = []
    for x in np.asarray(fused_NK, np.float64):
        for i in linear:
            x = p[f"layers.{i}.weight"] @ x + p[f"layers.{i}.bias"]
            if i != linear[-1]:
                x = _batch_norm(p, f"layers.{i + 2}", np.maximum(x, 0))
        logits.append(x)
    return np.stack(logits)


def _batch_norm(p: Mapping[str, FloatArray], name: str, x: FloatArray) -> FloatArray:
    scaled = (x - p[f"{name}.running_mean"]) / np.sqrt(p[f"{name}.running_var"] + EPSILON)
    return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]
