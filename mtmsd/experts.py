"""Experts beside the ensemble: classifiers in closed form, each of one kind of input, and their joint answer.

An expert is kernel ridge regression of the classes' indicators (regularised least squares with a Gaussian
kernel; Rifkin, Yeo & Poggio 2003): f(x) = sum_i c_i exp(-gamma |z(x) - z_i|^2), (K + lambda I) c = Y - 1 / C.
Gamma, lambda and the factor that makes logits of the scores are chosen by the likelihood of held-out training
pixels. The answers are multiplied (a logarithmic opinion pool): far from all that it knows, along what its
training pixels differ in, an expert's answer is flat and the others decide; what lies across that it does not
see.
Shapes: N training pixel, A anchor, P pixel, T timestep, K kept channel, D input, R rank, E spectral feature,
C class, S set of folds.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtmsd.classifier import Sizes, standardisation
from mtmsd.ensemble import Answers, Ensemble
from mtmsd.interpolation import Features
from mtmsd.members import Pixels

INPUTS = ("features", "spectra")
"""What an expert may read: diffusion features of all timesteps, centre and pooled; or spectral features."""
ENSEMBLE_WEIGHT = 0.5
"""Power of the ensemble's probabilities; the experts share the rest."""
MAX_ANCHORS, MAX_RANK = 2000, 128
"""Training pixels that pixels are compared with, and numbers that are compared, at most."""
_RARE = 50
"""Of a class with so few training pixels all are anchors, where there are not too many classes."""
_WIDTHS = (0.1, 0.3, 1.0, 3.0)
"""Gammas, times 1 / (D variance)."""
_RIDGES = (1e-3, 1e-2, 1e-1)
_SHARPNESS = (3.0, 5.0, 8.0, 12.0, 20.0, 30.0)
"""Factors from scores to logits."""
_UNTESTED = (1.0, 1e-2, 8.0)
"""What is taken where no pixel can be held out."""
_ROUNDING, _TINY, _PIXELS = 1e-6, 1e-12, 512
_LOG2_E, _LEAST_BITS = math.log2(math.e), -60.0
"""Powers of two cost a third of exponentials; numbers below the normal ones, and their products, far more."""


class Expert(nn.Module):
    """Logits of pixels: their input under a linear map, against anchors."""

    map_DR: Tensor
    offset_R: Tensor
    anchor_AR: Tensor
    coefficient_AC: Tensor

    def __init__(self, inputs: int, rank: int, anchors: int, classes: int) -> None:
        super().__init__()
        shapes = {
            "map_DR": (inputs, rank), "offset_R": (rank,), "anchor_AR": (anchors, rank),
            "coefficient_AC": (anchors, classes),
        }  # fmt: skip
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> "Expert":
        """The expert whose ``state_dict`` these are."""
        (inputs, rank), (anchors, classes) = tensors["map_DR"].shape, tensors["coefficient_AC"].shape
        expert = Expert(inputs, rank, anchors, classes)
        expert.load_state_dict(dict(tensors))
        return expert

    def forward(self, x_PD: Tensor) -> Tensor:
        """Logits (P, C)."""
        return self.logits(x_PD @ self.map_DR)

    def logits(self, mapped_PR: Tensor) -> Tensor:
        """Logits (P, C) from the input under the map, without its offset."""
        lengths_A = self.anchor_AR.square().sum(dim=1)
        found = []
        for part_PR in torch.split(mapped_PR + self.offset_R, _PIXELS):
            apart_PA = torch.addmm(lengths_A, part_PR, self.anchor_AR.T, alpha=-2)
            apart_PA += part_PR.square().sum(dim=1, keepdim=True)
            bits_PA = apart_PA.mul_(-_LOG2_E).clamp_(min=_LEAST_BITS, max=0.0)
            found.append(bits_PA.exp2_() @ self.coefficient_AC)
        return torch.cat(found)


class Fitted(NamedTuple):
    """An expert, and what it says of training pixels whose classes it was not given.

    Where inputs are many, the map of them was made from all training pixels: of real test pixels it loses
    more than of these.
    """

    expert: Expert
    held_out_SNC: Tensor
    """Logits of each set of folds; NaN where a pixel was never held out."""


def input_width(name: str, sizes: Sizes) -> int:
    """D of the expert of this name, beside members of these sizes."""
    return sizes.spectra if name == "spectra" else 2 * sizes.timesteps * sum(sizes.stages)


def training_input(name: str, pixels: Pixels, standardise: bool) -> Tensor:
    """What an expert of this name reads of training pixels (N, D), standardised as their members see them."""
    if name == "spectra":
        return pixels.spectra_NE
    kinds = []
    for kind_NTK in pixels[:2]:
        mean_TK, scale_TK = standardisation(kind_NTK) if standardise else (0.0, 1.0)
        kinds.append(((kind_NTK - mean_TK) * scale_TK).flatten(1))
    return torch.cat(kinds, dim=1)


def fit_expert(x_ND: Tensor, position_N: Tensor, classes: int, folds: Sequence[Tensor]) -> Fitted:
    """Fit an expert to training pixels; float64 inside, no randomness.

    Args:
        x_ND: Inputs, as ``training_input`` gives them.
        position_N: Class positions, 0-based.
        classes: C.
        folds: One or more sets of folds (N,), as ``calibration.twin_folds`` gives them; -1: never held out.
    """
    anchors_A = _anchors(position_N, classes)
    x_AD, position_A = x_ND[anchors_A].double(), position_N[anchors_A]
    map_DR, offset_R = _map(x_AD)
    z_AR = x_AD @ map_DR + offset_R
    apart_AA = torch.cdist(z_AR, z_AR, compute_mode="donot_use_mm_for_euclid_dist").square()
    target_AC = F.one_hot(position_A, classes).double() - 1 / classes
    masks = [_masks(fold[anchors_A], position_A) for fold in folds]
    best, said = (float("inf"), *_UNTESTED), torch.full((len(folds), *target_AC.shape), torch.nan).double()
    for gamma, ridge in itertools.product(_WIDTHS, _RIDGES) if any(masks) else ():
        held_SAC = _held_out(torch.exp(-gamma * apart_AA), target_AC, ridge, masks)
        there_SA = held_SAC[..., 0].isfinite()
        truth = position_A.expand_as(there_SA)[there_SA]
        for sharp in _SHARPNESS:
            loss = float(F.cross_entropy(held_SAC[there_SA] * sharp, truth))
            if loss < best[0]:
                best, said = (loss, gamma, ridge, sharp), held_SAC * sharp
    _, gamma, ridge, sharp = best
    coefficient_AC = _solve(torch.exp(-gamma * apart_AA), target_AC, ridge) * sharp
    found = {"map_DR": map_DR, "offset_R": offset_R, "anchor_AR": z_AR}
    found = {name: value * gamma**0.5 for name, value in found.items()} | {"coefficient_AC": coefficient_AC}
    expert = Expert.of({name: value.float() for name, value in found.items()})
    held_out = torch.full((len(folds), len(position_N), classes), torch.nan)
    held_out[:, anchors_A.cpu()] = said.float().cpu()
    return Fitted(expert, held_out)


def _anchors(position_N: Tensor, classes: int) -> Tensor:
    """Indices, ascending, of all pixels, or of ``MAX_ANCHORS``: of each class at least ``_RARE`` (or all that
    it has), beyond that in proportion, spread evenly over the order of its pixels."""
    if len(position_N) <= MAX_ANCHORS:
        return torch.arange(len(position_N), device=position_N.device)
    count_C = position_N.bincount(minlength=classes)
    least_C = count_C.clamp(max=min(_RARE, MAX_ANCHORS // classes))
    more_C = count_C - least_C
    number_C = least_C + more_C * (MAX_ANCHORS - least_C.sum()) // more_C.sum()
    found = []
    for k, number in enumerate(number_C.tolist()):
        mine = (position_N == k).nonzero()[:, 0]
        spread = torch.linspace(0, len(mine) - 1, number, dtype=torch.float64)
        found.append(mine[spread.round().long().to(mine.device)])
    return torch.cat(found).sort().values


def _masks(fold_A: Tensor, position_A: Tensor) -> list[Tensor]:
    """Which anchors each fold holds out, but for classes that would keep none."""
    folds = [fold_A == k for k in range(int(fold_A.max()) + 1)]
    masks = [held_A & torch.isin(position_A, position_A[~held_A]) for held_A in folds]
    return [mask_A for mask_A in masks if mask_A.any()]


def _map(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Standardise, and divide so that pixels lie about sqrt(2) apart: weight (D, R) and offset (R,).

    Of more than ``MAX_RANK`` inputs the directions of largest variance are kept, as far as pixels span any.
    """
    mean_D, deviation_D = x_ND.mean(dim=0), x_ND.std(dim=0, correction=0)
    varies_D = deviation_D > _ROUNDING * (1 + mean_D.abs())
    scale_D = torch.where(varies_D, 1 / deviation_D, 0.0) / varies_D.sum().clamp(min=1).sqrt()
    if x_ND.shape[1] <= MAX_RANK:
        return torch.diag(scale_D), -mean_D * scale_D
    centred_ND = (x_ND - mean_D) * scale_D
    length_N, direction_NN = torch.linalg.eigh(centred_ND @ centred_ND.T)
    some_N = length_N > _ROUNDING * length_N[-1]
    some_N[:-MAX_RANK] = False
    basis_DR = centred_ND.T @ (direction_NN[:, some_N] / length_N[some_N].sqrt())
    map_DR = scale_D[:, None] * basis_DR
    return map_DR, -mean_D @ map_DR


def _solve(kernel_AA: Tensor, target_AC: Tensor, ridge: float) -> Tensor:
    identity = torch.eye(len(kernel_AA), dtype=kernel_AA.dtype, device=kernel_AA.device)
    return torch.cholesky_solve(target_AC, torch.linalg.cholesky(kernel_AA + ridge * identity))


def _held_out(
    kernel_AA: Tensor, target_AC: Tensor, ridge: float, masks: Sequence[Sequence[Tensor]]
) -> Tensor:
    """Scores (S, A, C) of pixels by fits without their fold; NaN where they are in none."""
    scores = torch.full(
        (len(masks), *target_AC.shape), torch.nan, dtype=kernel_AA.dtype, device=kernel_AA.device
    )
    for found_AC, held in zip(scores, masks, strict=True):
        for mask_A in held:
            kept_A = ~mask_A
            weights = _solve(kernel_AA[kept_A][:, kept_A], target_AC[kept_A], ridge)
            found_AC[mask_A] = kernel_AA[mask_A][:, kept_A] @ weights
    return scores


def pool(ensemble_NC: Tensor, logits: Sequence[Tensor]) -> Tensor:
    """Probabilities (N, C) of the ensemble and the experts' logits (N, C) as one.

    >>> pool(torch.tensor([[0.5, 0.5]]), [torch.tensor([[0.8, 0.2]]).log()])
    tensor([[0.6667, 0.3333]])
    """
    mixed = ENSEMBLE_WEIGHT * ensemble_NC.clamp(min=_TINY).log()
    for one in logits:
        mixed = mixed + (1 - ENSEMBLE_WEIGHT) / len(logits) * one.log_softmax(dim=1)
    return mixed.softmax(dim=1)


class Committee(Ensemble):
    """An ensemble whose mean probabilities are pooled with those of experts, by name of their input.

    ``window_votes`` have one row more than the ensemble's: the standardised pooled features themselves.
    """

    def __init__(self, ensemble: Ensemble, experts: Mapping[str, Expert]) -> None:
        if ensemble.vote != "mean":
            raise ValueError(f"experts go with an ensemble whose vote is mean, found {ensemble.vote}")
        self._ensemble, self._experts, self.vote = ensemble, dict(experts), ensemble.vote
        self.mean_2TK, self.scale_2TK = ensemble.mean_2TK, ensemble.scale_2TK
        self._classes = ensemble.values

    def window_votes(self, pooled_NTK: Tensor) -> Tensor:
        """What windows (or pixels) share with their pixels: (M + 1, T, N, K)."""
        pooled = ((pooled_NTK - self.mean_2TK[1]) * self.scale_2TK[1]).transpose(0, 1)
        return torch.cat([self._ensemble.window_votes(pooled_NTK), pooled[None]])

    @torch.inference_mode()
    def probabilities(self, centre_TPK: Tensor, votes_MTPK: Tensor, spectra_PE: Tensor) -> Tensor:
        """Class probabilities of pixels by all together: (1, P, C); arguments as of the ensemble's."""
        mapped_PR = None
        if "features" in self._experts:
            of_centre_TKR, mapped_PR = self._mapped(votes_MTPK[-1])
            for centre_PK, part_KR in zip(centre_TPK, of_centre_TKR, strict=True):
                mapped_PR = torch.addmm(mapped_PR, centre_PK, part_KR)
        return self._together(centre_TPK, votes_MTPK, spectra_PE, mapped_PR)[None]

    def answers(self, features: Features, votes_MTNK: Tensor, window: int) -> Answers:
        """As the ensemble's; the features' expert maps a window's samples before they are interpolated."""
        votes, mapped_QQR = votes_MTNK[:, :, window : window + 1], None
        if "features" in self._experts:
            of_centre_TKR, of_pooled_1R = self._mapped(votes[-1])
            mapped_QQR = features.mapped(window, of_centre_TKR) + of_pooled_1R

        @torch.inference_mode()
        def answer(rows: slice, columns: slice) -> Tensor:
            at = window, rows, columns
            mapped = None if mapped_QQR is None else mapped_QQR[rows, columns].flatten(0, 1)
            return self._together(features.region(*at), votes, features.spectra_region(*at), mapped)

        return answer

    def _mapped(self, pooled_TPK: Tensor) -> tuple[Tensor, Tensor]:
        """The features' expert's map of centre features (T, K, R), and pooled ones mapped (P, R)."""
        shape = 2, *pooled_TPK.shape[::2], -1
        of_centre_TKR, of_pooled_TKR = self._experts["features"].map_DR.reshape(shape)
        return of_centre_TKR, (pooled_TPK @ of_pooled_TKR).sum(dim=0)

    def _together(
        self, centre_TPK: Tensor, votes_MTPK: Tensor, spectra_PE: Tensor, mapped_PR: Tensor | None
    ) -> Tensor:
        """Class probabilities (P, C), with the features as their expert maps them."""
        mean = self._ensemble.probabilities(centre_TPK, votes_MTPK[:-1], spectra_PE).mean(dim=0)
        said = []
        for name, expert in self._experts.items():
            if name == "features":
                assert mapped_PR is not None
                said.append(expert.logits(mapped_PR))
            else:
                said.append(expert(spectra_PE))
        return pool(mean, said)
