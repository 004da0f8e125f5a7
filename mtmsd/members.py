"""Training of the ensemble's members, and of their twins that leave training pixels out.

Shapes: N pixel, T timestep, K kept channel, E spectral feature, C class.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mtmsd.classifier import ClassifierConfig, Member, Sizes
from mtmsd.fusion import FusionConfig
from mtmsd.heads import make_member

History = list[dict[str, float]]
_SETTLING = 10
"""Epochs before patience counts."""


class Pixels(NamedTuple):
    """Training pixels: purified features, spectra, class position (0-based)."""

    centre_NTK: Tensor
    pooled_NTK: Tensor
    spectra_NE: Tensor
    position_N: Tensor

    def at(self, index: Tensor) -> "Pixels":
        """Some of the pixels, by index or mask."""
        return Pixels(*(values[index] for values in self))


def train_member(
    config: ClassifierConfig,
    fusion: FusionConfig,
    pixels: Pixels,
    sizes: Sizes,
    *,
    seed: int,
    member: int,
) -> tuple[Member, History]:
    """Train one member on all training pixels.

    The result depends on (seed, member) alone, but for the device's rounding, and for the dropout inside the
    transformer of ssftt.py, which the device draws.

    Returns:
        The member, and per epoch its mean loss and accuracy on the training batches.
    """
    n, device = len(pixels.position_N), pixels.position_N.device
    history = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed * 1_000_003 + member)
        head = make_member(config, fusion, sizes).to(device).train()
        if config.standardise:
            head.standardise(*pixels[:3])
        optimizer = torch.optim.AdamW(
            head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        batch, epochs, patience = min(config.batch, n), config.passes(n), _Patience(config.patience)
        for epoch in range(epochs):
            for group in optimizer.param_groups:
                group["lr"] = _cosine(config, epoch / epochs)
            order, losses, right = torch.randperm(n).to(device), [], 0
            for start in range(0, n - batch + 1, batch):
                *features, position = pixels.at(order[start : start + batch])
                logits = head(*features)
                loss = F.cross_entropy(logits, position, label_smoothing=config.label_smoothing)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses.append(float(loss.detach()))
                right += int((logits.argmax(dim=1) == position).sum())
                if epoch >= _SETTLING and patience.ends(losses[-1]):
                    break
            seen = len(losses)
            history.append({"loss": sum(losses) / seen, "train_accuracy": right / (seen * batch)})
            if patience.over:
                break
    return head.eval(), history


class _Patience:
    """Whether training goes on: not after so many batches in a row none of which had the smallest loss."""

    def __init__(self, batches: int | None) -> None:
        self._batches, self._best, self._since = batches, math.inf, 0

    def ends(self, loss: float) -> bool:
        """Whether the batch with this loss is the last one."""
        self._since = 0 if loss < self._best else self._since + 1
        self._best = min(self._best, loss)
        return self.over

    @property
    def over(self) -> bool:
        return self._batches is not None and self._since >= self._batches


def _cosine(config: ClassifierConfig, done: float) -> float:
    wave = (1 + math.cos(math.pi * done)) / 2
    return config.final_rate + (config.learning_rate - config.final_rate) * wave


def training_margin(member: Member, pixels: Pixels) -> float:
    """Mean gap between a member's two largest logits at the pixels that trained it."""
    first_N, second_N = _logits(member, pixels).topk(2).values.unbind(dim=1)
    return float((first_N - second_N).mean())


def held_out_logits(
    config: ClassifierConfig,
    fusion: FusionConfig,
    pixels: Pixels,
    sizes: Sizes,
    held_N: Tensor,
    *,
    seed: int,
    member: int,
) -> Tensor:
    """Logits (n, C) of the held-out pixels by a twin of a member that never saw them.

    Args:
        held_N: Which of the pixels are held out; every class must keep a pixel.
    """
    twin, _ = train_member(
        config, fusion, pixels.at(~held_N), sizes, seed=seed, member=config.members + member
    )
    return _logits(twin, pixels.at(held_N))


def _logits(member: Member, pixels: Pixels) -> Tensor:
    with torch.inference_mode():
        parts = torch.split(torch.arange(len(pixels.position_N)), 1024)
        return torch.cat([member(*pixels.at(part)[:3]) for part in parts])
