"""Parity: the product against golden values, our own (float64) and the authors' code's.

The authors' values are not part of the repository: ``MTMSD_SHARED`` names the folder that holds them.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import reference as plain_way
from mtmsd.classifier import ClassifierConfig, Sizes
from mtmsd.diffusion import DiffusionConfig, Schedule
from mtmsd.features import Extractor, FeatureConfig
from mtmsd.fusion import FusionConfig
from mtmsd.heads import make_member
from mtmsd.purify import PurifyConfig, channel_scores, select_channels
from mtmsd.unet import UNet, UNetConfig
from mtmsd.windows import PatchConfig
from tests import make_golden, reference

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("MTMSD_SHARED", ROOT.parent / "shared")) / "fixtures" / "upstream_parity"
NEEDS_SHARED = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the authors' golden values are not here: set MTMSD_SHARED to their folder"
)
SCHEDULE = Schedule(DiffusionConfig())
STAGES = (0, 1, 2, 3, 5)
LIMIT = 1e-4
ROUNDING = 3e-4  # float32 moves the ill-conditioned paper-size features: the authors' by 1.1e-4

Golden = Mapping[str, NDArray[Any]]


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The order of a sum, and so its rounding, depends on the number of threads."""
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


def load(path: Path) -> Golden:
    with np.load(path) as file:
        return dict(file)


def shapes_of(name: str) -> dict[str, list[int]]:
    return json.loads((SHARED / f"{name}_state_dict.json").read_text())  # type: ignore[no-any-return]


def filled(model: torch.nn.Module, shapes: Mapping[str, list[int]]) -> None:
    """Load the recipe's weights; names and shapes must be those of the golden file."""
    model.load_state_dict(reference.recipe_weights(shapes), strict=True)
    model.eval()


def features_of(
    unet: UNet, golden: Golden, timesteps: tuple[int, ...], patches: PatchConfig, *, batch: int,
    arithmetic: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    config = FeatureConfig(
        timesteps=timesteps, stages=STAGES, batch=batch, arithmetic=arithmetic, precision="float32"
    )
    extractor = Extractor(unet, SCHEDULE, config, patches)
    extractor.noise = torch.from_numpy(golden["noise"]).reshape(extractor.noise.shape)
    features = extractor(torch.from_numpy(golden["x"]))
    return features.centre_NPTK, features.pooled_NTK


def plain(
    unet: UNet, golden: Golden, timesteps: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor]:
    """What the benchmarks compare with, from the golden noise."""
    noise = torch.from_numpy(golden["noise"]).reshape(golden["x"].shape[1:])
    monkeypatch.setattr(plain_way, "shared_noise", lambda *_: noise)
    config = FeatureConfig(timesteps=timesteps, stages=STAGES)
    return plain_way.plain_features(unet, SCHEDULE, config, torch.from_numpy(golden["x"]))


# Our own golden values: float64, from the formulas.


@pytest.mark.parametrize(("batch", "arithmetic"), [(1, "reference"), (4, "fast")])
def test_unet_and_features_are_the_golden_ones(batch: int, arithmetic: str) -> None:
    golden = load(make_golden.FOLDER / "unet.npz")
    shapes = json.loads((make_golden.FOLDER / "shapes.json").read_text())["unet"]
    unet = UNet(UNetConfig(channels=32, multipliers=(1, 2, 2), res_blocks=2, heads=4), golden["x"].shape[1])
    filled(unet, shapes)
    x, t = torch.from_numpy(golden["x"]), torch.full((2,), make_golden.TIMESTEPS[0])
    with torch.inference_mode():
        output = unet(SCHEDULE.q_sample(x, t, torch.from_numpy(golden["noise"])[None]), t)
    assert reference.relative_error(output, golden["output"]) < LIMIT
    patches = PatchConfig(size=make_golden.SIZE, stride=make_golden.STRIDE)
    centre, pooled = features_of(
        unet, golden, make_golden.TIMESTEPS, patches, batch=batch, arithmetic=arithmetic
    )
    assert reference.relative_error(centre, golden["centre"]) < LIMIT
    assert reference.relative_error(pooled, golden["pooled"]) < LIMIT


def test_the_benchmarks_plain_way_gives_the_golden_features(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = load(make_golden.FOLDER / "unet.npz")
    unet = UNet(UNetConfig(channels=32, multipliers=(1, 2, 2), res_blocks=2, heads=4), golden["x"].shape[1])
    filled(unet, json.loads((make_golden.FOLDER / "shapes.json").read_text())["unet"])
    centre, pooled = plain(unet, golden, make_golden.TIMESTEPS, monkeypatch)
    last = make_golden.STRIDE**2 - 1  # the pixel at half the side is the block's last
    assert reference.relative_error(centre, golden["centre"][:, last]) < LIMIT
    assert reference.relative_error(pooled, golden["pooled"]) < LIMIT


def test_purification_is_the_golden_one() -> None:
    golden = load(make_golden.FOLDER / "purification.npz")
    config = PurifyConfig(keep=0.6, similarity_weight=0.8, timestep_weight=0.5)
    np.testing.assert_allclose(channel_scores(golden["class_means"], config), golden["scores"], atol=1e-12)
    assert select_channels(golden["class_means"], config) == tuple(sorted(golden["selected"]))


@torch.inference_mode()
def test_fusion_and_head_are_the_golden_ones() -> None:
    golden = load(make_golden.FOLDER / "head.npz")
    shapes = json.loads((make_golden.FOLDER / "shapes.json").read_text())["head"]
    head = make_member(make_golden.HEAD, make_golden.FUSION, make_golden.HEAD_SIZES)
    filled(head, shapes)
    centre, pooled = torch.from_numpy(golden["centre"]), torch.from_numpy(golden["pooled"])
    assert reference.relative_error(head.dy_att.weights(centre, pooled), golden["weights"]) < 1e-5
    assert reference.relative_error(head.dy_att(centre, pooled), golden["fused"]) < 1e-5
    assert (
        reference.relative_error(head(centre, pooled, centre.new_empty(len(centre), 0)), golden["logits"])
        < 1e-5
    )


def test_the_golden_files_are_what_their_script_makes() -> None:
    names = json.loads((make_golden.FOLDER / "shapes.json").read_text())
    assert make_golden.shapes() == names
    for name, arrays in make_golden.values(names).items():
        golden = load(make_golden.FOLDER / f"{name}.npz")
        assert arrays.keys() == golden.keys()
        for key, value in arrays.items():
            np.testing.assert_allclose(value, golden[key], rtol=1e-7, atol=1e-9)


# The authors' golden values: float32, from their released code.


@NEEDS_SHARED
def test_schedule_is_the_authors() -> None:
    golden = load(SHARED / "schedule.npz")
    assert reference.relative_error(SCHEDULE.beta, golden["betas"]) < 1e-6
    assert reference.relative_error(SCHEDULE.alpha_bar, golden["alphas_cumprod"]) < 1e-6
    np.testing.assert_allclose(SCHEDULE.alpha_bar, golden["alphas_cumprod"], rtol=1e-5)


def authors_unet(size: str) -> tuple[UNet, Golden, tuple[int, ...]]:
    golden = load(SHARED / f"unet_{size}.npz")
    config = UNetConfig(
        channels={"small": 32, "paper": 128}[size], multipliers=(1, 2, 2), res_blocks=2, heads=4
    )
    unet = UNet(config, golden["x"].shape[1])
    filled(unet, shapes_of(f"unet_{size}"))
    return unet, golden, tuple(golden["timesteps"].tolist())


@NEEDS_SHARED
@pytest.mark.parametrize("size", ["small", "paper"])
@torch.inference_mode()
def test_model_output_is_the_authors(size: str) -> None:
    unet, golden, timesteps = authors_unet(size)
    x, noise = torch.from_numpy(golden["x"]), torch.from_numpy(golden["noise"])
    outputs = golden["model_output"]
    for i, t in enumerate((timesteps[0], timesteps[-1])[: outputs.shape[1]]):
        t_N = torch.full((len(x),), t)
        found = unet(SCHEDULE.q_sample(x, t_N, noise), t_N)
        assert reference.relative_error(found, outputs[:, i]) < LIMIT


@NEEDS_SHARED
@pytest.mark.parametrize(("batch", "arithmetic"), [(1, "reference"), (8, "fast")])
def test_small_features_are_the_authors(batch: int, arithmetic: str) -> None:
    unet, golden, timesteps = authors_unet("small")
    patches = PatchConfig(size=48, stride=1)
    centre, pooled = features_of(unet, golden, timesteps, patches, batch=batch, arithmetic=arithmetic)
    assert reference.relative_error(centre[:, 0], golden["center"]) < LIMIT
    assert reference.relative_error(pooled, golden["pooled"]) < LIMIT


@NEEDS_SHARED
def test_the_benchmarks_plain_way_gives_the_authors_features(monkeypatch: pytest.MonkeyPatch) -> None:
    unet, golden, timesteps = authors_unet("small")
    centre, pooled = plain(unet, golden, timesteps, monkeypatch)
    assert reference.relative_error(centre, golden["center"]) < LIMIT
    assert reference.relative_error(pooled, golden["pooled"]) < LIMIT


@NEEDS_SHARED
@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def test_paper_size_features_are_the_plain_ways_and_the_authors(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the published order of operations, to the last bits; the authors' run had another processor."""
    assert torch.get_num_threads() == threads
    unet, golden, timesteps = authors_unet("paper")
    patches = PatchConfig(size=48, stride=1)
    centre, pooled = features_of(unet, golden, timesteps, patches, batch=1, arithmetic="reference")
    plain_centre, plain_pooled = plain(unet, golden, timesteps, monkeypatch)
    assert reference.relative_error(centre[:, 0], plain_centre) < 1e-6
    assert reference.relative_error(pooled, plain_pooled) < 1e-6
    assert reference.relative_error(centre[:, 0], golden["center"]) < ROUNDING
    assert reference.relative_error(pooled, golden["pooled"]) < ROUNDING


@NEEDS_SHARED
def test_paper_size_features_are_as_near_the_exact_values_as_the_authors() -> None:
    """On any processor, the fast path: these weights magnify rounding, in the authors' values too."""
    unet, golden, timesteps = authors_unet("paper")
    some = slice(0, len(timesteps), 2)
    x, noise = torch.from_numpy(golden["x"]), torch.from_numpy(golden["noise"][0])
    exact = reference.features(unet.state_dict(), x, noise, timesteps[some], STAGES, slice(24, 25))
    patches = PatchConfig(size=48, stride=1)
    found = features_of(unet, golden, timesteps[some], patches, batch=8, arithmetic="fast")
    theirs = golden["center"][:, None, some], golden["pooled"][:, some]
    for value, their, truth in zip(found, theirs, exact, strict=True):
        of_theirs = reference.relative_error(their, truth)
        assert of_theirs < ROUNDING  # both evaluate the same function
        assert reference.relative_error(value, truth) < 1.5 * of_theirs


@NEEDS_SHARED
def test_purification_selects_the_authors_channels() -> None:
    golden = load(SHARED / "purification.npz")
    config = PurifyConfig(keep=0.6, similarity_weight=0.8, timestep_weight=0.5)
    assert set(select_channels(golden["class_means"], config)) == set(golden["selected"].tolist())


@NEEDS_SHARED
@torch.inference_mode()
def test_fusion_and_logits_are_the_authors() -> None:
    golden = load(SHARED / "fusion.npz")
    _, timesteps, channels = golden["center"].shape
    config = ClassifierConfig(standardise=False, hidden=(128, 32))
    sizes = Sizes(timesteps, (channels,), golden["logits"].shape[1])
    head = make_member(config, FusionConfig(hidden=None), sizes)
    filled(head, shapes_of("classifier"))
    centre, pooled = torch.from_numpy(golden["center"]), torch.from_numpy(golden["pooled"])
    assert reference.relative_error(head.dy_att(centre, pooled), golden["fused"]) < LIMIT
    assert (
        reference.relative_error(head(centre, pooled, centre.new_empty(len(centre), 0)), golden["logits"])
        < LIMIT
    )
