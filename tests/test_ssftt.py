"""The transformer among the peers: shapes, components, learning, tuning on training pixels alone."""

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import peers, ssftt
from mtmsd.split import TEST, TRAIN

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def short(monkeypatch: Any) -> None:
    """Few trees and epochs."""
    monkeypatch.setattr(ssftt, "TRIALS", (ssftt.Training(1e-3, 1), ssftt.Training(1e-3, 6)))
    monkeypatch.setattr(peers, "TREES", 5)
    monkeypatch.setattr(peers, "FOREST_GRID", {"min_samples_leaf": [1, 40]})


def striped(bands: int = 8, side: int = 24) -> tuple[np.ndarray, peers.Pixels]:
    """Four vertical stripes of two materials, noisy; two pixels in three test."""
    rng = np.random.default_rng(0)
    y, x = (axis.ravel() for axis in np.mgrid[:side, :side])
    label = np.where(x // 6 % 2 == 0, 3, 9)
    cube = rng.normal(scale=0.3, size=(bands, side, side))
    cube[: bands // 2] += (label == 3).reshape(side, side)
    split = np.where((y + x) % 3 == 0, TRAIN, TEST)
    return cube.astype(np.float32), peers.Pixels(y, x, label, split)


def test_components_are_white_and_padded() -> None:
    cube, _ = striped()
    cube[0, 3, 3] = np.nan
    image = ssftt.whitened(cube)
    assert image.shape == (8, 36, 36)
    inside = image[:, 6:-6, 6:-6].reshape(8, -1)
    np.testing.assert_allclose(inside @ inside.T / inside.shape[1], np.eye(8), atol=1e-3)
    assert not image[:, :6].any()
    y, x = np.array([0, 5]), np.array([0, 23])
    patches = ssftt.patches_at(image, y, x)
    assert patches.shape == (2, 8, 13, 13)
    assert torch.equal(patches[:, :, 6, 6], torch.from_numpy(image[:, y + 6, x + 6].T.copy()))


def test_every_parameter_learns() -> None:
    model = ssftt.SSFTT(8, 2)
    model(torch.randn(4, 8, 13, 13)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_stripes_are_learnt_without_a_look_at_the_test_labels() -> None:
    cube, pixels = striped()
    found = peers.transformer(cube, pixels)
    assert found["oa"] > 0.9
    lied = peers.Pixels(pixels.y, pixels.x, np.where(pixels.split == TEST, 3, pixels.label), pixels.split)
    assert peers.transformer(cube, lied)["chosen"] == found["chosen"] == {"learning_rate": 1e-3, "epochs": 6}


def test_a_forest_is_tuned_and_repeats() -> None:
    cube, pixels = striped()
    spectra = peers.spectra(cube, pixels)
    found = peers.forest(spectra, pixels)
    assert found["oa"] > 0.8
    assert found["chosen"] == {"min_samples_leaf": 1}
    assert peers.forest(spectra, pixels)["oa"] == found["oa"]
