"""Experts: kernel ridge regression against hand-computed values and scikit-learn, and the joint answer."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge

from mtmsd import experts
from mtmsd.calibration import twin_folds
from mtmsd.classifier import ClassifierConfig, Sizes, standardisation
from mtmsd.ensemble import Ensemble, assemble
from mtmsd.experts import Committee, Expert, fit_expert, pool, training_input
from mtmsd.fusion import FusionConfig
from mtmsd.interpolation import Features, interpolation_rows
from mtmsd.members import Pixels, train_member
from mtmsd.windows import PatchConfig

CLASSES = 3


def drawn(pixels: int, inputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes, apart in the first input."""
    rng = np.random.default_rng(seed)
    position = np.arange(pixels) % CLASSES
    x = rng.normal(size=(pixels, inputs)) + 2 * position[:, None] * (np.arange(inputs) == 0)
    return torch.from_numpy(x).float(), torch.from_numpy(position)


def folds_of(position: torch.Tensor, number: int = 4) -> list[torch.Tensor]:
    return [torch.from_numpy(fold) for fold in twin_folds(position.numpy(), number, seed=0)]


def test_an_expert_by_hand() -> None:
    """Two anchors at distance 1, a pixel on the first: exp(0) and exp(-1) of their coefficients."""
    expert = Expert.of(
        {
            "map_DR": torch.tensor([[0.5]]), "offset_R": torch.tensor([1.0]),
            "anchor_AR": torch.tensor([[2.0], [3.0]]),
            "coefficient_AC": torch.tensor([[4.0, 0.0], [0.0, 8.0]]),
        }
    )  # fmt: skip
    assert expert(torch.tensor([[2.0]]))[0].tolist() == pytest.approx([4.0, 8.0 / np.e], rel=1e-6)


def test_what_is_far_from_all_anchors_stays_among_the_normal_numbers() -> None:
    """Smaller ones, and products with them, take a processor many times as long."""
    parts = {
        "map_DR": torch.eye(1), "offset_R": torch.zeros(1), "anchor_AR": torch.zeros(1, 1),
        "coefficient_AC": torch.tensor([[1e-3, 1.0]]),
    }  # fmt: skip
    far = Expert.of(parts)(torch.tensor([[9.3], [100.0], [1e19]]))
    assert (far > torch.finfo(torch.float32).tiny).all()
    assert (far < 1e-15).all()


def one_setting(monkeypatch: pytest.MonkeyPatch, gamma: float, ridge: float, sharp: float) -> None:
    for name, value in (("_WIDTHS", gamma), ("_RIDGES", ridge), ("_SHARPNESS", sharp)):
        monkeypatch.setattr(experts, name, (value,))


@pytest.mark.parametrize("inputs", [5, 40])
def test_it_is_kernel_ridge_regression(inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 inputs 29 directions are kept: all that 30 pixels span."""
    one_setting(monkeypatch, 0.7, 0.05, 4.0)
    monkeypatch.setattr(experts, "MAX_RANK", 29)
    x, position = drawn(30, inputs)
    fitted = fit_expert(x, position, CLASSES, folds_of(position))
    mean, deviation = x.double().mean(0), x.double().std(0, correction=0)
    z = ((x.double() - mean) / deviation).numpy()
    target = np.eye(CLASSES)[position] - 1 / CLASSES
    peer = KernelRidge(kernel="rbf", gamma=0.7 / inputs, alpha=0.05).fit(z, target)
    assert np.allclose(fitted.expert(x), 4 * peer.predict(z), atol=1e-4)
    fold = folds_of(position)[0].numpy()
    for k in range(4):
        peer.fit(z[fold != k], target[fold != k])
        expected = 4 * peer.predict(z[fold == k])
        assert np.allclose(fitted.held_out_SNC[0][fold == k], expected, atol=1e-4)


def test_the_setting_is_that_of_the_likeliest_held_out_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    x, position = drawn(60, 4)
    fitted, losses = fit_expert(x, position, CLASSES, folds_of(position)), []
    for gamma in experts._WIDTHS:
        for ridge in experts._RIDGES:
            for sharp in (3.0, 5.0, 8.0, 12.0, 20.0, 30.0):
                with monkeypatch.context() as patch:
                    one_setting(patch, gamma, ridge, sharp)
                    other = fit_expert(x, position, CLASSES, folds_of(position)).held_out_SNC[0]
                losses.append(float(torch.nn.functional.cross_entropy(other, position)))
    best = float(torch.nn.functional.cross_entropy(fitted.held_out_SNC[0], position))
    assert best == pytest.approx(min(losses), rel=1e-6)
    assert max(losses) > 1.2 * min(losses)


def test_what_is_never_held_out() -> None:
    """The only pixel of its class trains always; without any other, settings are taken untested."""
    x, position = drawn(7, 2)
    position[:] = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    fitted = fit_expert(x, position, CLASSES, folds_of(position))
    assert fitted.held_out_SNC[0].isfinite().all(dim=1).tolist() == [True] * 6 + [False]
    alone = fit_expert(x[[0, 3, 6]], torch.arange(3), CLASSES, [torch.full((3,), -1)])
    assert not alone.held_out_SNC.isfinite().any()
    assert alone.expert(x[[0, 3, 6]]).argmax(dim=1).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("pixels", "anchors"),
    [
        ([1500, 300, 10], [1500, 300, 10]),  # all
        ([40000, 3, 30000, 8, 29989], [774, 3, 593, 8, 593 + 28]),
        ([3000] * 5, [400] * 5),
        ([100] * 200, [10] * 200),
    ],
)  # fmt: skip
def test_rare_classes_keep_their_anchors(pixels: list[int], anchors: list[int]) -> None:
    position = torch.repeat_interleave(torch.arange(len(pixels)), torch.tensor(pixels))
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(position)))
    found = experts._anchors(position[order], len(pixels))
    assert found.diff().min() > 0
    assert len(found) <= experts.MAX_ANCHORS
    counts = position[order][found].bincount(minlength=len(pixels)).tolist()
    assert counts == pytest.approx(anchors, abs=30)
    assert [c for c, n in zip(counts, pixels, strict=True) if n < 10] == [n for n in pixels if n < 10]


def test_many_pixels_are_as_good_as_their_anchors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "MAX_ANCHORS", 60)
    x, position = drawn(600, 4)
    fitted = fit_expert(x, position, CLASSES, folds_of(position))
    assert fitted.expert.anchor_AR.shape == (60, 4)
    assert fitted.held_out_SNC[0].isfinite().all(dim=1).sum() == 60
    assert (fitted.expert(x).argmax(dim=1) == position).float().mean() > 0.7


def test_no_class_is_held_out_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a class whose pixels lie in two folds all anchors may lie in one: of 20 the 0, 6, 13 and 19."""
    monkeypatch.setattr(experts, "MAX_ANCHORS", 12)
    x, position = drawn(60, 4)
    fold = torch.arange(60) % 2
    fold[position == 2] = 0
    fold[3 * 10 + 2] = 1
    fitted = fit_expert(x, position, CLASSES, [fold])
    held = fitted.held_out_SNC[0].isfinite().all(dim=1)
    assert position[held].bincount(minlength=CLASSES).tolist() == [4, 4, 0]


def test_constant_inputs_count_nowhere() -> None:
    x, position = drawn(30, 4)
    x[:, 2] = 7.0
    expert = fit_expert(x, position, CLASSES, folds_of(position)).expert
    other = x.clone()
    other[:, 2] = 1e6
    assert torch.equal(expert(x), expert(other))


def test_the_pool_by_hand() -> None:
    """The root of the ensemble's probability times the fourth roots of two experts'."""
    said = [torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log() + 3]
    expected = np.array([0.2**0.5 * 0.9**0.25, 0.8**0.5 * 0.1**0.25])
    found = pool(torch.tensor([[0.2, 0.8]]), said)[0]
    assert found.tolist() == pytest.approx((expected / expected.sum()).tolist(), rel=1e-6)


@pytest.fixture(params=["selective", "hyperfeatures"])
def committee(request: pytest.FixtureRequest) -> tuple[Committee, Ensemble, dict[str, Expert], Pixels]:
    generator = torch.Generator().manual_seed(0)
    position = torch.arange(24) % CLASSES
    centre, pooled = torch.randn((2, 24, 2, 5), generator=generator) * 3 + position[:, None, None]
    pixels = Pixels(centre, pooled, torch.randn((24, 4), generator=generator), position)
    fusion, settings = (
        FusionConfig(kind=request.param, width=8, hidden=4),
        ClassifierConfig(epochs=2, batch=8),
    )
    sizes = Sizes(2, (2, 3), CLASSES, 4)
    members = [train_member(settings, fusion, pixels, sizes, seed=0, member=m)[0] for m in range(2)]
    folds = folds_of(position)
    found = {
        name: fit_expert(training_input(name, pixels, True), position, CLASSES, folds).expert
        for name in experts.INPUTS
    }
    ensemble = assemble(members, "mean")
    return Committee(ensemble, found), ensemble, found, pixels


def test_experts_do_not_join_a_majority(
    committee: tuple[Committee, Ensemble, dict[str, Expert], Pixels],
) -> None:
    voting = copy.copy(committee[1])
    voting.vote = "majority"
    with pytest.raises(ValueError, match="whose vote is mean, found majority"):
        Committee(voting, committee[2])


def test_a_committee_pools_its_parts(
    committee: tuple[Committee, Ensemble, dict[str, Expert], Pixels],
) -> None:
    both, ensemble, found, pixels = committee
    features = pixels[:3]
    mean = ensemble.mean_probabilities(ensemble.pixel_evidence(*features))
    said = [found[name](training_input(name, pixels, True)) for name in found]
    answer = both.mean_probabilities(both.pixel_evidence(*features))
    assert torch.allclose(answer, pool(mean, said), atol=1e-5)
    assert not torch.allclose(answer, mean, atol=1e-3)
    assert torch.allclose(both(*features).confidence_N, answer.amax(dim=1))


def test_a_window_says_the_same_as_its_pixels(
    committee: tuple[Committee, Ensemble, dict[str, Expert], Pixels],
) -> None:
    both, _, _, pixels = committee
    centre, pooled, spectra = pixels[:3]
    of_window = pooled[:1].expand_as(pooled)
    scaled = ((centre - both.mean_2TK[0]) * both.scale_2TK[0]).transpose(0, 1)
    found = both.evidence(scaled, both.window_votes(pooled[:1]), spectra)
    assert torch.allclose(found, both.pixel_evidence(centre, of_window, spectra), atol=1e-5)


@pytest.mark.parametrize("names", [("features",), ("spectra",), ("features", "spectra")])
def test_a_block_says_the_same_as_its_pixels(
    committee: tuple[Committee, Ensemble, dict[str, Expert], Pixels], names: tuple[str, ...]
) -> None:
    """Though the features' expert maps the samples of a stage before they are interpolated."""
    _, ensemble, found, _ = committee
    both = Committee(ensemble, {name: found[name] for name in names})
    generator, patches = torch.Generator().manual_seed(1), PatchConfig(size=8, stride=6)
    maps = [torch.randn((2, 2, side, side, k), generator=generator) for side, k in ((4, 2), (6, 3))]
    weights = [interpolation_rows(4, patches), torch.eye(6)]
    pooled, spectra = (torch.randn(shape, generator=generator) for shape in ((2, 2, 5), (2, 6, 6, 1, 4)))
    features = Features(pooled, spectra, maps, weights)
    votes = both.window_votes(pooled)
    for rows, columns in ((slice(0, 6), slice(0, 6)), (slice(2, 3), slice(1, 5))):
        at = 1, rows, columns
        expected = both.evidence(features.region(*at), votes[:, :, 1:], features.spectra_region(*at))
        answer = both.answers(features, votes, 1)(rows, columns)
        torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)


def test_raw_features_reach_the_expert_as_they_reach_members() -> None:
    x, position = drawn(12, 3)
    pixels = Pixels(x[:, None], 5 * x[:, None] + 2, x, position)
    raw = training_input("features", pixels, standardise=False)
    assert torch.equal(raw, torch.cat([x, 5 * x + 2], dim=1))
    mean, scale = standardisation(pixels.pooled_NTK)
    scaled = training_input("features", pixels, standardise=True)
    assert torch.allclose(scaled[:, 3:], ((pixels.pooled_NTK - mean) * scale).flatten(1))
    assert torch.equal(training_input("spectra", pixels, standardise=True), x)


def test_answers_do_not_depend_on_how_many_are_asked_at_once() -> None:
    x, position = drawn(30, 4)
    expert = fit_expert(x, position, CLASSES, folds_of(position)).expert
    many = x.repeat(60, 1)
    for first, last in pairwise([0, 7, 700, 1800]):
        assert torch.allclose(expert(many[first:last]), expert(many)[first:last], atol=1e-5)
