"""The classifier of supertokens: by hand, by difference quotients, and that it learns what it is meant to."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtmsd.supertokens import SupertokenConfig, Supertokens
from mtmsd.token_classifier import TokenClassifier, TokenRegion, token_loss, train_tokens

pytestmark = pytest.mark.usefixtures("one_thread")


def region(side: int, classes: int, seed: int) -> TokenRegion:
    """Noise, in which a part has no data and a third of the rest is labelled."""
    generator = torch.Generator().manual_seed(seed)
    cube = torch.randn((3, side, side), generator=generator, dtype=torch.float64)
    probability = torch.rand((classes, side, side), generator=generator, dtype=torch.float64) + 0.1
    probability = probability / probability.sum(dim=0)
    probability[:, : side // 3, : side // 3] = 0
    label = torch.randint(0, classes, (side, side), generator=generator)
    return TokenRegion(
        cube, probability, torch.where(torch.rand(label.shape, generator=generator) < 0.3, label, -1)
    )


def stirred(tokens: TokenClassifier) -> TokenClassifier:
    """With a last layer that is no longer zero."""
    last = tokens.layers[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.copy_(0.3 * torch.randn(last.weight.shape, generator=torch.Generator().manual_seed(1)))
    return tokens


def test_soft_labels_are_class_shares() -> None:
    """One cell, so one token: three labelled pixels of class 0, one of class 1, the others do not count."""
    label = torch.full((4, 4), -1)
    label[0, :3], label[1, 1] = 0, 1
    tokens = TokenClassifier(SupertokenConfig(cell=4), torch.eye(2), 3)
    bias = torch.tensor([1.0, 0.5, -2.0])
    tokens.layers[-1].bias.data = bias
    pixel = torch.tensor([0.5, 0.2, 0.3])
    log = (pixel.log() + bias).log_softmax(dim=0)
    found = token_loss(tokens, TokenRegion(torch.zeros(2, 4, 4), pixel[:, None, None].expand(3, 4, 4), label))
    assert found.item() == pytest.approx(-(0.75 * log[0] + 0.25 * log[1]).item(), rel=1e-5)


def test_gradients_reach_every_parameter() -> None:
    """The loss's gradients are its difference quotients; the clusters' projection has them too."""
    tokens = stirred(TokenClassifier(SupertokenConfig(cell=2), torch.eye(3), 3)).double()
    mine = region(6, 3, seed=0)
    token_loss(tokens, mine).backward()  # type: ignore[no-untyped-call]
    for name, parameter in tokens.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name
        for at in list(np.ndindex(tuple(parameter.shape)))[::7]:
            losses = []
            for step in (1e-6, -2e-6):
                with torch.no_grad():
                    parameter[at] += step
                    losses.append(token_loss(tokens, mine).item())
            with torch.no_grad():
                parameter[at] += 1e-6
            assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(parameter.grad[at].item(), abs=1e-6), name


def test_an_untrained_classifier_gives_the_vote() -> None:
    config, mine = SupertokenConfig(cell=3), region(12, 4, seed=2)
    projection = torch.randn((3, 3), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        found, vote = (
            tokens.double().vote(mine.cube_KHW, mine.probability_CHW)
            for tokens in (TokenClassifier(config, projection, 4), Supertokens(config, projection))
        )
        changed = stirred(TokenClassifier(config, projection, 4)).double()
        other = changed.vote(mine.cube_KHW, mine.probability_CHW)
    np.testing.assert_allclose(found, vote, atol=1e-12)
    assert (other - vote).abs().max() > 0.01


def striped(seed: int) -> tuple[TokenRegion, Tensor]:
    """Two classes that the second component tells apart; the pixels' own answers say nothing."""
    truth = (torch.arange(24) // 5 % 2).expand(24, -1).contiguous()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((2, 24, 24), generator=generator)
    cube = torch.stack([4 * noise[0], 2.0 * truth + 0.5 * noise[1]])
    known = torch.where(torch.rand(truth.shape, generator=generator) < 0.3, truth, -1)
    return TokenRegion(cube, torch.full((2, 24, 24), 0.5), known), truth


def test_it_learns_what_pixels_do_not_know_and_which_component_tells() -> None:
    regions = [striped(seed)[0] for seed in range(3)]
    config = SupertokenConfig(cell=4, steps=150)
    tokens, losses = train_tokens(config, torch.eye(2) / 2, regions, seed=0)
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    noisy, telling = tokens.projection_EK.detach().norm(dim=0)
    assert telling > 1.2 * noisy
    mine, truth = striped(seed=9)
    with torch.no_grad():
        right = tokens.vote(mine.cube_KHW, mine.probability_CHW).argmax(dim=0) == truth
    assert right.float().mean() > 0.8


def test_training_depends_on_its_seed_alone() -> None:
    regions, config = [striped(seed)[0] for seed in range(2)], SupertokenConfig(cell=4, steps=5)
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(found))
        before = torch.get_rng_state()
        found.append(train_tokens(config, torch.eye(2), regions, seed))
        assert torch.equal(torch.get_rng_state(), before)
    (first, losses), (second, again), (other, _) = found
    assert losses == again
    assert len(losses) == 5
    for (name, one), two, three in zip(
        first.named_parameters(), second.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(one, two), name
        assert not torch.equal(one, three), name
