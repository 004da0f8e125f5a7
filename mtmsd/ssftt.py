"""A convolutional network with a spectral-spatial transformer behind it, after Sun et al. (TGRS 2022).

A patch of principal components passes a 3-D and a 2-D convolution; a tokenizer sums its pixels into four
tokens by weights that it learns; one transformer layer and a class token name the class of the pixel in the
middle. Written from the published description, but for the transformer's hidden layer of 64 in place of 8
(docs/log.md: 8 is no better). Two kinds of member use it: on the reduced cube alone, and
with the fused diffusion features as a further token. The reduced cube has unit variance, so patches
are not standardised.
Shapes: N patch (pixel), C component, P side of a patch, L pixel of the feature map, D width of a token,
T timestep, K kept channel, E = C x P x P.
"""

import torch
from torch import Tensor, nn

from mtmsd.classifier import ClassifierConfig, Dropout, Member, Sizes, begin_small
from mtmsd.fusion import Fusion

WIDTH, TOKENS, HEADS = 64, 4, 8


class SSFTT(nn.Module):
    """(N, C, P, P) whitened components, C at least 3 and P at least 7 -> logits.

    Args:
        components: C.
        classes: Logits.
        guests: Tokens from elsewhere that stand beside the patch's own.
    """

    def __init__(self, components: int, classes: int, guests: int = 0) -> None:
        super().__init__()
        self.spectral = nn.Sequential(nn.Conv3d(1, 8, 3), nn.BatchNorm3d(8), nn.ReLU())
        planes = 8 * (components - 2)
        self.spatial = nn.Sequential(nn.Conv2d(planes, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.assign, self.value = nn.Linear(WIDTH, TOKENS, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.place = nn.Parameter(0.02 * torch.randn(1, TOKENS + 1 + guests, WIDTH))
        self.transformer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, dim_feedforward=WIDTH, dropout=0.1, activation="gelu", batch_first=True,
            norm_first=True,
        )  # fmt: skip
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, patches_NCPP: Tensor, *guests_ND: Tensor) -> Tensor:
        """Logits (N, classes)."""
        h = self.spatial(self.spectral(patches_NCPP[:, None]).flatten(1, 2))
        pixels_NLD = h.flatten(2).transpose(1, 2)
        weights_NTL = self.assign(pixels_NLD).transpose(1, 2).softmax(dim=-1)
        tokens_NTD = weights_NTL @ self.value(pixels_NLD)
        first = self.class_token.expand(len(h), -1, -1)
        tokens = torch.cat([first, tokens_NTD, *(guest[:, None] for guest in guests_ND)], dim=1) + self.place
        return self.head(self.transformer(tokens)[:, 0])  # type: ignore[no-any-return]


class PatchMember(Member):
    """SSFTT on the patch of reduced spectra alone; diffusion features are not read."""

    reads_features = False
    reads_patches = True
    _guests = 0

    def __init__(self, config: ClassifierConfig, fusion: Fusion, sizes: Sizes) -> None:
        super().__init__(config, fusion, sizes)
        components = sizes.spectra // config.patch**2
        self._shape = components, config.patch, config.patch
        self.network = SSFTT(components, sizes.classes, self._guests)

    def logits(self, centre_NTK: Tensor, pooled_NTK: Tensor, spectra_NE: Tensor) -> Tensor:
        """Logits (N, C) from patches."""
        return self.network(self._patches(spectra_NE))  # type: ignore[no-any-return]

    def _patches(self, spectra_NE: Tensor) -> Tensor:
        return spectra_NE.reshape(len(spectra_NE), *self._shape)


class DiffusionPatchMember(PatchMember):
    """SSFTT with the fused diffusion features, brought to a token's width, beside the patch's tokens."""

    reads_features = True
    _guests = 1

    def __init__(self, config: ClassifierConfig, fusion: Fusion, sizes: Sizes) -> None:
        super().__init__(config, fusion, sizes)
        self.dropout, self.lift = Dropout(config.dropout), nn.Linear(fusion.width, WIDTH)
        begin_small(self.dy_att)

    def logits(self, centre_NTK: Tensor, pooled_NTK: Tensor, spectra_NE: Tensor) -> Tensor:
        """Logits (N, C) from standardised diffusion features and patches."""
        token = self.lift(self.dropout(self.dy_att(centre_NTK, pooled_NTK)))
        return self.network(self._patches(spectra_NE), token)  # type: ignore[no-any-return]
