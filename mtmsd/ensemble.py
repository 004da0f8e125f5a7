"""The ensemble: trained members that answer together, folded into few matrix products where that is known.

Shapes: M member, N P pixel, T timestep, K kept channel, H hidden unit, E spectral feature, C class,
V value of the evidence.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtmsd.classifier import Head, Member, Vote
from mtmsd.fusion import SelectiveFusion
from mtmsd.interpolation import Features


class Prediction(NamedTuple):
    """What the ensemble says of N pixels."""

    position_N: Tensor
    """Class position, 0-based."""
    confidence_N: Tensor
    """Mean probability of that class over the members, in [0, 1]."""
    entropy_N: Tensor
    """Entropy of the mean probabilities, nats, in [0, log C]."""


Answers = Callable[[slice, slice], Tensor]
"""Evidence (P, V) of some rows and columns of a block."""

_PIXELS = 128
"""Pixels that members without a folded form take at once."""

_LARGEST_VOTE = 110.0
"""Votes beyond, which no trained member is near, count as this one: 2^110 times T is still a float32."""


class Ensemble:
    """Members that answer together, each folded into few matrix products.

    Linear maps that follow each other are one: with h = ReLU(W1 u + b1), the vote of timestep t is
    v_t = A_t h + (Gp_t g_t + c_t). The bracket depends on the pooled features alone, so it is computed
    once for all pixels of a window. The members' first and last layers run as one batched product.

    The softmax over timesteps needs no maximum: A_t and the bracket are made to have zero mean over t,
    so that the largest vote is at least 0 and the sum of the exponentials at least T; and powers of two,
    with the factor log2(e) in the weights, cost a third of exponentials.

    Members must have been trained on the same pixels: they share the mean and scale of the features.
    Their logits are divided by ``temperature`` (calibration.py).
    """

    def __init__(self, members: Sequence[Member], vote: Vote, temperature: float = 1.0) -> None:
        first = members[0]
        if any(
            not (torch.equal(m.mean_2TK, first.mean_2TK) and torch.equal(m.scale_2TK, first.scale_2TK))
            for m in members
        ):
            raise ValueError("members of an ensemble must share the mean and scale of their features")
        self.vote, self.mean_2TK, self.scale_2TK = vote, members[0].mean_2TK, members[0].scale_2TK
        self._classes = members[0].sizes.classes
        with torch.no_grad():
            self._prepare(members, temperature)

    def _prepare(self, members: Sequence[Member], temperature: float) -> None:
        """Fold."""
        heads = [cast(Head, m) for m in members]
        fusions = [cast(SelectiveFusion, m.dy_att) for m in members]
        first = [cast(nn.Linear, fusion.fc[0]) for fusion in fusions]
        self._hidden = tuple(
            torch.cat([F.pad(p, ends, value=v) for p in parameters])
            for parameters, ends, v in (
                ([f.weight for f in first], (0, 0, 0, 1), 0.0),
                ([f.bias for f in first], (0, 1), 1.0),
            )
        )
        folded = [_fold_fusion(fusion) for fusion in fusions]
        self._lift_MTHK, self._guide_MTKK, self._constant_MTK = (
            torch.stack(parts) for parts in zip(*folded, strict=True)
        )
        self._reach_M = self._lift_MTHK[:, :, :-1].norm(dim=2).amax(dim=(1, 2))
        layers, spectra = zip(*(_fold_layers(head) for head in heads), strict=True)
        self._spectra_MEO = torch.stack(spectra)
        self._layers = [
            (torch.stack([w for w, _ in layer]), torch.stack([b for _, b in layer])[:, None])
            for layer in zip(*layers, strict=True)
        ]
        self._layers[-1] = self._layers[-1][0] / temperature, self._layers[-1][1] / temperature

    def window_votes(self, pooled_NTK: Tensor) -> Tensor:
        """What windows (or pixels) with these pooled features add to the votes: (M, T, N, K)."""
        pooled = ((pooled_NTK - self.mean_2TK[1]) * self.scale_2TK[1]).transpose(0, 1)
        votes = torch.matmul(pooled, self._guide_MTKK) + self._constant_MTK[:, :, None]
        return votes - votes.mean(dim=1, keepdim=True)

    @torch.inference_mode()
    def probabilities(self, centre_TPK: Tensor, votes_MTPK: Tensor, spectra_PE: Tensor) -> Tensor:
        """Class probabilities of pixels by each member: (M, P, C).

        Args:
            centre_TPK: Standardised centre features (``mean_2TK[0]``, ``scale_2TK[0]``).
            votes_MTPK: From ``window_votes``; one window's votes (M, T, 1, K) serve all its pixels.
            spectra_PE: Spectra, as they are.
        """
        weight, bias = self._hidden
        members, shared = len(votes_MTPK), votes_MTPK.shape[2] == 1
        self._lift_MTHK[:, :, -1] = votes_MTPK[:, :, 0] if shared else 0.0
        hidden = F.linear(centre_TPK.sum(dim=0), weight, bias).relu_()
        hidden_MPH = hidden.reshape(len(hidden), members, -1).transpose(0, 1)
        may_overflow = not shared or self._may_overflow(hidden_MPH, votes_MTPK)
        h = centre_TPK.new_zeros((members, *centre_TPK.shape[1:]))
        total, power = torch.zeros_like(h), torch.empty_like(h)
        for t, centre_PK in enumerate(centre_TPK):
            torch.bmm(hidden_MPH, self._lift_MTHK[:, t], out=power)
            if not shared:
                power += votes_MTPK[:, t]
            if may_overflow:
                power.clamp_(max=_LARGEST_VOTE)
            total += power.exp2_()
            h.addcmul_(power, centre_PK)
        h /= total
        for i, (weight_MIO, bias_M1O) in enumerate(self._layers):
            h = torch.baddbmm(bias_M1O, h if i == 0 else h.relu_(), weight_MIO)
            if i == 0:
                h += torch.matmul(spectra_PE, self._spectra_MEO)
        return h.softmax(dim=-1)

    def _may_overflow(self, hidden_MPH: Tensor, votes_MTPK: Tensor) -> bool:
        """Whether a vote could be too large: no scalar product exceeds its factors' lengths.

        Mostly not, which saves a pass over all votes. A GPU would have to wait for this.
        """
        if votes_MTPK.is_cuda:
            return True
        length_M = hidden_MPH[..., :-1].norm(dim=2).amax(dim=1)
        return bool((length_M * self._reach_M).amax() + votes_MTPK.amax() > 0.99 * _LARGEST_VOTE)

    @property
    def values(self) -> int:
        """V: values that a pixel's evidence has."""
        return self._classes * (2 if self.vote == "majority" else 1)

    @torch.inference_mode()
    def evidence(self, centre_TPK: Tensor, votes_MTPK: Tensor, spectra_PE: Tensor) -> Tensor:
        """What the members say of pixels (P, V); arguments as of ``probabilities``."""
        return evidence_of(self.probabilities(centre_TPK, votes_MTPK, spectra_PE), self.vote)

    def answers(self, features: Features, votes_MTNK: Tensor, window: int) -> Answers:
        """What the members say of the pixels of one window's block, some rows and columns at a time.

        Args:
            features: Of some windows.
            votes_MTNK: ``window_votes`` of the same windows.
            window: Which of them.
        """
        votes = votes_MTNK[:, :, window : window + 1]

        def answer(rows: slice, columns: slice) -> Tensor:
            at = window, rows, columns
            return self.evidence(features.region(*at), votes, features.spectra_region(*at))

        return answer

    def decide(self, evidence_PV: Tensor) -> Prediction:
        """Classes by evidence, or by a mean of evidence."""
        return decide(evidence_PV, self.vote)

    def classify(self, centre_TPK: Tensor, votes_MTPK: Tensor, spectra_PE: Tensor) -> Prediction:
        """Classify pixels; arguments as of ``probabilities``."""
        return self.decide(self.evidence(centre_TPK, votes_MTPK, spectra_PE))

    @torch.inference_mode()
    def __call__(self, centre_NTK: Tensor, pooled_NTK: Tensor, spectra_NE: Tensor) -> Prediction:
        """Classify pixels, each with pooled features of its own."""
        return self.decide(self.pixel_evidence(centre_NTK, pooled_NTK, spectra_NE))

    @torch.inference_mode()
    def pixel_evidence(self, centre_NTK: Tensor, pooled_NTK: Tensor, spectra_NE: Tensor) -> Tensor:
        """What the members say of pixels (N, V), each with pooled features of its own."""
        centre = ((centre_NTK - self.mean_2TK[0]) * self.scale_2TK[0]).transpose(0, 1)
        return self.evidence(centre, self.window_votes(pooled_NTK), spectra_NE)

    def mean_probabilities(self, evidence_PV: Tensor) -> Tensor:
        """The members' mean class probabilities (P, C), out of their evidence."""
        return evidence_PV[:, : self._classes]


class PlainEnsemble(Ensemble):
    """Members of any kind, each run as it was trained, on ``_PIXELS`` pixels at a time.

    The last pixels of a call are filled up, so that a pixel's answer does not depend on how many follow.
    ``window_votes`` are no votes here, but the standardised pooled features (1, T, N, K).
    """

    def _prepare(self, members: Sequence[Member], temperature: float) -> None:
        self._members, self._temperature = tuple(members), temperature

    def window_votes(self, pooled_NTK: Tensor) -> Tensor:
        """What windows (or pixels) share with their pixels: (1, T, N, K)."""
        return ((pooled_NTK - self.mean_2TK[1]) * self.scale_2TK[1]).transpose(0, 1)[None]

    @torch.inference_mode()
    def probabilities(self, centre_TPK: Tensor, votes_MTPK: Tensor, spectra_PE: Tensor) -> Tensor:
        """Class probabilities of pixels by each member: (M, P, C); arguments as the folded ensemble's."""
        pixels = centre_TPK.shape[1]
        pooled_TPK = votes_MTPK[0].expand(-1, pixels, -1)
        found = []
        for start in range(0, pixels, _PIXELS):
            at = torch.arange(start, start + _PIXELS, device=centre_TPK.device).clamp(max=pixels - 1)
            inputs = centre_TPK[:, at].transpose(0, 1), pooled_TPK[:, at].transpose(0, 1), spectra_PE[at]
            logits = torch.stack([member.logits(*inputs) for member in self._members])
            found.append((logits / self._temperature).softmax(dim=-1)[:, : pixels - start])
        return torch.cat(found, dim=1)


def assemble(members: Sequence[Member], vote: Vote, temperature: float = 1.0) -> Ensemble:
    """The cheapest ensemble for the members' kind."""
    folds = all(type(m) is Head and isinstance(m.dy_att, SelectiveFusion) for m in members)
    return (Ensemble if folds else PlainEnsemble)(members, vote, temperature)


def _fold_fusion(fusion: SelectiveFusion) -> tuple[Tensor, Tensor, Tensor]:
    """Lift (T, H + 1, K), guide (T, K, K) and constant (T, K): v_t = h lift_t + g_t guide_t + constant_t.

    Votes are in units of log 2. The lift has zero mean over timesteps and one more row, for what the
    pixels of a window share: the last of the hidden units is always 1.
    """
    weight, bias = _after_norm(cast(nn.BatchNorm1d, fusion.fc[2]), cast(nn.Linear, fusion.fc[3]))
    lifts, guides, constants = [], [], []
    for pair in zip(fusion.fcs, fusion.g_fcs, strict=True):
        lift, guide = (cast(nn.Linear, layer) for layer in pair)
        width = lift.weight.shape[0]
        from_hidden, from_pooled = guide.weight[:, :width], guide.weight[:, width:]
        through = from_hidden @ lift.weight
        lifts.append((through @ weight).T)
        guides.append(from_pooled.T)
        constants.append(through @ bias + from_hidden @ lift.bias + guide.bias)
    lift_THK, guide_TKK, constant_TK = (
        torch.stack(parts) * math.log2(math.e) for parts in (lifts, guides, constants)
    )
    return F.pad(lift_THK - lift_THK.mean(dim=0), (0, 0, 0, 1)), guide_TKK, constant_TK


def _fold_layers(head: Head) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Weights (I, O) and biases of the linear layers, each with the norm before it.

    The first layer's weights for the spectra come apart (E, O), with their mean and scale folded in.
    """
    folded: list[tuple[Tensor, Tensor]] = []
    norm: nn.BatchNorm1d | None = None
    for layer in head.layers:
        if isinstance(layer, nn.BatchNorm1d):
            norm = layer
        elif isinstance(layer, nn.Linear):
            weight, bias = (layer.weight, layer.bias) if norm is None else _after_norm(norm, layer)
            folded.append((weight.T, bias))
    weight, bias = folded[0]
    split = len(weight) - len(head.mean_E)
    spectra = weight[split:] * head.scale_E[:, None]
    folded[0] = weight[:split], bias - head.mean_E @ spectra
    return folded, spectra


def _after_norm(norm: nn.BatchNorm1d, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias of ``linear`` behind ``norm`` (as trained, not in training) as one linear map."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    return linear.weight * scale, linear.weight @ shift + linear.bias


def combine(probability_MNC: Tensor, vote: Vote) -> Prediction:
    """Join the members' probabilities. A tied vote goes to the higher mean."""
    return decide(evidence_of(probability_MNC, vote), vote)


def evidence_of(probability_MNC: Tensor, vote: Vote) -> Tensor:
    """Mean probabilities (N, C); for a majority also the share of members behind each class (N, 2 C)."""
    mean_NC = probability_MNC.mean(dim=0)
    if vote == "mean":
        return mean_NC
    ballots = F.one_hot(probability_MNC.argmax(dim=-1), mean_NC.shape[1]).sum(dim=0)
    return torch.cat([mean_NC, ballots + mean_NC / 2], dim=1)


def decide(evidence_NV: Tensor, vote: Vote) -> Prediction:
    """Classes by evidence."""
    classes = evidence_NV.shape[1] // (2 if vote == "majority" else 1)
    mean_NC, position = evidence_NV[:, :classes], evidence_NV[:, -classes:].argmax(dim=1)
    confidence = mean_NC.gather(1, position[:, None])[:, 0]
    return Prediction(position, confidence, torch.special.entr(mean_NC).sum(dim=1))
