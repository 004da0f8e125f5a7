"""Sets of classes: by hand, against a naive reference, and the promised coverage on pixels that are alike."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtmsd.conformal import Coverage, class_sets, likelier, set_threshold


def _drawn(seed: int, pixels: int, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities, and true classes that follow others, less sure than they claim to be."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(pixels, classes))
    claimed, true = (torch.tensor(scale * logits).softmax(dim=1) for scale in (1.0, 0.5))
    cumulated = true.cumsum(dim=1).numpy()
    return claimed, torch.tensor(
        (generator.random((pixels, 1)) > cumulated).sum(axis=1).clip(max=classes - 1)
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 7))
def test_likelier_as_one_class_after_another(seed: int, classes: int) -> None:
    probability, _ = _drawn(seed, 5, classes)
    for row, found in zip(probability.tolist(), likelier(probability).tolist(), strict=True):
        expected = [sum(other for other in row if other > own) for own in row]
        assert found == pytest.approx(expected, abs=1e-12)


def test_threshold_by_hand() -> None:
    probability = torch.tensor([[0.7, 0.2, 0.1]]).expand(9, -1)
    position = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 2])  # scores 0, ..., 0, 0.7, 0.7, 0.9
    for level, expected in ((0.5, 0.0), (0.6, 0.0), (0.7, 0.7), (0.8, 0.7), (0.9, 0.9)):
        assert set_threshold(probability, position, level) == pytest.approx(expected), level
    assert set_threshold(probability, position, 0.95) == 1.0, "ten pixels would be needed"
    assert set_threshold(probability[:0], position[:0], 0.5) == 1.0


def test_a_class_stands_alone_above_the_threshold() -> None:
    probability, _ = _drawn(1, 1000)
    sets = class_sets(probability, 0.8)
    assert sets.any(dim=1).all()
    assert torch.equal(sets.sum(dim=1) == 1, probability.amax(dim=1) > 0.8)
    assert class_sets(probability, 1.0).all()


@pytest.mark.parametrize("level", [0.6, 0.8, 0.95])
def test_the_promise_is_kept_where_pixels_are_alike(level: float) -> None:
    held, test = _drawn(2, 2000), _drawn(3, 20_000)
    coverage = Coverage()
    coverage.update(class_sets(test[0], set_threshold(*held, level)), test[1])
    spread = math.sqrt(level * (1 - level) * (1 / 2000 + 1 / 20_000))
    assert abs(coverage.finish()["coverage"] - level) < 4 * spread
    assert (test[0].argmax(dim=1) == test[1]).double().mean() < 0.6, "one class would not keep it"


def test_coverage_merges() -> None:
    probability, position = _drawn(4, 100)
    sets, whole, parts = class_sets(probability, 0.5), Coverage(), Coverage()
    whole.update(sets, position)
    for part in (slice(30), slice(30, None)):
        parts.update(sets[part], position[part])
    assert np.array_equal(whole.sums_4, parts.sums_4)
    assert Coverage().finish() == {"coverage": 0.0, "mean_size": 0.0, "single": 0.0}


def test_at_threshold_one_every_class_belongs_to_every_set() -> None:
    probability = torch.randn((2000, 16), generator=torch.Generator().manual_seed(0)).mul(4).softmax(dim=1)
    assert class_sets(probability, 1.0).all()
