"""Features: read without upsampling what upsampled maps hold, the same in whatever company."""

import itertools

import pytest
import torch
from torch import Tensor

from mtmsd.diffusion import DiffusionConfig, Schedule, shared_noise
from mtmsd.features import Extractor, FeatureConfig, Readout, feature_width
from mtmsd.interpolation import Features, interpolation_rows
from mtmsd.unet import UNet, UNetConfig
from mtmsd.windows import PatchConfig
from tests import reference

torch.set_num_threads(1)

COMPONENTS = 3
CONFIG = UNetConfig(channels=32, multipliers=(1, 2, 2), res_blocks=1, heads=4)
STAGES, TIMESTEPS = (0, 1, 3, 4), (50, 400, 900)
SCHEDULE = Schedule(DiffusionConfig())


def build(config: UNetConfig = CONFIG) -> UNet:
    unet = UNet(config, COMPONENTS)
    reference.random_weights(unet, seed=8)
    return unet


def windows_of(n: int, size: int) -> Tensor:
    return torch.randn((n, COMPONENTS, size, size), generator=torch.Generator().manual_seed(4))


def extractor(patches: PatchConfig, *, batch: int = 4, arithmetic: str = "fast",
              precision: str = "float32") -> Extractor:  # fmt: skip
    config = FeatureConfig(
        timesteps=TIMESTEPS, stages=STAGES, noise_seed=2, batch=batch, arithmetic=arithmetic,
        precision=precision,  # type: ignore[arg-type]
    )  # fmt: skip
    return Extractor(build(), SCHEDULE, config, patches)


def assert_close(found: Features, expected: Features, tolerance: float) -> None:
    pairs = (found.centre_NPTK, expected.centre_NPTK), (found.pooled_NTK, expected.pooled_NTK)
    for a, b in pairs:
        assert a.shape == b.shape
        assert reference.relative_error(a, b) < tolerance


@pytest.mark.parametrize(("size", "stride"), [(8, 1), (8, 8), (16, 1), (16, 2), (16, 5), (24, 3), (20, 1)])
def test_features_are_those_of_upsampled_maps(size: int, stride: int) -> None:
    patches = PatchConfig(size=size, stride=stride)
    read, windows = extractor(patches), windows_of(2, size)
    block = slice(patches.before, patches.before + stride)
    noise = shared_noise(2, COMPONENTS, size)
    centre, pooled = reference.features(build().state_dict(), windows, noise, TIMESTEPS, STAGES, block)
    found = read(windows)
    assert found.centre_NPTK.shape == (2, stride**2, len(TIMESTEPS), 64 + 64 + 64 + 32)
    assert reference.relative_error(found.centre_NPTK, centre) < 2e-5
    assert reference.relative_error(found.pooled_NTK, pooled) < 2e-5
    assert found.centre_NPTK.dtype == found.pooled_NTK.dtype == torch.float32


@pytest.mark.parametrize("arithmetic", ["fast", "reference"])
@pytest.mark.parametrize("batch", [4, 5])
def test_a_window_alone_or_in_company_gives_the_same_bits(batch: int, arithmetic: str) -> None:
    patches = PatchConfig(size=16, stride=2)
    read, windows = extractor(patches, batch=batch, arithmetic=arithmetic), windows_of(7, 16)
    together = read(windows)
    backwards = read(windows.flip(0))
    assert torch.equal(together.centre_NPTK, backwards.centre_NPTK.flip(0))
    assert torch.equal(together.pooled_NTK, backwards.pooled_NTK.flip(0))
    for i in (0, 3, 6):
        alone = read(windows[i : i + 1])
        assert torch.equal(alone.centre_NPTK[0], together.centre_NPTK[i])
        assert torch.equal(alone.pooled_NTK[0], together.pooled_NTK[i])


@pytest.mark.parametrize(
    ("batch", "arithmetic"), [(1, "fast"), (1, "reference"), (3, "fast"), (30, "fast"), (7, "reference")]
)
def test_batch_and_memory_order_change_the_rounding_alone(batch: int, arithmetic: str) -> None:
    patches, windows = PatchConfig(size=16, stride=4), windows_of(3, 16)
    expected = extractor(patches)(windows)
    assert_close(extractor(patches, batch=batch, arithmetic=arithmetic)(windows), expected, 2e-5)


def test_bfloat16_is_close_on_weights_as_trained() -> None:
    patches, windows = PatchConfig(size=16, stride=4), windows_of(4, 16)
    exact = extractor(patches)(windows)
    rough = extractor(patches, precision="bfloat16")(windows)
    assert_close(rough, exact, 3e-2)
    assert reference.relative_error(rough.centre_NPTK, exact.centre_NPTK) > 1e-4
    assert rough.centre_NPTK.dtype == torch.float32


@pytest.mark.parametrize(
    ("size", "window", "stride"), [(16, None, 1), (16, None, 6), (16, 24, 16), (8, 16, 16)]
)
def test_regions_and_single_pixels_are_the_blocks(size: int, window: int | None, stride: int) -> None:
    patches = PatchConfig(size=size, window=window, stride=stride)
    features = extractor(patches)(windows_of(3, patches.side))
    block = features.centre_NPTK
    square = block[1].unflatten(0, (stride, stride))
    spans = [slice(0, 1), slice(0, stride), slice(stride - 1, stride), slice(stride // 2, stride)]
    for rows, columns in itertools.product(spans, spans):
        found = features.region(1, rows, columns).transpose(0, 1)
        torch.testing.assert_close(found, square[rows, columns].flatten(0, 1), rtol=1e-5, atol=1e-5)
    at, offset = torch.tensor([0, 2, 1, 1]), torch.tensor([0, stride**2 - 1, stride // 2, 0])
    torch.testing.assert_close(features.at(at, offset), block[at, offset], rtol=1e-5, atol=1e-5)
    linear = torch.randn((*block.shape[2:], 3), generator=torch.Generator().manual_seed(0))
    expected = torch.einsum("yxtk,tkr->yxr", square, linear)
    torch.testing.assert_close(features.mapped(1, linear), expected, rtol=1e-4, atol=1e-4)


def test_a_readout_keeps_and_standardises_its_channels() -> None:
    patches, config = PatchConfig(size=16, stride=4), FeatureConfig(timesteps=TIMESTEPS, stages=STAGES)
    windows = windows_of(2, 16)
    everything = Extractor(build(), SCHEDULE, config, patches)(windows)
    centre, pooled = [0, 63, 64, 130, 223], [5, 200]
    mean, scale = torch.randn(2, len(TIMESTEPS), 5, generator=torch.Generator().manual_seed(1))
    found = Extractor(build(), SCHEDULE, config, patches, Readout(centre, pooled, mean, scale))(windows)
    expected = (everything.centre_NPTK[..., centre] - mean) * scale
    torch.testing.assert_close(found.centre_NPTK, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.pooled_NTK, everything.pooled_NTK[..., pooled])


def test_no_window_no_feature() -> None:
    found = extractor(PatchConfig(size=16, stride=2))(windows_of(0, 16))
    assert found.centre_NPTK.shape[:3] == (0, 4, len(TIMESTEPS))
    assert found.pooled_NTK.shape[:2] == (0, len(TIMESTEPS))


def test_the_noise_is_the_seeds_and_no_window_draws_its_own() -> None:
    patches = PatchConfig(size=16, stride=1)
    read, window = extractor(patches), windows_of(1, 16)
    assert torch.equal(read.noise, shared_noise(2, COMPONENTS, 16))
    state = torch.random.get_rng_state()
    twins = read(window.expand(3, -1, -1, -1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(twins.centre_NPTK[0], twins.centre_NPTK[2])
    assert torch.equal(twins.pooled_NTK, read(window).pooled_NTK.expand(3, -1, -1))


def test_interpolation_rows_by_hand() -> None:
    # The centre of a 48-pixel window, index 24, in maps of 12, 24 and 48 samples.
    known = {12: {5: 0.375, 6: 0.625}, 24: {11: 0.25, 12: 0.75}, 48: {24: 1.0}}
    for side, expected in known.items():
        [row] = interpolation_rows(side, PatchConfig(size=48, stride=1)).tolist()
        assert {i: weight for i, weight in enumerate(row) if weight} == expected


@pytest.mark.parametrize(("size", "stride", "side"), [(48, 48, 12), (16, 16, 16), (16, 6, 4), (24, 5, 12)])
def test_interpolation_rows_are_those_of_bilinear_upsampling(size: int, stride: int, side: int) -> None:
    patches = PatchConfig(size=size, stride=stride)
    impulses = torch.eye(side, dtype=torch.float64)[:, None]
    large = torch.nn.functional.interpolate(impulses, size, mode="linear", align_corners=False)[:, 0]
    rows = interpolation_rows(side, patches)
    torch.testing.assert_close(rows.double(), large.T[patches.before : patches.before + stride])


def test_feature_width_counts_the_tapped_channels() -> None:
    paper = UNetConfig(channels=128, multipliers=(1, 2, 2), res_blocks=2, heads=4)
    assert feature_width(paper, (0, 1, 2, 3, 5), 48) == 1280
    assert feature_width(paper, (5, 8), 48) == 256 + 128


@pytest.mark.parametrize("name", ["timesteps", "stages"])
@pytest.mark.parametrize("values", [(), (3, 1), (1, 1), (-1, 2)])
def test_unordered_lists_are_refused(name: str, values: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"features\.{name} must be ascending non-negative"):
        FeatureConfig(**{name: values})  # type: ignore[arg-type]


def test_impossible_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features\.batch must be at least 1, found 0"):
        FeatureConfig(batch=0)
    with pytest.raises(ValueError, match=r"features\.arithmetic: reference needs precision float32"):
        FeatureConfig(arithmetic="reference", precision="bfloat16")
    with pytest.raises(ValueError, match=r"must be below diffusion\.steps \(1000\), found 1000"):
        Extractor(build(), SCHEDULE, FeatureConfig(timesteps=(5, 1000)), PatchConfig(size=16, stride=1))
    with pytest.raises(ValueError, match=r"features\.stages .* below 6, found \[0, 6\]"):
        Extractor(build(), SCHEDULE, FeatureConfig(stages=(0, 6)), PatchConfig(size=16, stride=1))(
            windows_of(1, 16)
        )
