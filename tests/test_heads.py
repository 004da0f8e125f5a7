"""Kinds of fusion and classifier: each learns, repeats, answers the same in any company; what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtmsd.classifier import ClassifierConfig, Sizes
from mtmsd.ensemble import Ensemble, PlainEnsemble, assemble, combine
from mtmsd.features import FeatureConfig
from mtmsd.fusion import Fusion, FusionConfig
from mtmsd.heads import CLASSIFIERS, FUSIONS, make_member
from mtmsd.members import Pixels, train_member
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.fingerprints import stage_settings

torch.set_num_threads(1)

CLASSES, COMPONENTS, PATCH = 3, 3, 7
KINDS = [
    ("mlp", "selective"), ("mlp", "hyperfeatures"), ("ssftt", "selective"),
    ("diffusion_ssftt", "selective"), ("diffusion_ssftt", "hyperfeatures"),
]  # fmt: skip
QUICK = ClassifierConfig(
    members=2, patch=PATCH, hidden=(8,), dropout=0.2, epochs=12, batch=16, learning_rate=5e-3
)


def parts(kind: str, fused: str) -> tuple[ClassifierConfig, FusionConfig]:
    return replace(QUICK, kind=kind), FusionConfig(kind=fused, hidden=4, width=6)


def toy(
    kind: str, n: int, timesteps: int = 2, stages: tuple[int, ...] = (4, 3), seed: int = 0
) -> tuple[Pixels, Sizes]:
    """Pixels of three classes; features and spectra both tell them apart."""
    generator = torch.Generator().manual_seed(seed)
    stages = stages if CLASSIFIERS[kind].reads_features else (0,) * len(stages)
    position, spectra = torch.arange(n) % CLASSES, COMPONENTS * PATCH**2
    centre, pooled = torch.randn((2, n, timesteps, sum(stages)), generator=generator)
    values = torch.randn((n, spectra), generator=generator)
    if sum(stages):
        centre[torch.arange(n), :, position] += 3
    values.view(n, COMPONENTS, -1)[torch.arange(n), position] += 1
    return Pixels(centre, pooled, values, position), Sizes(timesteps, stages, CLASSES, spectra)


def answers(ensemble: Ensemble, pixels: Pixels) -> Tensor:
    return ensemble(*pixels[:3]).confidence_N


@pytest.mark.parametrize(("kind", "fused"), KINDS)
@pytest.mark.parametrize(("timesteps", "stages"), [(2, (4, 3)), (1, (4, 3)), (2, (5,)), (1, (5,))])
def test_every_kind_learns_also_from_one_timestep_or_stage(
    kind: str, fused: str, timesteps: int, stages: tuple[int, ...]
) -> None:
    pixels, sizes = toy(kind, 90, timesteps, stages)
    config, fusion = parts(kind, fused)
    member, history = train_member(config, fusion, pixels, sizes, seed=1, member=0)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    other, _ = toy(kind, 60, timesteps, stages, seed=5)
    found = assemble([member], "mean")(*other[:3])
    assert (found.position_N == other.position_N).float().mean() > 0.8


@pytest.mark.parametrize(("kind", "fused"), KINDS)
def test_every_parameter_learns(kind: str, fused: str) -> None:
    pixels, sizes = toy(kind, 32)
    torch.manual_seed(0)
    member = make_member(*parts(kind, fused), sizes).train()
    member(*pixels[:3]).square().sum().backward()
    still = [n for n, p in member.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


@pytest.mark.parametrize(("kind", "fused"), KINDS)
def test_a_member_repeats_bit_for_bit(kind: str, fused: str) -> None:
    pixels, sizes = toy(kind, 40)
    config, fusion = parts(kind, fused)
    config = replace(config, epochs=2)
    one, two, other = (
        train_member(config, fusion, pixels, sizes, seed=3, member=m)[0].state_dict() for m in (0, 0, 1)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("kind", "fused"), KINDS[1:])
@torch.no_grad()
def test_the_plain_ensemble_is_the_members_mean(kind: str, fused: str) -> None:
    pixels, sizes = toy(kind, 150)
    config, fusion = parts(kind, fused)
    with torch.enable_grad():
        members = [
            train_member(replace(config, epochs=1), fusion, pixels, sizes, seed=0, member=m)[0]
            for m in (0, 1)
        ]
    ensemble = assemble(members, "majority", 0.5)
    assert type(ensemble) is PlainEnsemble
    found = ensemble(*pixels[:3])
    logits = torch.stack([member(*pixels[:3]) for member in members])
    expected = combine((logits / 0.5).softmax(dim=-1), "majority")
    assert torch.equal(found.position_N, expected.position_N)
    torch.testing.assert_close(found.confidence_N, expected.confidence_N, rtol=1e-4, atol=1e-5)
    assert ensemble.values == 2 * CLASSES
    # Pixels of one window share its pooled features; how many come after a pixel changes no bit.
    scaled = (pixels.centre_NTK - ensemble.mean_2TK[0]) * ensemble.scale_2TK[0]
    votes = ensemble.window_votes(pixels.pooled_NTK[:4])
    rows = [
        ensemble.evidence(scaled[a:b].transpose(0, 1), votes[:, :, 2:3], pixels.spectra_NE[a:b])
        for a, b in ((0, 150), (0, 7), (0, 140), (7, 149))
    ]
    assert torch.equal(rows[0][:7], rows[1])
    assert torch.equal(rows[0][:140], rows[2])
    torch.testing.assert_close(rows[0][7:149], rows[3])
    shared = pixels._replace(pooled_NTK=pixels.pooled_NTK[2:3].expand(150, -1, -1))
    torch.testing.assert_close(ensemble.decide(rows[0]).confidence_N, answers(ensemble, shared))


def test_the_folded_ensemble_is_taken_where_it_can_be() -> None:
    pixels, sizes = toy("mlp", 40)
    config, fusion = parts("mlp", "selective")
    members = [
        train_member(replace(config, epochs=1), fusion, pixels, sizes, seed=0, member=m)[0] for m in (0, 1)
    ]
    assert type(assemble(members, "mean")) is Ensemble
    torch.testing.assert_close(
        answers(assemble(members, "mean"), pixels), answers(PlainEnsemble(members, "mean"), pixels),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_what_is_not_read_does_not_matter() -> None:
    """ssftt reads no diffusion features; hyperfeatures read no pooled ones."""
    pixels, sizes = toy("mlp", 20)
    hyper = make_member(*parts("mlp", "hyperfeatures"), sizes).eval()
    assert torch.equal(hyper(*pixels[:3]), hyper(pixels[0], pixels[1] + 1, pixels[2]))
    assert "dy_att" not in "".join(make_member(*parts("ssftt", "selective"), sizes).state_dict())


PATCHES = ["classifier.kind=ssftt", "features.spectra=[]"]


@pytest.mark.parametrize(("settings", "words"), [
    (["fusion.kind=mean"], "fusion.kind must be one of selective, hyperfeatures, found mean"),
    (["classifier.kind=svm"], "classifier.kind must be one of mlp, ssftt, diffusion_ssftt, found svm"),
    (["classifier.kind=ssftt"], "features.spectra must be [] with classifier.kind ssftt"),
    ([*PATCHES, "patches.stride=40"], "classifier.patch must be at most 1, for windows of 48 pixels reach 0"),
    ([*PATCHES, "patches.stride=40", "patches.blend=0"], "classifier.patch must be at most 9"),
    ([*PATCHES, "reduce.components=2"], "reduce.components must be at least 3"),
    ([*PATCHES, "fusion.kind=hyperfeatures"], "fusion.kind hyperfeatures has nothing to fuse"),
    (["classifier.patch=12"], "classifier.patch must be odd"),
    (["classifier.patch=5"], "at least 7"),
    (["fusion.keep_timesteps=2"], "fusion.keep_timesteps needs a fusion that weighs whole timesteps"),
    (["fusion.kind=hyperfeatures", "fusion.keep_timesteps=6"], "must be at most 5"),
    (["fusion.width=0"], "fusion.width must be at least 1, found 0"),
    (["fusion.width=64"], "fusion.width has no effect with fusion.kind selective"),
    (["classifier.patch=9"], "classifier.patch has no effect with classifier.kind mlp"),
    (["features.timesteps=auto"], "features.timesteps: auto needs fusion.kind hyperfeatures"),
    (["features.timesteps=auto", "fusion.kind=mean"], "fusion.kind must be one of selective"),
    (["features.timesteps=auto", "fusion.kind=[1]"], "features.timesteps: expected a list"),
    (["features.timesteps=auto", "fusion="], "features.timesteps: expected a list"),
    (["features.timesteps=few"], "features.timesteps: expected a list such as [few], found 'few'"),
])  # fmt: skip
def test_what_cannot_go_together_is_refused(settings: list[str], words: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(None, settings)
    assert words in str(refused.value)


def test_timesteps_by_the_weights_of_the_fusion(tmp_path: Path) -> None:
    file = tmp_path / "auto.yaml"
    file.write_text("fusion: {kind: hyperfeatures}\nfeatures: {timesteps: auto, stages: [5]}\n")
    for config in (load_config(file), load_config(None, ["features.timesteps=auto"], load_config(file))):
        assert (config.features.timesteps, config.features.stages) == (FeatureConfig.timesteps, (5,))
        assert config.fusion.keep_timesteps == 2
    assert load_config(file, ["fusion.keep_timesteps=3"]).fusion.keep_timesteps == 3


@pytest.mark.parametrize("fused", FUSIONS)
@pytest.mark.parametrize("kind", ["mlp", "diffusion_ssftt"])
def test_any_fusion_goes_with_any_classifier_that_reads_features(kind: str, fused: str) -> None:
    config = load_config(None, [f"classifier.kind={kind}", f"fusion.kind={fused}", "features.spectra=[]"])
    assert config.patch == (13 if kind == "diffusion_ssftt" else 0)
    assert config.spectra == config.patch**2 * config.reduce.components


def test_settings_of_other_kinds_change_no_fingerprint() -> None:
    """Runs made before a kind existed go on; a kind that is chosen is in every stage that depends on it."""

    def settings(stage: str, *overrides: str) -> dict[str, Any]:
        return stage_settings(load_config(None, overrides), stage)

    assert not {"kind", "width", "keep_timesteps"} & settings("classify")["fusion"].keys()
    assert settings("classify", "fusion.kind=hyperfeatures")["fusion"]["kind"] == "hyperfeatures"
    assert settings("pretrain", "fusion.kind=hyperfeatures") == settings("pretrain")
    assert settings("extract", "fusion.kind=hyperfeatures") == settings("extract")
    assert settings("pretrain", *PATCHES)["classifier"] == {"kind": "ssftt"}
    both = settings("extract", "classifier.kind=diffusion_ssftt", "features.spectra=[]", "classifier.patch=9")
    assert both["classifier"] == {"kind": "diffusion_ssftt", "patch": 9}


def test_experts_without_effect_are_in_no_fingerprint() -> None:
    def said(*overrides: str) -> set[str]:
        return set(stage_settings(load_config(None, overrides), "classify")["classifier"])

    everything = said()
    for settings in (["classifier.vote=majority"], PATCHES, ["classifier.experts=[]"]):
        assert said(*settings) == everything - {"experts"} | ({"kind"} if settings == PATCHES else set())
    assert said("classifier.steps=null") == everything - {"steps"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], ("features", "spectra")),
        (["features.spectra=[]"], ("features",)),
        (["classifier.experts=[spectra]"], ("spectra",)),
        (["classifier.vote=majority"], ()),
        (["classifier.kind=diffusion_ssftt", "features.spectra=[]"], ()),
    ],
)
def test_experts_answer_where_they_can(settings: list[str], expected: tuple[str, ...]) -> None:
    assert load_config(None, settings).experts == expected


def test_another_kind_takes_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class First(Fusion):
        def __init__(self, config: FusionConfig, timesteps: int, stages: tuple[int, ...]) -> None:
            super().__init__()
            self.width = sum(stages)

        def forward(self, centre_NTK: Tensor, pooled_NTK: Tensor) -> Tensor:
            return centre_NTK[:, 0]

    monkeypatch.setitem(FUSIONS, "first", First)
    assert load_config(None, ["fusion.kind=first"]).fusion.kind == "first"
    pixels, sizes = toy("mlp", 40)
    member, _ = train_member(QUICK, FusionConfig(kind="first"), pixels, sizes, seed=0, member=0)
    assert type(assemble([member], "mean")) is PlainEnsemble
