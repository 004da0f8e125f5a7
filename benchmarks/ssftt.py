"""The network of mtmsd/ssftt.py as a peer, on patches of whitened principal components.

Shapes: N patch, C component, P side of a patch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mtmsd.ssftt import SSFTT

PATCH, COMPONENTS = 13, 30
_BATCH = 64


@dataclass(frozen=True)
class Training:
    """What is tuned."""

    learning_rate: float
    epochs: int


TRIALS = (Training(3e-4, 100), Training(1e-3, 100))
"""Fewer than the other peers get: each is a whole training."""


def whitened(
    cube_BHW: NDArray[np.float32], hidden_HW: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """At most ``COMPONENTS`` components of unit variance, zeros round them: (C, H + 12, W + 12).

    No data counts as the band's mean. Hidden pixels have components, but do not decide what they are.
    """
    bands = cube_BHW.reshape(len(cube_BHW), -1).astype(np.float64)
    seen = slice(None) if hidden_HW is None else ~hidden_HW.ravel()
    bands = bands[np.isfinite(bands[:, seen]).any(axis=1)]
    bands -= np.nanmean(bands[:, seen], axis=1, keepdims=True)
    bands = np.nan_to_num(bands)
    fit = bands[:, seen]
    values, vectors = np.linalg.eigh(fit @ fit.T / fit.shape[1])
    keep = min(COMPONENTS, int((values > values[-1] * 1e-12).sum()))
    scores = vectors[:, ::-1][:, :keep].T @ bands / np.sqrt(values[::-1][:keep, None])
    edge = PATCH // 2
    image = scores.reshape(keep, *cube_BHW.shape[1:]).astype(np.float32)
    return np.pad(image, ((0, 0), (edge, edge), (edge, edge)))


def patches_at(image_CHW: NDArray[np.float32], y: NDArray[np.int64], x: NDArray[np.int64]) -> Tensor:
    """Patches (N, C, P, P) round pixels of an image from ``whitened``."""
    found = [
        image_CHW[:, row : row + PATCH, column : column + PATCH] for row, column in zip(y, x, strict=True)
    ]
    return torch.from_numpy(np.stack(found))


def fit(patches_NCPP: Tensor, position_N: Tensor, classes: int, training: Training, seed: int) -> SSFTT:
    """Train with Adam; batches of 64, the last one of an epoch left out when it has one patch."""
    torch.manual_seed(seed)
    model = SSFTT(patches_NCPP.shape[1], classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate)
    for _ in range(training.epochs):
        order = torch.randperm(len(position_N))
        for at in torch.split(order, _BATCH):
            if len(at) > 1:
                loss = F.cross_entropy(model(patches_NCPP[at]), position_N[at])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return model.eval()


def tuned(
    image_CHW: NDArray[np.float32], y: NDArray[np.int64], x: NDArray[np.int64], position_N: NDArray[np.int64],
    folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> tuple[SSFTT, Training]:  # fmt: skip
    """Choose a trial on the first fold of the training pixels, then train on all of them."""
    patches, classes = patches_at(image_CHW, y, x), int(position_N.max()) + 1
    position = torch.from_numpy(position_N)
    best = TRIALS[0]
    if folds:
        inside, held = folds[0]
        scores = [
            float((predict(fit(patches[inside], position[inside], classes, trial, seed=0), image_CHW,
                           y[held], x[held]) == position_N[held]).mean())
            for trial in TRIALS
        ]  # fmt: skip
        best = TRIALS[int(np.argmax(scores))]
    return fit(patches, position, classes, best, seed=0), best


@torch.inference_mode()
def predict(
    model: SSFTT, image_CHW: NDArray[np.float32], y: NDArray[np.int64], x: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Class positions of pixels."""
    parts = np.array_split(np.arange(len(y)), max(1, len(y) // 256))
    return np.concatenate([model(patches_at(image_CHW, y[p], x[p])).argmax(dim=1).numpy() for p in parts])
