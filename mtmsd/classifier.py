"""The classifier on fused features, one member of an ensemble.

Source: MTMSD (arXiv 2306.08964): an MLP with batch normalisation on the fused features, several members
that differ in initialisation and order of the pixels. Added here, by measurement: features standardised
with the training pixels' statistics, spectra beside the fused features, dropout and weight decay, mean
probability instead of the vote.
Shapes: M member, N pixel, T timestep, K kept channel, E spectral feature, C class.
"""

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mtmsd.fusion import FusionConfig, SelectiveFusion

Vote = Literal["majority", "mean"]


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The head, its training, and the ensemble."""

    members: int = 5
    """Members of the ensemble."""
    vote: Vote = "mean"
    """How members agree: majority of their classes (the paper), or mean of their probabilities."""
    hidden: tuple[int, ...] = (128, 32)
    """Widths of the head's hidden layers."""
    standardise: bool = True
    """Bring every feature to zero mean and unit variance over the training pixels."""
    dropout: float = 0.5
    """Dropout on the fused features and the spectra."""
    label_smoothing: float = 0.1
    """Share of a label that is spread over all classes."""
    epochs: int = 100
    """Passes over the training pixels."""
    batch: int = 64
    """Training pixels per step."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW; falls to ``final_rate`` along a cosine."""
    final_rate: float = 5e-6
    """Learning rate at the end."""
    weight_decay: float = 0.05
    """Weight decay of AdamW."""
    calibrate: bool = True
    """Scale the logits by one temperature, fitted on held-out training pixels, so that confidence is the
    share that is right (costs as many trainings again; the paper: no)."""

    def __post_init__(self) -> None:
        """Refuse an empty ensemble or training."""
        for name, least in (("members", 1), ("epochs", 1), ("batch", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"classifier.{name} must be at least {least}, found {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"classifier.dropout must lie in [0, 1), found {self.dropout}")


class Head(nn.Module):
    """One member: (standardise ->) fuse timesteps, spectra beside them -> MLP -> logits.

    Fusion and layers carry the names of the authors' checkpoints (``dy_att``, ``layers``).
    """

    mean_2TK: Tensor
    scale_2TK: Tensor
    mean_E: Tensor
    scale_E: Tensor

    def __init__(
        self,
        config: ClassifierConfig,
        fusion: FusionConfig,
        timesteps: int,
        channels: int,
        classes: int,
        spectra: int = 0,
    ) -> None:
        super().__init__()
        self.dy_att = SelectiveFusion(fusion, timesteps, channels)
        widths = [channels + spectra, *config.hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.BatchNorm1d(outputs)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], classes))
        self.dropout = nn.Dropout(config.dropout)
        for name, shape in (("2TK", (2, timesteps, channels)), ("E", (spectra,))):
            self.register_buffer(f"mean_{name}", torch.zeros(shape), persistent=config.standardise)
            self.register_buffer(f"scale_{name}", torch.ones(shape), persistent=config.standardise)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, centre_NTK: Tensor, pooled_NTK: Tensor, spectra_NE: Tensor) -> Tensor:
        """Logits (N, C)."""
        centre = (centre_NTK - self.mean_2TK[0]) * self.scale_2TK[0]
        pooled = (pooled_NTK - self.mean_2TK[1]) * self.scale_2TK[1]
        inputs = torch.cat([self.dy_att(centre, pooled), (spectra_NE - self.mean_E) * self.scale_E], dim=1)
        return self.layers(self.dropout(inputs))  # type: ignore[no-any-return]

    @torch.no_grad()
    def standardise(self, centre_NTK: Tensor, pooled_NTK: Tensor, spectra_NE: Tensor) -> None:
        """Take mean and scale of every feature from these pixels."""
        for name, features in (("2TK", torch.stack([centre_NTK, pooled_NTK], dim=1)), ("E", spectra_NE)):
            getattr(self, f"mean_{name}").copy_(features.mean(dim=0))
            deviation = features.std(dim=0, correction=0).clamp(min=1e-6)
            getattr(self, f"scale_{name}").copy_(1 / deviation)
