"""Features: read without upsampling what upsampled maps hold, the same in whatever company."""

import pytest
import torch
from torch import Tensor

from mtmsd.diffusion import DiffusionConfig, Schedule, shared_noise
from mtmsd.features import Extractor, FeatureConfig, Features, feature_width, interpolation_rows
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


def extractor(patches: PatchConfig, *, batch: int = 4, channels_last: bool = True,
              precision: str = "float32") -> Extractor:  # fmt: skip
    config = FeatureConfig(
        timesteps=TIMESTEPS, stages=STAGES, noise_seed=2, batch=batch, channels_last=channels_last,
        precision=precision,  # type: ignore[arg-type]
    )  # fmt: skip
    return Extractor(build(), SCHEDULE, config, patches)


def assert_close(found: Features, expected: Features, tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert reference.relative_error(a, b) < tolerance


@pytest.mark.parametrize(("size", "stride"), [(8, 1), (8, 8), (16, 1), (16, 2), (16, 5), (24, 3), (20, 1)])
def test_features_are_those_of_upsampled_maps(size: int, stride: int) -> None:
    patches = PatchConfig(size=size, stride=stride)
    read, windows = extractor(patches), windows_of(2, size)
    block = slice(patches.before, patches.before + stride)
    noise = shared_noise(2, COMPONENTS, size)
    centre, pooled = reference.features(read.unet.state_dict(), windows, noise, TIMESTEPS, STAGES, block)
    found = read(windows)
    assert found.centre_NPTD.shape == (2, stride**2, len(TIMESTEPS), read.width)
    assert reference.relative_error(found.centre_NPTD, centre) < 2e-5
    assert reference.relative_error(found.pooled_NTD, pooled) < 2e-5
    assert found.centre_NPTD.dtype == found.pooled_NTD.dtype == torch.float32


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("batch", [4, 5])
def test_a_window_alone_or_in_company_gives_the_same_bits(batch: int, channels_last: bool) -> None:
    patches = PatchConfig(size=16, stride=2)
    read, windows = extractor(patches, batch=batch, channels_last=channels_last), windows_of(7, 16)
    together = read(windows)
    backwards = read(windows.flip(0))
    assert torch.equal(together.centre_NPTD, backwards.centre_NPTD.flip(0))
    assert torch.equal(together.pooled_NTD, backwards.pooled_NTD.flip(0))
    for i in (0, 3, 6):
        alone = read(windows[i : i + 1])
        assert torch.equal(alone.centre_NPTD[0], together.centre_NPTD[i])
        assert torch.equal(alone.pooled_NTD[0], together.pooled_NTD[i])


@pytest.mark.parametrize(
    ("batch", "channels_last"), [(1, True), (1, False), (3, True), (30, True), (7, False)]
)
def test_batch_and_memory_order_change_the_rounding_alone(batch: int, channels_last: bool) -> None:
    patches, windows = PatchConfig(size=16, stride=4), windows_of(3, 16)
    expected = extractor(patches)(windows)
    assert_close(extractor(patches, batch=batch, channels_last=channels_last)(windows), expected, 2e-5)


def test_bfloat16_is_close_on_weights_as_trained() -> None:
    patches, windows = PatchConfig(size=16, stride=4), windows_of(4, 16)
    exact = extractor(patches)(windows)
    rough = extractor(patches, precision="bfloat16")(windows)
    assert_close(rough, exact, 3e-2)
    assert reference.relative_error(rough.centre_NPTD, exact.centre_NPTD) > 1e-4
    assert rough.centre_NPTD.dtype == torch.float32


def test_no_window_no_feature() -> None:
    found = extractor(PatchConfig(size=16, stride=2))(windows_of(0, 16))
    assert found.centre_NPTD.shape[:3] == (0, 4, len(TIMESTEPS))
    assert found.pooled_NTD.shape[:2] == (0, len(TIMESTEPS))


def test_the_noise_is_the_seeds_and_no_window_draws_its_own() -> None:
    patches = PatchConfig(size=16, stride=1)
    read, window = extractor(patches), windows_of(1, 16)
    assert torch.equal(read.noise, shared_noise(2, COMPONENTS, 16))
    state = torch.random.get_rng_state()
    twins = read(window.expand(3, -1, -1, -1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(twins.centre_NPTD[0], twins.centre_NPTD[2])
    assert torch.equal(twins.pooled_NTD, read(window).pooled_NTD.expand(3, -1, -1))


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
    assert extractor(PatchConfig(size=16, stride=1)).width == 64 + 64 + 64 + 32


@pytest.mark.parametrize("name", ["timesteps", "stages"])
@pytest.mark.parametrize("values", [(), (3, 1), (1, 1), (-1, 2)])
def test_unordered_lists_are_refused(name: str, values: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"features\.{name} must be ascending non-negative"):
        FeatureConfig(**{name: values})  # type: ignore[arg-type]


def test_impossible_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features\.batch must be at least 1, found 0"):
        FeatureConfig(batch=0)
    with pytest.raises(ValueError, match=r"must be below diffusion\.steps \(1000\), found 1000"):
        Extractor(build(), SCHEDULE, FeatureConfig(timesteps=(5, 1000)), PatchConfig(size=16, stride=1))
    with pytest.raises(ValueError, match=r"features\.stages .* below 6, found \[0, 6\]"):
        Extractor(build(), SCHEDULE, FeatureConfig(stages=(0, 6)), PatchConfig(size=16, stride=1))(
            windows_of(1, 16)
        )
