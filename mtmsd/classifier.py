"""The classifier on fused features, one member of an ensemble, and what every kind of member has.

Other kinds have a file each and a line in heads.py.
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

from mtmsd.checks import check_ranges
from mtmsd.fusion import Fusion

Vote = Literal["majority", "mean"]
_ROUNDING = 1e-6
"""A feature that varies less over the training pixels, relative to its size, says nothing: it counts as 0
everywhere, or the smallest difference elsewhere would outweigh all others."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The head, its training, and the ensemble."""

    kind: str = "mlp"
    """``mlp`` (MTMSD); ``ssftt``, on patches of the reduced cube alone; ``diffusion_ssftt``, on patches and
    the fused features (ssftt.py)."""
    patch: int = 13
    """``ssftt`` and ``diffusion_ssftt``: side of the patch of reduced spectra round a pixel, pixels; odd."""
    members: int = 5
    """Members of the ensemble."""
    vote: Vote = "mean"
    """How members agree: majority of their classes (the paper), or mean of their probabilities."""
    hidden: tuple[int, ...] = (128, 32)
    """Widths of the hidden layers of ``mlp``."""
    standardise: bool = True
    """Bring every feature to zero mean and unit variance over the training pixels."""
    dropout: float = 0.5
    """Dropout on the fused features and the spectra."""
    label_smoothing: float = 0.1
    """Share of a label that is spread over all classes."""
    epochs: int = 100
    """Passes over the training pixels, where they take no more than ``steps``."""
    steps: int | None = 8000
    """Steps at most: many training pixels are passed over fewer times, but once (null, as the paper: any
    number)."""
    batch: int = 64
    """Training pixels per step."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW; falls to ``final_rate`` along a cosine."""
    final_rate: float = 5e-6
    """Learning rate at the end."""
    weight_decay: float = 0.05
    """Weight decay of AdamW."""
    patience: int | None = None
    """Steps without a smaller loss of a batch, counted from the eleventh epoch on, that end the training of a
    member (the paper: 1,000); absent: none does."""
    calibrate: bool = True
    """Scale the logits by one temperature, fitted on held-out training pixels, so that confidence is the
    share that is right (costs as many trainings again, on splits by blocks twice as many; the paper: no)."""
    experts: tuple[Literal["features", "spectra"], ...] = ("features", "spectra")
    """Kernel classifiers (experts.py) whose answers are multiplied with the ensemble's: of the diffusion
    features, of the spectral features; only beside ``mlp`` with ``vote: mean``, and where there are such
    features (the paper: none)."""
    set_level: float = 0.95
    """Share of the pixels whose set of possible classes (conformal.py) is to hold the true one; with
    ``calibrate``."""

    def __post_init__(self) -> None:
        """Refuse an empty ensemble or training."""
        check_ranges(
            "classifier", self, members="[1, inf)", hidden="[1, inf)", dropout="[0, 1)",
            label_smoothing="[0, 1)", epochs="[1, inf)", steps="[1, inf)", batch="[2, inf)",
            learning_rate="[0, inf)", final_rate="[0, inf)", weight_decay="[0, inf)", patience="[1, inf)",
            set_level="(0, 1)",
        )  # fmt: skip
        if len(set(self.experts)) < len(self.experts):
            raise ValueError(f"classifier.experts names one twice: {', '.join(self.experts)}")
        if self.patch < 7 or self.patch % 2 == 0:
            raise ValueError(
                f"classifier.patch must be odd, for the pixel lies in its middle, and at least 7, for the "
                f"convolutions take 4 and tokens are made of several pixels; found {self.patch}"
            )

    def passes(self, pixels: int) -> int:
        """Epochs over so many training pixels.

        >>> [ClassifierConfig(epochs=100, batch=64, steps=8000).passes(n) for n in (50, 5120, 12800, 10**6)]
        [100, 100, 40, 1]
        """
        each = max(1, pixels // self.batch)
        return self.epochs if self.steps is None else min(self.epochs, max(1, self.steps // each))


@dataclass(frozen=True)
class Sizes:
    """What a member reads of a pixel, and how many classes it tells apart."""

    timesteps: int
    """T."""
    stages: tuple[int, ...]
    """Kept channels of each tapped stage, of the centre features; K together."""
    classes: int
    """C."""
    spectra: int = 0
    """E."""


class Member(nn.Module):
    """What all kinds share: a fusion, the features' mean and scale; features in, logits out."""

    reads_features = True
    """Whether it reads diffusion features."""
    reads_patches = False
    """Whether its spectra are a patch of reduced spectra, (component, row, column) in one axis."""
    mean_2TK: Tensor
    scale_2TK: Tensor

    def __init__(self, config: ClassifierConfig, fusion: Fusion, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, self.dy_att = sizes, fusion
        self._scale_as("2TK", (2, sizes.timesteps, sum(sizes.stages)), config.standardise)

    def forward(self, centre_NTK: Tensor, pooled_NTK: Tensor, spectra_NE: Tensor) -> Tensor:
        """Logits (N, C)."""
        centre = (centre_NTK - self.mean_2TK[0]) * self.scale_2TK[0]
        return self.logits(centre, (pooled_NTK - self.mean_2TK[1]) * self.scale_2TK[1], spectra_NE)

    def logits(self, centre_NTK: Tensor, pooled_NTK: Tensor, spectra_NE: Tensor) -> Tensor:
        """Logits (N, C) from standardised diffusion features, and spectra as they are."""
        raise NotImplementedError

    @torch.no_grad()
    def standardise(self, centre_NTK: Tensor, pooled_NTK: Tensor, spectra_NE: Tensor) -> None:
        """Take mean and scale of the features from these pixels."""
        self._scale_to("2TK", torch.stack([centre_NTK, pooled_NTK], dim=1))

    def _scale_as(self, name: str, shape: tuple[int, ...], stored: bool) -> None:
        self.register_buffer(f"mean_{name}", torch.zeros(shape), persistent=stored)
        self.register_buffer(f"scale_{name}", torch.ones(shape), persistent=stored)

    def _scale_to(self, name: str, features: Tensor) -> None:
        if not features.numel():
            return  # nothing is read
        for part, values in zip(("mean", "scale"), standardisation(features), strict=True):
            getattr(self, f"{part}_{name}").copy_(values)


def standardisation(features_N: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the pixels, and the factor that gives unit variance; 0 where nothing varies."""
    mean, deviation = features_N.mean(dim=0), features_N.std(dim=0, correction=0)
    return mean, torch.where(deviation > _ROUNDING * (1 + mean.abs()), 1 / deviation, 0.0)


class Dropout(nn.Module):
    """Dropout whose mask the CPU draws, so that members come from the same draws on every device."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """In training a share of the values becomes 0 and the others make up for them; else as they are."""
        if not self.training or self.share == 0:
            return x
        kept = torch.empty(x.shape).bernoulli_(1 - self.share).div_(1 - self.share)
        return x * kept.to(x.device)


class Head(Member):
    """(Standardise ->) fuse timesteps, spectra beside them -> MLP -> logits.

    Fusion and layers carry the names of the authors' checkpoints (``dy_att``, ``layers``).
    """

    mean_E: Tensor
    scale_E: Tensor

    def __init__(self, config: ClassifierConfig, fusion: Fusion, sizes: Sizes) -> None:
        super().__init__(config, fusion, sizes)
        widths = [fusion.width + sizes.spectra, *config.hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.BatchNorm1d(outputs)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], sizes.classes))
        self.dropout = Dropout(config.dropout)
        self._scale_as("E", (sizes.spectra,), config.standardise)
        begin_small(self)

    def logits(self, centre_NTK: Tensor, pooled_NTK: Tensor, spectra_NE: Tensor) -> Tensor:
        """Logits (N, C) from standardised diffusion features, and spectra as they are."""
        spectra = (spectra_NE - self.mean_E) * self.scale_E
        inputs = torch.cat([self.dy_att(centre_NTK, pooled_NTK), spectra], dim=1)
        return self.layers(self.dropout(inputs))  # type: ignore[no-any-return]

    @torch.no_grad()
    def standardise(self, centre_NTK: Tensor, pooled_NTK: Tensor, spectra_NE: Tensor) -> None:
        """Take mean and scale of every feature from these pixels."""
        super().standardise(centre_NTK, pooled_NTK, spectra_NE)
        self._scale_to("E", spectra_NE)


def begin_small(network: nn.Module) -> None:
    """Linear layers as the paper begins them: weights of deviation 0.02, biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
