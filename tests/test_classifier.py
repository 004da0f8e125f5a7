"""The head, its training, and how members agree."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtmsd.classifier import ClassifierConfig, Dropout, Head, Sizes
from mtmsd.ensemble import Ensemble, combine
from mtmsd.fusion import FusionConfig
from mtmsd.heads import make_member
from mtmsd.members import Pixels, train_member
from tests import reference

torch.set_num_threads(1)

CLASSES, TIMESTEPS, CHANNELS, SPECTRA = 3, 2, 6, 4
SIZES = Sizes(TIMESTEPS, (CHANNELS,), CLASSES, SPECTRA)
QUICK = ClassifierConfig(
    members=2, hidden=(8,), standardise=True, dropout=0.0, label_smoothing=0.0, epochs=12, batch=16,
    learning_rate=1e-2, final_rate=1e-3, weight_decay=0.0,
)  # fmt: skip


def toy(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw pixels of three classes that differ in the mean of the centre features."""
    generator = torch.Generator().manual_seed(seed)
    position = torch.arange(n) % CLASSES
    centre, pooled = torch.randn((2, n, TIMESTEPS, CHANNELS), generator=generator)
    centre[torch.arange(n), :, position] += 6
    spectra = 7 + 2 * torch.randn((n, SPECTRA), generator=generator)
    return 5 + 3 * centre, pooled, spectra, position


def trained(config: ClassifierConfig, data: tuple[Tensor, Tensor, Tensor, Tensor], *, seed: int = 1,
            member: int = 0, fusion: FusionConfig | None = None,
            ) -> tuple[Head, list[dict[str, float]]]:  # fmt: skip
    return train_member(config, fusion or FusionConfig(), Pixels(*data), SIZES, seed=seed, member=member)


def same(a: Head, b: Head) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    assert mine.keys() == other.keys()
    return all(torch.equal(mine[name], other[name]) for name in mine)


@torch.inference_mode()
def test_head_is_the_formula() -> None:
    config = replace(QUICK, hidden=(8, 5), standardise=False)
    head = make_member(config, FusionConfig(), replace(SIZES, spectra=0)).eval()
    reference.random_weights(head, seed=2)
    state = head.state_dict()
    centre, pooled, *_ = toy(7)
    _, fused = reference.fusion(
        {name[7:]: value for name, value in state.items() if name.startswith("dy_att.")},
        centre.double().numpy(), pooled.double().numpy(),
    )  # fmt: skip
    layers = {name: value for name, value in state.items() if name.startswith("layers.")}
    assert (
        reference.relative_error(head(centre, pooled, torch.empty(7, 0)), reference.head(layers, fused))
        < 1e-5
    )


@torch.no_grad()
def test_standardised_features_do_not_depend_on_units() -> None:
    centre, pooled, spectra, position = toy(30)
    with torch.enable_grad():
        head, _ = trained(QUICK, (centre, pooled, spectra, position))
    mean, scale = centre.mean(dim=0), centre.std(dim=0, correction=0)
    torch.testing.assert_close(head.mean_2TK[0], mean)
    torch.testing.assert_close(head.scale_2TK[0], 1 / scale)
    torch.testing.assert_close(head.mean_2TK[1], pooled.mean(dim=0))
    config = replace(QUICK, standardise=False)
    plain = make_member(config, FusionConfig(), SIZES).eval()
    plain.load_state_dict({k: v for k, v in head.state_dict().items() if not k.startswith(("mean", "scale"))})
    by_hand = plain(
        *((kind - kind.mean(dim=0)) / kind.std(dim=0, correction=0) for kind in (centre, pooled, spectra))
    )
    torch.testing.assert_close(head(centre, pooled, spectra), by_hand, rtol=1e-4, atol=1e-4)


def test_a_constant_feature_does_not_blow_up() -> None:
    centre, pooled, spectra, position = toy(40)
    centre[:, 1, 4], pooled[:, :, 0], spectra[:, 1] = 7.0, -2.0, 0.0
    head, history = trained(QUICK, (centre, pooled, spectra, position))
    assert all(value.isfinite().all() for value in head.state_dict().values())
    assert math.isfinite(history[-1]["loss"])


@torch.inference_mode()
def test_a_feature_that_is_constant_in_training_counts_nowhere() -> None:
    centre, pooled, spectra, position = toy(40)
    centre[:, 1, 4], pooled[:, :, 0], spectra[:, 1] = 7.1, -200.3, 0.0
    with torch.inference_mode(False), torch.enable_grad():
        head, _ = trained(QUICK, (centre, pooled, spectra, position))
    before = head(centre, pooled, spectra)
    centre[:, 1, 4], pooled[:, :, 0], spectra[:, 1] = 7.2, 30.0, 0.01
    torch.testing.assert_close(head(centre, pooled, spectra), before, rtol=0, atol=0)


def test_dropout_is_drawn_by_the_cpu_and_is_the_librarys() -> None:
    drop, x = Dropout(0.3).train(), torch.randn(50, 20)
    torch.manual_seed(5)
    expected = F.dropout(x, 0.3)
    torch.manual_seed(5)
    torch.testing.assert_close(drop(x), expected, rtol=0, atol=0)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    drop(x.to("meta"))
    assert torch.equal(torch.get_rng_state(), after), "another device must not draw by itself"
    assert drop.eval()(x) is x


def test_a_member_repeats_bit_for_bit() -> None:
    data = toy(50)
    config = replace(QUICK, dropout=0.3, epochs=3)
    first, history = trained(config, data, seed=4, member=1)
    torch.manual_seed(99)  # whatever the process drew before
    again, history_again = trained(config, data, seed=4, member=1)
    assert same(first, again)
    assert history == history_again
    assert len(history) == 3
    assert not same(first, trained(config, data, seed=4, member=2)[0])
    assert not same(first, trained(config, data, seed=5, member=1)[0])


def test_training_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(12)
    state = torch.random.get_rng_state()
    trained(replace(QUICK, dropout=0.5, epochs=1), toy(20))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_separable_problem_is_learnt() -> None:
    head, history = trained(QUICK, toy(120))
    assert history[-1]["loss"] < history[0]["loss"] / 5
    assert history[-1]["train_accuracy"] > 0.95
    assert not head.training
    *features, position = toy(60, seed=77)
    found = Ensemble([head], "mean")(*features)
    assert (found.position_N == position).float().mean() > 0.95


def test_what_only_the_spectra_tell_is_learnt() -> None:
    centre, pooled, spectra, position = toy(120)
    spectra[:, 2] += 9 * position
    head, _ = trained(QUICK, (torch.zeros_like(centre), pooled, spectra, position))
    found = Ensemble([head], "mean")(torch.zeros_like(centre), pooled, spectra)
    assert (found.position_N == position).float().mean() > 0.95


def test_the_temperature_sharpens_confidence_alone() -> None:
    data = toy(60)
    members = [trained(replace(QUICK, epochs=1), data, member=0)[0]]
    plain, sharp = (Ensemble(members, "mean", t)(*data[:3]) for t in (1.0, 0.25))
    logits = members[0](*data[:3]).detach()
    torch.testing.assert_close(sharp.confidence_N, (4 * logits).softmax(dim=1).amax(dim=1))
    assert torch.equal(plain.position_N, sharp.position_N)


def test_weight_decay_and_label_smoothing_act() -> None:
    data, config = toy(48), replace(QUICK, epochs=30)
    plain, history = trained(config, data)
    assert not same(plain, trained(replace(config, weight_decay=0.5), data)[0])
    _, smoothed = trained(replace(config, label_smoothing=0.3), data)
    share = 0.3 / CLASSES
    floor = -(1 - 2 * share) * math.log(1 - 2 * share) - 2 * share * math.log(share)
    assert min(epoch["loss"] for epoch in smoothed) >= floor
    assert history[-1]["loss"] < floor


@given(seed=st.integers(0, 10_000), members=st.integers(1, 5), classes=st.integers(2, 5),
       vote=st.sampled_from(["majority", "mean"]))  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_combine_is_the_naive_count(seed: int, members: int, classes: int, vote: str) -> None:
    logits = torch.randn((members, 6, classes), generator=torch.Generator().manual_seed(seed))
    probability = (3 * logits).softmax(dim=-1)
    found = combine(probability, vote)  # type: ignore[arg-type]
    mean = probability.double().numpy().mean(axis=0)
    for n in range(6):
        votes = np.bincount(probability[:, n].argmax(dim=-1).numpy(), minlength=classes)
        best = votes.max() if vote == "majority" else 0
        tied = [c for c in range(classes) if vote == "mean" or votes[c] == best]
        expected = max(tied, key=lambda c: mean[n, c])
        assert int(found.position_N[n]) == expected
        assert float(found.confidence_N[n]) == pytest.approx(mean[n, expected], rel=1e-5)
        entropy = -(mean[n] * np.log(mean[n])).sum()
        assert float(found.entropy_N[n]) == pytest.approx(entropy, rel=1e-4, abs=1e-6)
        assert 0 <= float(found.entropy_N[n]) <= math.log(classes) + 1e-6


def test_a_tied_vote_goes_to_the_higher_mean() -> None:
    members = [[0.6, 0.4, 0.0], [0.6, 0.4, 0.0], [0.1, 0.9, 0.0], [0.1, 0.9, 0.0]]
    probability = torch.tensor(members)[:, None]
    assert combine(probability, "majority").position_N.tolist() == [1]
    assert combine(probability[:3], "majority").position_N.tolist() == [0]  # two votes to one
    assert combine(probability[:3], "mean").position_N.tolist() == [1]


def test_entropy_at_its_bounds() -> None:
    certain = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    for vote in ("majority", "mean"):
        assert float(combine(certain, vote).entropy_N) == 0  # type: ignore[arg-type]
        even = combine(torch.full((2, 1, 4), 0.25), vote)  # type: ignore[arg-type]
        assert float(even.entropy_N) == pytest.approx(math.log(4))
        assert float(even.confidence_N) == 0.25


def test_an_ensemble_combines_its_members() -> None:
    data = toy(60)
    members = [trained(replace(QUICK, epochs=1), data, member=i)[0] for i in range(2)]
    ensemble = Ensemble(members, "majority")
    found = ensemble(*data[:3])
    logits = torch.stack([member(*data[:3]) for member in members])
    mean = ensemble.mean_probabilities(ensemble.pixel_evidence(*data[:3]))
    torch.testing.assert_close(mean, logits.softmax(dim=-1).mean(dim=0), rtol=1e-5, atol=1e-6)
    expected = combine(logits.softmax(dim=-1), "majority")
    assert torch.equal(found.position_N, expected.position_N)
    for a, b in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert found.position_N.shape == found.confidence_N.shape == found.entropy_N.shape == (60,)
    assert not any(value.requires_grad for value in found)


@pytest.mark.parametrize("hidden", [None, 3])
def test_pixels_of_one_window_share_its_votes(hidden: int | None) -> None:
    centre, pooled, spectra, _ = data = toy(60)
    config = FusionConfig(hidden=hidden)
    members = [trained(replace(QUICK, epochs=1), data, member=i, fusion=config)[0] for i in range(3)]
    ensemble = Ensemble(members, "mean")
    shared = pooled[:1].expand(9, -1, -1)
    expected = ensemble(centre[:9], shared, spectra[:9])
    scaled = (centre[:9] - ensemble.mean_2TK[0]) * ensemble.scale_2TK[0]
    found = ensemble.classify(scaled.transpose(0, 1), ensemble.window_votes(pooled[:1]), spectra[:9])
    assert torch.equal(found.position_N, expected.position_N)
    torch.testing.assert_close(found.confidence_N, expected.confidence_N, rtol=1e-5, atol=1e-6)
    logits = torch.stack([member(centre[:9], shared, spectra[:9]) for member in members]).detach()
    alone = combine(logits.softmax(dim=-1), "mean")
    torch.testing.assert_close(found.entropy_N, alone.entropy_N, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("gain", "beyond"), [(1.0, False), (1e6, True)])
def test_votes_too_large_for_powers_of_two_are_cut(gain: float, beyond: bool) -> None:
    """Looked for by a bound, so that ordinary votes are spared the cut."""
    centre, pooled, spectra, _ = data = toy(60)
    member = trained(replace(QUICK, epochs=1), data)[0]
    assert isinstance(member, Head)
    for layer in member.dy_att.fcs:
        layer.weight.data *= gain
    ensemble = Ensemble([member], "mean")
    scaled = ((centre - ensemble.mean_2TK[0]) * ensemble.scale_2TK[0]).transpose(0, 1)
    votes = ensemble.window_votes(pooled[:1])
    hidden = torch.nn.functional.linear(scaled.sum(dim=0), *ensemble._hidden).relu_()
    assert ensemble._may_overflow(hidden[None], votes) == beyond
    found = ensemble.probabilities(scaled, votes, spectra)[0]
    expected = member(centre, pooled[:1].expand_as(pooled), spectra).detach().softmax(dim=1)
    assert found.isfinite().all()
    if not beyond:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ensemble, "_may_overflow", lambda *_: False)
            assert not ensemble.probabilities(scaled, votes, spectra).isfinite().all()


def test_members_of_other_features_are_refused() -> None:
    members = [trained(replace(QUICK, epochs=1), toy(60, seed=seed), member=0)[0] for seed in (0, 1)]
    with pytest.raises(ValueError, match="share the mean and scale"):
        Ensemble(members, "mean")
    wider = copy.deepcopy(members[0])
    wider.scale_2TK *= 5
    with pytest.raises(ValueError, match="share the mean and scale"):
        Ensemble([members[0], wider], "mean")


def test_an_ensemble_answers_pixels_one_by_one_as_together() -> None:
    data = toy(60)
    ensemble = Ensemble([trained(replace(QUICK, epochs=1), data)[0]], "mean")
    together = ensemble(*data[:3])
    alone = ensemble(*(kind[7:8] for kind in data[:3]))
    torch.testing.assert_close(alone.confidence_N[0], together.confidence_N[7])
    assert alone.position_N[0] == together.position_N[7]


def test_impossible_classifiers_are_refused() -> None:
    for name, value in (("members", 0), ("patience", 0), ("epochs", 0), ("steps", 0), ("batch", 1)):
        with pytest.raises(ValueError, match=rf"classifier\.{name} must be at least .*, found {value}"):
            ClassifierConfig(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="names one twice: spectra, spectra"):
        ClassifierConfig(experts=("spectra", "spectra"))
    for dropout in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"classifier\.dropout must lie in \[0, 1\)"):
            ClassifierConfig(dropout=dropout)


def test_votes_far_beyond_a_float_still_choose_a_timestep() -> None:
    data = toy(60)
    member = trained(replace(QUICK, epochs=1), data, member=0)[0]
    with torch.no_grad():
        for guide in member.dy_att.g_fcs:
            guide.weight *= 1e4
    found, alone = (
        Ensemble([member], "mean")(*data[:3]),
        combine(member(*data[:3]).softmax(dim=-1)[None], "mean"),
    )
    torch.testing.assert_close(found.confidence_N, alone.confidence_N.detach(), rtol=1e-3, atol=1e-3)
