"""Minimal filtering and the frozen U-Net against the plain layers, in float64 where it counts."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtmsd.convolutions import Convolution, UpConvolution, edge_sums
from mtmsd.inference import FrozenUNet
from mtmsd.layers import Upsample
from mtmsd.unet import UNet, UNetConfig
from mtmsd.winograd import Winograd
from tests import reference

TIMESTEPS = (3, 400)


def maps(n: int, side: int, channels: int) -> Tensor:
    return torch.randn((n, side, side, channels), generator=torch.Generator().manual_seed(side))


@pytest.mark.parametrize(("tile", "height", "width"), [(2, 2, 2), (2, 6, 10), (4, 4, 4), (4, 8, 12)])
def test_minimal_filtering_is_the_convolution(tile: int, height: int, width: int) -> None:
    x = torch.randn((3, height, width, 5), generator=torch.Generator().manual_seed(tile))
    weight, bias = torch.randn(7, 5, 3, 3), torch.randn(7)
    expected = F.conv2d(x.permute(0, 3, 1, 2).double(), weight.double(), bias.double(), padding=1)
    found = Winograd(weight, bias, tile, torch.float32)(x)
    assert found.shape == (3, height, width, 7)
    assert reference.relative_error(found, expected.permute(0, 2, 3, 1)) < 1e-5


def test_parts_of_the_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = maps(3, 16, 4), torch.randn(6, 4, 3, 3), torch.randn(6)
    convolve = Winograd(weight, bias, 4, torch.float32)
    whole = convolve(x)
    for budget in (1, 3000, 10_000):
        monkeypatch.setattr("mtmsd.winograd._PART_BYTES", budget)
        torch.testing.assert_close(convolve(x), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("tile", "limit"), [(2, 1e-2), (4, 2.5e-2)])
def test_bfloat16_error_of_the_tiles(tile: int, limit: float) -> None:
    x, weight, bias = maps(1, 16, 64), torch.randn(64, 64, 3, 3), torch.zeros(64)
    exact = Winograd(weight, bias, tile, torch.float32)(x)
    rough = Winograd(weight, bias, tile, torch.bfloat16)(x)
    assert 1e-3 < reference.relative_error(rough, exact) < limit


@pytest.mark.parametrize("side", [1, 2, 5, 8])
def test_up_convolution_its_regions_and_its_mean(side: int) -> None:
    torch.manual_seed(side)
    layer, x = Upsample(6), maps(2, side, 6)
    with torch.no_grad():
        expected = layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        up = UpConvolution(layer.conv.weight, layer.conv.bias, torch.float32, torch.float32)
        torch.testing.assert_close(up(x), expected, rtol=1e-5, atol=1e-5)
        mean = up.mean(edge_sums(x, (0, -1)), side)
        torch.testing.assert_close(mean, expected.mean(dim=(1, 2)), rtol=1e-5, atol=1e-5)
        for first in range(2 * side):
            for last in range(first + 1, 2 * side + 1):
                part = expected[:, first:last, first:last]
                y0, y1 = up.reads(first, last, side)
                found = up.region(x[:, y0:y1, y0:y1], y0, side, first, last)
                torch.testing.assert_close(found, part, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", [2, 3, 8])
def test_convolution_its_parts_and_its_sums(side: int) -> None:
    torch.manual_seed(side)
    layer, x, also = torch.nn.Conv2d(5, 7, 3, padding=1), maps(2, side, 5), torch.randn(7)
    with torch.no_grad():
        expected = layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) + also
        convolve = Convolution(layer, torch.float32, torch.float32, also=also)
        torch.testing.assert_close(convolve(x), expected, rtol=1e-5, atol=1e-5)
        sums = edge_sums(expected, (0, -1))
        torch.testing.assert_close(convolve.sums(x), sums, rtol=1e-5, atol=1e-5)
        for first in range(side):
            for last in range(first + 1, side + 1):
                part = expected[:, first:last, first:last]
                torch.testing.assert_close(convolve.part(x, first, last), part, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("taps", [(0, 2, 5), (2,), (3, 5), (8,)])
@pytest.mark.parametrize(("channels", "side"), [(32, 16), (128, 16), (32, 20)])
@torch.no_grad()
def test_stages_are_the_plain_networks(channels: int, side: int, taps: tuple[int, ...]) -> None:
    """128 channels take minimal filtering with tiles of 4 and 2, and the library for odd maps."""
    unet = UNet(UNetConfig(channels=channels), 3).eval()
    reference.random_weights(unet, seed=2)
    x = torch.randn((2, 3, side, side), generator=torch.Generator().manual_seed(0))
    frozen = FrozenUNet(unet, TIMESTEPS, taps, torch.float32)
    for step, t in enumerate(TIMESTEPS):
        plain = unet.stages(x, torch.full((2,), t), taps)
        for stage, expected in zip(frozen.stages(x, step), plain, strict=True):
            assert stage.side == expected.shape[2]
            found = stage.region(0, stage.side).permute(0, 3, 1, 2)
            assert reference.relative_error(found, expected) < 3e-5
            middle = slice(stage.side // 2 - 1, stage.side // 2 + 1)
            few = stage.region(middle.start, middle.stop).permute(0, 3, 1, 2)
            assert reference.relative_error(few, expected[:, :, middle, middle]) < 3e-5
            assert reference.relative_error(stage.mean(), expected.mean(dim=(2, 3))) < 3e-5


def test_freezing_leaves_the_network_alone() -> None:
    unet = UNet(UNetConfig(channels=32), 3)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    FrozenUNet(unet, TIMESTEPS, (5,), torch.bfloat16).stages(torch.randn(1, 3, 16, 16), 0)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert all(value.dtype == torch.float32 for value in unet.parameters())
