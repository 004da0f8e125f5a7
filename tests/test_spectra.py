"""Mean spectra of boxes: naive means, the window's edge, one window or many."""

import numpy as np
import pytest
import torch
from scipy.ndimage import grey_closing, grey_opening

from mtmsd.features import FeatureConfig
from mtmsd.interpolation import Features
from mtmsd.spectra import PROFILED, box_means, box_profiles, patches_round, spectra_round, spectra_width
from mtmsd.windows import PatchConfig

torch.set_num_threads(1)


@pytest.mark.parametrize(("side", "stride", "radii"), [(12, 4, (0, 1, 3)), (9, 9, (2,)), (8, 1, (0,))])
def test_means_are_those_of_a_loop(side: int, stride: int, radii: tuple[int, ...]) -> None:
    patches = PatchConfig(size=side, stride=stride)
    windows = torch.randn((2, 3, side, side), generator=torch.Generator().manual_seed(0))
    found = box_means(windows, radii, patches)
    assert found.shape == (2, stride, stride, 3 * len(radii))
    for row in range(stride):
        for column in range(stride):
            y, x = row + patches.before, column + patches.before
            expected = [
                windows[:, :, max(y - r, 0) : y + r + 1, max(x - r, 0) : x + r + 1].mean(dim=(2, 3))
                for r in radii
            ]
            torch.testing.assert_close(found[:, row, column], torch.cat(expected, dim=1))


def test_windows_that_see_enough_agree_on_a_pixel() -> None:
    scene = np.random.default_rng(0).random((1, 2, 40, 40)).astype(np.float32)
    near, far = PatchConfig(size=12, stride=4), PatchConfig(size=24, stride=16)
    small = box_means(torch.from_numpy(scene[:, :, 8:20, 8:20]), (0, 1, 4), near)  # block 12..16
    large = box_means(torch.from_numpy(scene[:, :, 4:28, 4:28]), (0, 1, 4), far)  # block 8..24
    torch.testing.assert_close(small, large[:, 4:8, 4:8])


def test_profiles_are_openings_and_closings() -> None:
    """Against scipy's, where the window's edge is out of reach; only the first components have any."""
    scene = np.random.default_rng(0).random((PROFILED + 2, 40, 40)).astype(np.float32)
    patches = PatchConfig(size=24, stride=6)  # 9 pixels of halo: twice the largest radius and one more
    found = box_profiles(torch.from_numpy(scene[None, :, 8:32, 8:32]), (1, 4), patches)[0]
    assert found.shape == (6, 6, 2 * 2 * PROFILED)
    layers = [
        method(image, size=(2 * r + 1, 2 * r + 1))
        for r in (1, 4)
        for method in (grey_opening, grey_closing)
        for image in scene[:PROFILED]
    ]
    np.testing.assert_array_equal(found.numpy(), np.stack(layers)[:, 17:23, 17:23].transpose(1, 2, 0))


def test_profiles_of_windows_that_see_enough_agree_on_a_pixel() -> None:
    scene = torch.randn((1, 2, 60, 60), generator=torch.Generator().manual_seed(0))
    near, far = PatchConfig(size=24, stride=6), PatchConfig(size=40, stride=22)
    small = box_profiles(scene[:, :, 16:40, 16:40], (1, 4), near)  # block 25..31
    large = box_profiles(scene[:, :, 10:50, 10:50], (1, 4), far)  # block 19..41
    assert torch.equal(small, large[:, 6:12, 6:12])


@pytest.mark.parametrize(("spectra", "profiles"), [((0, 1), (2, 3)), ((0,), ()), ((), (1, 2))])
def test_width_is_what_is_read(spectra: tuple[int, ...], profiles: tuple[int, ...]) -> None:
    """Without means there are no profiles either."""
    boxes = FeatureConfig(spectra=spectra, profiles=profiles).boxes
    read = spectra_round(torch.zeros(1, 6, 8, 8), *boxes, 0, PatchConfig(size=8, stride=2))
    assert read.shape == (1, 2, 2, spectra_width(6, *boxes, 0))
    assert bool(read.shape[-1]) == bool(spectra)


def test_no_radii_no_spectra() -> None:
    assert box_means(torch.zeros(3, 2, 8, 8), (), PatchConfig(size=8, stride=2)).shape == (3, 2, 2, 0)


def test_patches_are_those_of_the_scene() -> None:
    """A pixel's patch is cut from the scene round it, read singly or by rows, and takes no memory before."""
    scene = torch.randn((3, 30, 30), generator=torch.Generator().manual_seed(0))
    patches = PatchConfig(size=12, stride=4)  # 4 pixels of halo
    windows = torch.stack([scene[:, y : y + 12, x : x + 12] for y, x in ((0, 0), (7, 11))])
    found = patches_round(windows, 9, patches)
    assert found.untyped_storage().data_ptr() == windows.untyped_storage().data_ptr()
    features = Features(torch.zeros(2, 1, 0), found, [], [])
    for row in range(4):
        for column in range(4):
            y, x = 7 + 4 + row, 11 + 4 + column
            expected = scene[:, y - 4 : y + 5, x - 4 : x + 5].flatten()
            assert torch.equal(features.spectra_region(1, slice(row, row + 1), slice(None))[column], expected)
            single = features.spectra_at(torch.tensor([1]), torch.tensor([row * 4 + column]))
            assert torch.equal(single[0], expected)


def test_radii_must_ascend() -> None:
    for radii in ((1, 0), (1, 1), (-1, 2)):
        with pytest.raises(ValueError, match=r"features\.spectra must be ascending"):
            FeatureConfig(spectra=radii)
