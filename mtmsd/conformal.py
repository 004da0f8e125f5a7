"""Sets of classes that hold the truth as often as was asked for, where a single class would promise too much.

Source: split conformal prediction by cumulated probability, Romano et al. 2020 (arXiv 2006.02544), without
its randomisation. A class's score is the probability of all classes likelier than it; the set of a pixel is
the classes whose score is at most the quantile of the true classes' scores over pixels that did not train.
The likeliest class has score 0, so no set is empty, and a set is that class alone where its probability is
above the quantile.

The promise is for pixels that are like the held-out ones. Those elsewhere in the scene are not quite, and
the held-out ones were judged by a single member: hence coverage is measured on the test pixels.
Shapes: N pixel, C class.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mtmsd.experts import pool


class HeldOut(NamedTuple):
    """What members' twins say of training pixels that they were not given; a pixel may stand here twice."""

    logits: Tensor
    """(N, C)."""
    position: Tensor
    """Classes (N)."""
    kind: Tensor
    """Which of ``calibration.twin_folds`` left the pixel out (N)."""
    pixel: Tensor
    """Which training pixel it is (N)."""


def likelier(probability_NC: Tensor) -> Tensor:
    """For each class the probability of all that are likelier, in [0, 1]: (N, C); ties by position.

    >>> likelier(torch.tensor([[0.25, 0.5, 0.125, 0.125]]))
    tensor([[0.5000, 0.0000, 0.7500, 0.8750]])
    """
    order = probability_NC.argsort(dim=1, descending=True, stable=True)
    ranked = probability_NC.gather(1, order)
    before = (ranked.cumsum(dim=1) - ranked).clamp(max=1.0)  # sums may pass 1 by rounding
    return torch.empty_like(before).scatter_(1, order, before)


def set_threshold(probability_NC: Tensor, position_N: Tensor, level: float) -> float:
    """The score up to which classes belong to a set, so that ``level`` of the sets hold the truth.

    Args:
        probability_NC: Of pixels that did not train.
        position_N: Their classes.
        level: Share in (0, 1).

    Returns:
        1, so that every class belongs to every set, where the pixels are too few for the level.
    """
    pixels = len(position_N)
    rank = math.ceil(round((pixels + 1) * level, 9))
    if rank > pixels:
        return 1.0
    scores = likelier(probability_NC).gather(1, position_N[:, None])[:, 0]
    return float(scores.sort().values[rank - 1])


def joint_threshold(
    held_out: HeldOut, temperature: float, experts_SNC: Sequence[Tensor], level: float
) -> float:
    """``set_threshold`` of twins and experts together, on the pixels that were held out the hardest way.

    Args:
        held_out: Of the twins.
        temperature: Of their logits.
        experts_SNC: What experts say of all training pixels (``experts.Fitted``), NaN: not held out.
        level: Share in (0, 1).
    """
    hardest = held_out.kind == held_out.kind.max() if len(held_out.kind) else held_out.kind.bool()
    probability_NC = (held_out.logits[hardest] / temperature).softmax(dim=1)
    position_N, at = held_out.position[hardest], (held_out.kind[hardest], held_out.pixel[hardest])
    if experts_SNC:
        said = [one[at] for one in experts_SNC]
        there_N = torch.stack([one.isfinite().all(dim=1) for one in said]).all(dim=0)
        probability_NC = pool(probability_NC[there_N], [one[there_N] for one in said])
        position_N = position_N[there_N]
    return set_threshold(probability_NC, position_N, level)


def class_sets(probability_NC: Tensor, threshold: float) -> Tensor:
    """Whether each class belongs to a pixel's set: (N, C), at least one in each row."""
    return likelier(probability_NC) <= threshold


class Coverage:
    """Mergeable sums over pixels: how many, whose set holds the truth, classes in sets, sets of one class.

    >>> coverage = Coverage()
    >>> coverage.update(torch.tensor([[True, False], [True, True]]), torch.tensor([1, 0]))
    >>> coverage.finish()
    {'coverage': 0.5, 'mean_size': 1.5, 'single': 0.5}
    """

    def __init__(self) -> None:
        self.sums_4 = np.zeros(4)

    def update(self, sets_NC: Tensor, position_N: Tensor) -> None:
        """Add pixels."""
        size = sets_NC.sum(dim=1)
        held = sets_NC.gather(1, position_N[:, None])
        self.sums_4 += [len(size), int(held.sum()), int(size.sum()), int((size == 1).sum())]

    def finish(self) -> dict[str, float]:
        """Share of sets that hold the truth, mean number of classes, share of sets of one class."""
        pixels, held, classes, single = self.sums_4.tolist()
        pixels = max(pixels, 1)
        return {"coverage": held / pixels, "mean_size": classes / pixels, "single": single / pixels}
