"""Supertokens against loops and by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mtmsd.supertokens import (
    SupertokenConfig,
    Supertokens,
    pixel_probabilities,
    spectral_metric,
)

pytestmark = pytest.mark.usefixtures("one_thread")
GENERATOR = torch.Generator().manual_seed(0)


def region(cells: tuple[int, int], cell: int, components: int = 3) -> tuple[Tensor, Tensor]:
    """A cube of noise with a step across it, and where it has data: not in one whole cell and some pixels."""
    height, width = (side * cell for side in cells)
    cube_KHW = torch.randn((components, height, width), generator=GENERATOR, dtype=torch.float64)
    cube_KHW[0, :, width // 2 :] += 3
    valid_HW = torch.rand((height, width), generator=GENERATOR) > 0.1
    valid_HW[:cell, cell : 2 * cell] = False
    return cube_KHW, valid_HW


class Loop:
    """The same clusters, pixel by pixel."""

    def __init__(self, tokens: Supertokens, cube_KHW: Tensor, valid_HW: Tensor) -> None:
        self.config, cell = tokens.config, tokens.config.cell
        self.height, self.width = (side // cell for side in valid_HW.shape)
        projection = tokens.projection_EK.detach().numpy()
        self.pixels: dict[tuple[int, int], np.ndarray] = {}
        for y, x in np.argwhere(valid_HW.numpy()):
            place = (np.array([y, x]) + 0.5) / cell * self.config.compactness
            self.pixels[int(y), int(x)] = np.concatenate([projection @ cube_KHW[:, y, x].numpy(), place])
        self.token = {}
        for key in np.ndindex(self.height, self.width):
            mine = [v for (y, x), v in self.pixels.items() if (y // cell, x // cell) == key]
            if mine:
                self.token[key] = np.mean(mine, axis=0)
        for _ in range(self.config.iterations):
            shares = {at: self.share(at) for at in self.pixels}
            self.token = {
                key: (old + sum(s[key] * self.pixels[at] for at, s in shares.items() if key in s))
                / (1 + sum(s[key] for s in shares.values() if key in s))
                for key, old in self.token.items()
            }

    def share(self, at: tuple[int, int]) -> dict[tuple[int, int], float]:
        row, column = (side // self.config.cell for side in at)
        near = [(row + y, column + x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
        weight = {
            key: math.exp(-((self.pixels[at] - self.token[key]) ** 2).sum() / self.config.temperature)
            for key in near
            if key in self.token
        }
        return {key: value / sum(weight.values()) for key, value in weight.items()}

    def vote(self, probability_CHW: Tensor) -> np.ndarray:
        p = probability_CHW.numpy()
        shares = {at: self.share(at) for at in self.pixels}
        sums, weight = ({key: 0.0 for key in self.token} for _ in range(2))
        for at, share in shares.items():
            for key, value in share.items():
                sums[key] = sums[key] + value * p[:, at[0], at[1]]
                weight[key] += value
        result = np.zeros_like(p)
        for (y, x), share in shares.items():
            mixed = sum(value * sums[key] / weight[key] for key, value in share.items())
            mixed = mixed * p[:, y, x] ** self.config.own
            result[:, y, x] = mixed / mixed.sum()
        return result


@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_vote_is_that_of_a_loop_over_pixels(iterations: int) -> None:
    config = SupertokenConfig(cell=3, iterations=iterations, compactness=0.7, temperature=1.5, own=0.3)
    cube_KHW, valid_HW = region((4, 5), 3)
    projection = torch.randn((2, 3), generator=GENERATOR, dtype=torch.float64)
    tokens, loop = (made := Supertokens(config, projection)), Loop(made, cube_KHW, valid_HW)
    probability = torch.rand((4, *valid_HW.shape), generator=GENERATOR, dtype=torch.float64)
    probability = probability / probability.sum(dim=0) * valid_HW
    with torch.no_grad():
        np.testing.assert_allclose(
            tokens.vote(cube_KHW, probability).numpy(), loop.vote(probability), atol=1e-9
        )
        token_hwF = tokens(cube_KHW, valid_HW).token_hwF.numpy()
    for (row, column), value in loop.token.items():
        middle = np.concatenate([np.zeros(2), (np.array([row, column]) + 0.5) * config.compactness])
        np.testing.assert_allclose(token_hwF[row, column], value - middle, atol=1e-9)


def test_a_pixel_goes_with_the_cluster_that_it_resembles() -> None:
    """Two cells of 2 x 2: 0 0 0 4 (mean 1) and 4 4 4 4; the odd pixel is 9 from the one, 0 from the other."""
    cube = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [0.0, 4.0, 4.0, 4.0]]])
    config = SupertokenConfig(cell=2, iterations=0, compactness=0, own=0)
    tokens = Supertokens(config, torch.eye(1))
    far = 1 / (1 + math.exp(9))
    with torch.no_grad():
        share_GPJ = tokens(cube, torch.ones(2, 4, dtype=torch.bool)).share_GPJ
        position = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]])
        confidence = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.6, 1.0, 1.0]])
        voted = tokens.vote(cube, pixel_probabilities(position, confidence, 2))
    assert share_GPJ[0, 3, [4, 5]].tolist() == pytest.approx([far, 1 - far], rel=1e-4)
    assert share_GPJ[0, 3].sum() == pytest.approx(1)
    # The right token: four pixels sure of class 1, one that says 0.4 of it.
    assert voted[1, 1, 1] == pytest.approx(4.4 / 5, abs=1e-3)
    assert voted[1, 0, 0] == pytest.approx(0, abs=1e-3)
    own = Supertokens(SupertokenConfig(cell=2, iterations=0, compactness=0, own=1), torch.eye(1))
    with torch.no_grad():
        voted = own.vote(cube, pixel_probabilities(position, confidence, 2))
    assert voted[1, 1, 1] == pytest.approx(0.88 * 0.4 / (0.88 * 0.4 + 0.12 * 0.6), abs=2e-3)


def test_no_data_neither_votes_nor_gets_a_vote() -> None:
    config = SupertokenConfig(cell=3)
    cube_KHW, valid_HW = region((3, 4), 3)
    tokens = Supertokens(config, torch.eye(3, dtype=torch.float64))
    own = pixel_probabilities(torch.where(valid_HW, 1, -1), torch.full(valid_HW.shape, 0.7), 3).double()
    with torch.no_grad():
        voted = tokens.vote(cube_KHW, own)
        other = tokens.vote(torch.where(valid_HW, cube_KHW, 99.0), own)
    assert (voted[:, ~valid_HW] == 0).all()
    assert torch.equal(voted, other)
    np.testing.assert_allclose(voted.sum(dim=0)[valid_HW], 1, atol=1e-12)


def test_probabilities_as_a_map_keeps_them() -> None:
    found = pixel_probabilities(torch.tensor([[2, -1]]), torch.tensor([[0.4, 0.0]]), 4)
    assert found[:, 0, 0].tolist() == pytest.approx([0.2, 0.2, 0.4, 0.2])
    assert found[:, 0, 1].tolist() == [0, 0, 0, 0]
    assert pixel_probabilities(torch.tensor([[0]]), torch.tensor([[1.0]]), 1).tolist() == [[[1.0]]]
    against = pixel_probabilities(torch.tensor([[0]]), torch.tensor([[0.32]]), 2)
    assert against[0] > against[1], "a majority's class may have the smaller mean probability"


def test_spectral_metric_measures_components_and_slopes() -> None:
    rng = np.random.default_rng(0)
    loadings, scale = torch.from_numpy(rng.normal(size=(6, 3))), torch.tensor([5.0, 2.0, 0.5])
    wavelength = torch.tensor([400.0, 410.0, 430.0, 430.0, 450.0, 500.0])
    projection = spectral_metric(loadings, scale, wavelength, derivative=0.5).double()

    def slopes(z: np.ndarray) -> np.ndarray:
        spectrum = loadings.numpy() @ (scale.numpy() * z)
        pairs = [(0, 1), (1, 2), (3, 4), (4, 5)]  # bands 2 and 3 are at one wavelength
        return np.array(
            [(spectrum[j] - spectrum[i]) / float(wavelength[j] - wavelength[i]) for i, j in pairs]
        )

    usual = sum((slopes(axis) ** 2).sum() for axis in np.eye(3)) / 3
    for z in rng.normal(size=(5, 3)):
        found = float((projection @ torch.from_numpy(z)).square().sum())
        assert found == pytest.approx((z**2).sum() + 0.5 * (slopes(z) ** 2).sum() / usual, rel=1e-5)
    assert torch.equal(spectral_metric(loadings, scale, wavelength, 0), torch.eye(3))
    assert torch.equal(spectral_metric(torch.ones(1, 1), torch.ones(1), None, 1), torch.eye(1))


@pytest.mark.parametrize(
    ("name", "value"), [("cell", 1), ("iterations", -1), ("own", -0.1), ("temperature", 0), ("steps", -1)]
)
def test_values_without_meaning_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"supertokens.{name} must be"):
        SupertokenConfig(**{name: value})
