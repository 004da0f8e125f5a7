"""A classifier of supertokens, which learns from the class proportions of their training pixels.

After DSTC (Liu et al., ECCV 2024, arXiv 2407.07307): a token's soft label is the share of each class among
its labelled pixels, and the loss is the cross-entropy of the tokens' classes. DSTC's network reads features
of a backbone; here a token's features are its projected spectrum and the mean answer of its pixels, which
holds what the diffusion features say of them. The network corrects that mean, from which training begins,
so that an untrained one gives the vote (supertokens.py). Each token is classified by itself: what a pixel
depends on stays as near as it is for the vote.

Shapes as in supertokens.py; L hidden unit.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtmsd.supertokens import Clusters, SupertokenConfig, Supertokens, cells, means, received

_HIDDEN = 64
_RATE = 3e-3
"""Learning rate of Adam, which falls along a cosine to zero."""
_LEAST = 1e-4
"""Smallest probability whose logarithm the network reads and corrects."""


class TokenRegion(NamedTuple):
    """A region of whole cells with training pixels."""

    cube_KHW: Tensor
    """Reduced components, finite throughout."""
    probability_CHW: Tensor
    """The pixels' own class probabilities; 0 throughout where there is no data."""
    label_HW: Tensor
    """Class positions of training pixels, -1 elsewhere."""


class TokenClassifier(Supertokens):
    """Supertokens whose classes a small network says; the projection of the spectra learns with it."""

    def __init__(self, config: SupertokenConfig, projection_EK: Tensor, classes: int) -> None:
        super().__init__(config, projection_EK)
        last = nn.Linear(_HIDDEN, classes)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Linear(len(projection_EK) + classes, _HIDDEN), nn.ReLU(), last)

    def said(self, token_hwF: Tensor, mean_hwC: Tensor) -> Tensor:
        """Class probabilities of tokens (h, w, C); of those without pixels no matter what."""
        log_hwC = mean_hwC.clamp(min=_LEAST).log()
        spectrum_hwE = token_hwF[..., : len(self.projection_EK)]
        corrected: Tensor = log_hwC + self.layers(torch.cat([spectrum_hwE, log_hwC], dim=2))
        return corrected.softmax(dim=2)


def token_loss(tokens: Supertokens, region: TokenRegion) -> Tensor:
    """Cross-entropy of the tokens' classes with class-proportion soft labels, a mean over labelled pixels.

    A token's soft label is its labelled pixels' class shares; tokens weigh as many labelled pixels as they
    hold, those without any nothing. Gradients reach the network and, through tokens and shares, the
    projection.
    """
    cube_KHW, probability_CHW, label_HW = region
    valid_HW, cell = probability_CHW.sum(dim=0) > 0, tokens.config.cell
    clusters: Clusters = tokens(cube_KHW, valid_HW)
    share_GPJ, token_hwF = clusters
    height, width = token_hwF.shape[:2]
    mean_hwC = means(share_GPJ, cells(probability_CHW, cell), height, width)
    log_hwC = tokens.said(token_hwF, mean_hwC).clamp(min=1e-12).log()
    known_HW = (label_HW >= 0) & valid_HW
    onehot = F.one_hot(label_HW.clamp(min=0), len(probability_CHW)).to(cube_KHW.dtype) * known_HW[..., None]
    labels_GPC = cells(onehot.permute(2, 0, 1), cell)
    proportion_hwC = received(share_GPJ.transpose(1, 2) @ labels_GPC, height, width)
    return -(proportion_hwC * log_hwC).sum() / known_HW.sum().clamp(min=1)


def train_tokens(
    config: SupertokenConfig, projection_EK: Tensor, regions: Sequence[TokenRegion], seed: int
) -> tuple[TokenClassifier, list[float]]:
    """Train a classifier of tokens, ``config.steps`` steps of one region each; returns it and the losses.

    Weights and the order of the regions depend on the seed alone.
    """
    losses: list[float] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokens = TokenClassifier(config, projection_EK, len(regions[0].probability_CHW))
        optimizer = torch.optim.Adam(tokens.parameters(), lr=_RATE)
        while len(losses) < config.steps:
            for index in torch.randperm(len(regions)).tolist()[: config.steps - len(losses)]:
                for group in optimizer.param_groups:
                    group["lr"] = _RATE * (1 + math.cos(math.pi * len(losses) / config.steps)) / 2
                loss = token_loss(tokens, regions[index])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses.append(float(loss.detach()))
    return tokens.eval(), losses
