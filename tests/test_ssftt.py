"""The transformer: the network step by step; as a peer, tuned on training pixels alone."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import peers, ssftt
from mtmsd.split import TEST, TRAIN, SplitConfig
from mtmsd.ssftt import SSFTT
from tests import reference

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


def test_hidden_pixels_do_not_decide_the_components() -> None:
    cube, _ = striped()
    hidden = np.zeros((24, 24), bool)
    hidden[:8] = True
    other = cube.copy()
    other[:, :8] *= 5
    other[3, :8] = np.nan
    found, again = ssftt.whitened(cube, hidden), ssftt.whitened(other, hidden)
    np.testing.assert_array_equal(found[:, 14:], again[:, 14:])
    inside = found[:, 14:-6, 6:-6].reshape(8, -1)
    np.testing.assert_allclose(inside @ inside.T / inside.shape[1], np.eye(8), atol=1e-3)
    assert not np.allclose(ssftt.whitened(cube)[:, 14:], ssftt.whitened(other)[:, 14:], atol=0.1)


@pytest.mark.parametrize("guests", [0, 1])
def test_every_parameter_learns(guests: int) -> None:
    model = SSFTT(8, 2, guests)
    model(torch.randn(4, 8, 13, 13), *torch.randn(guests, 4, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def naive(state: dict[str, np.ndarray], patch: np.ndarray, guests: list[np.ndarray]) -> np.ndarray:
    """One patch (C, P, P), double precision, convolutions tap by tap and attention head by head."""

    def batch_norm(name: str, x: np.ndarray) -> np.ndarray:
        at = (slice(None), *(None,) * (x.ndim - 1))
        scale = state[f"{name}.weight"] / np.sqrt(state[f"{name}.running_var"] + 1e-5)
        return (x - state[f"{name}.running_mean"][at]) * scale[at] + state[f"{name}.bias"][at]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        scaled = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    c, p, _ = patch.shape
    h = np.zeros((8, c - 2, p - 2, p - 2)) + state["spectral.0.bias"][:, None, None, None]
    for z, y, x in np.ndindex(3, 3, 3):
        seen = patch[z : z + c - 2, y : y + p - 2, x : x + p - 2]
        h += state["spectral.0.weight"][:, 0, z, y, x][:, None, None, None] * seen
    h = np.maximum(batch_norm("spectral.1", h), 0).reshape(8 * (c - 2), p - 2, p - 2)
    g = np.zeros((64, p - 4, p - 4)) + state["spatial.0.bias"][:, None, None]
    for y, x in np.ndindex(3, 3):
        g += np.einsum(
            "oi,ihw->ohw", state["spatial.0.weight"][:, :, y, x], h[:, y : y + p - 4, x : x + p - 4]
        )
    pixels = np.maximum(batch_norm("spatial.1", g), 0).reshape(64, -1).T
    share = np.exp(pixels @ state["assign.weight"].T)
    tokens = (share / share.sum(axis=0)).T @ (pixels @ state["value.weight"].T)
    tokens = np.concatenate([state["class_token"][0], tokens, *guests]) + state["place"][0]
    x = norm("transformer.norm1", tokens)
    q, k, v = np.split(x @ state["transformer.self_attn.in_proj_weight"].T
                       + state["transformer.self_attn.in_proj_bias"], 3, axis=1)  # fmt: skip
    heads = []
    for i in range(8):
        part = slice(8 * i, 8 * i + 8)
        weights = np.exp(q[:, part] @ k[:, part].T / math.sqrt(8))
        heads.append(weights / weights.sum(axis=1, keepdims=True) @ v[:, part])
    tokens = tokens + linear("transformer.self_attn.out_proj", np.concatenate(heads, axis=1))
    x = linear("transformer.linear1", norm("transformer.norm2", tokens))
    gelu = x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    return linear("head", (tokens + linear("transformer.linear2", gelu))[0])


@pytest.mark.parametrize(("components", "side", "guests"), [(8, 13, 0), (3, 7, 1)])
@torch.inference_mode()
def test_the_network_step_by_step(components: int, side: int, guests: int) -> None:
    model = SSFTT(components, 4, guests).eval()
    reference.random_weights(model, seed=1)
    for name, value in model.named_buffers():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    patches, visitors = torch.randn(3, components, side, side), torch.randn(guests, 3, 64)
    state = {name: value.double().numpy() for name, value in model.state_dict().items()}
    expected = [
        naive(state, patches[n].double().numpy(), [guest[n : n + 1].double().numpy() for guest in visitors])
        for n in range(3)
    ]
    assert reference.relative_error(model(patches, *visitors), np.stack(expected)) < 1e-5


def test_stripes_are_learnt_without_a_look_at_the_test_labels() -> None:
    cube, pixels = striped()
    found = peers.transformer(cube, pixels, SplitConfig())
    assert found["oa"] > 0.9
    lied = peers.Pixels(pixels.y, pixels.x, np.where(pixels.split == TEST, 3, pixels.label), pixels.split)
    assert (
        peers.transformer(cube, lied, SplitConfig())["chosen"]
        == found["chosen"]
        == {"learning_rate": 1e-3, "epochs": 6}
    )


@pytest.mark.parametrize("inductive", [False, True])
def test_blocks_that_test_are_hidden_where_the_split_is_inductive(
    inductive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cube, pixels = striped()
    blocks = peers.Pixels(pixels.y, pixels.x, pixels.label, np.where(pixels.y < 8, TEST, TRAIN))
    plain, seen = ssftt.whitened, []
    monkeypatch.setattr(ssftt, "whitened", lambda cube, hidden: seen.append(hidden) or plain(cube, hidden))
    peers.transformer(cube, blocks, SplitConfig(protocol="blocks", block=8, inductive=inductive))
    assert (seen[0] is not None) == inductive
    if inductive:
        assert seen[0][:8].all()
        assert not seen[0][8:].any()


def test_a_forest_is_tuned_and_repeats() -> None:
    cube, pixels = striped()
    spectra = peers.spectra(cube, pixels)
    found = peers.forest(spectra, pixels)
    assert found["oa"] > 0.8
    assert found["chosen"] == {"min_samples_leaf": 1}
    assert peers.forest(spectra, pixels)["oa"] == found["oa"]
