"""Training of members: how long, of which pixels, and what twins leave out."""

from dataclasses import replace

import pytest
import torch

from mtmsd import members
from mtmsd.fusion import FusionConfig
from mtmsd.members import Pixels, held_out_logits, train_member, training_margin
from tests.test_classifier import CLASSES, QUICK, SIZES, toy, trained


def test_a_twin_has_not_seen_what_is_held_out() -> None:
    pixels, held = Pixels(*toy(60)), torch.arange(60) % 4 == 1
    logits = held_out_logits(QUICK, FusionConfig(), pixels, SIZES, held, seed=1, member=0)
    assert logits.shape == (15, CLASSES)
    assert (logits.argmax(dim=1) == pixels.position_N[held]).float().mean() > 0.8
    lied = pixels._replace(position_N=torch.where(held, 0, pixels.position_N))
    again = held_out_logits(QUICK, FusionConfig(), lied, SIZES, held, seed=1, member=0)
    assert torch.equal(logits, again)


def test_the_training_margin_is_the_mean_gap_of_the_logits() -> None:
    pixels = Pixels(*toy(9))
    head, _ = trained(replace(QUICK, epochs=2), toy(9))
    with torch.inference_mode():
        logits = [sorted(head(*pixels.at(torch.tensor([i]))[:3])[0].tolist()) for i in range(9)]
    by_hand = sum(row[-1] - row[-2] for row in logits) / 9
    assert training_margin(head, pixels) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("n", [3, 15, 16, 17])
def test_any_number_of_training_pixels_is_enough_for_a_step(n: int) -> None:
    head, history = trained(replace(QUICK, epochs=2), toy(n))
    fresh, _ = trained(replace(QUICK, epochs=1, learning_rate=0.0, final_rate=0.0), toy(n))
    assert len(history) == 2
    assert not torch.equal(head.layers[0].weight, fresh.layers[0].weight)


def test_many_pixels_are_passed_over_fewer_times() -> None:
    """60 pixels in batches of 16: three steps an epoch."""
    for steps, epochs in ((None, 12), (100, 12), (20, 6), (1, 1)):
        _, history = train_member(
            replace(QUICK, steps=steps), FusionConfig(), Pixels(*toy(60)), SIZES, seed=1, member=0
        )
        assert len(history) == epochs


def test_patience_ends_a_training_that_no_longer_improves(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 pixels in batches of 16: three steps an epoch; the eleventh epoch begins with step 31."""
    waits, losses = members._Patience(2), iter([3.0, 2.0, 2.0, 1.0, 1.5, 1.0])
    assert [waits.ends(loss) for loss in losses] == [False, False, False, False, False, True]
    config, falling = replace(QUICK, epochs=30), iter(range(1000, 0, -1))
    monkeypatch.setattr(members.F, "cross_entropy", lambda logits, *_, **__: logits.sum() * 0 + next(falling))
    assert len(trained(replace(config, patience=1), toy(60))[1]) == 30, "it improves with every step"
    monkeypatch.setattr(members.F, "cross_entropy", lambda logits, *_, **__: logits.sum() * 0 + 1)
    for patience, epochs in ((None, 30), (1, 11), (3, 12), (5, 12), (6, 13)):
        assert len(trained(replace(config, patience=patience), toy(60))[1]) == epochs
