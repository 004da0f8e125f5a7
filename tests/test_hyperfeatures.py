"""Hyperfeatures against a pixel-by-pixel loop over the formula; what learns, what has no part."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from mtmsd.fusion import FusionConfig
from mtmsd.hyperfeatures import Hyperfeatures, heaviest
from tests import reference

torch.set_num_threads(1)

CONFIG = FusionConfig(kind="hyperfeatures", hidden=3, width=5)


def build(timesteps: int, stages: tuple[int, ...], config: FusionConfig = CONFIG) -> Hyperfeatures:
    fusion = Hyperfeatures(config, timesteps, stages).eval()
    reference.random_weights(fusion, seed=4)
    return fusion


def drawn(n: int, timesteps: int, channels: int) -> tuple[Tensor, Tensor]:
    centre, pooled = torch.randn(
        (2, n, timesteps, channels), generator=torch.Generator().manual_seed(3)
    )  # fmt: skip
    return centre, pooled


def naive(fusion: Hyperfeatures, centre_NTK: Tensor, stages: tuple[int, ...]) -> np.ndarray:
    """One (pixel, timestep, stage) after the other, double precision."""
    state = {name: value.double().numpy() for name, value in fusion.state_dict().items()}
    mixing = np.exp(state["mixing"])
    mixing /= mixing.sum()

    def layer(name: str, values: np.ndarray) -> np.ndarray:
        return state[f"{name}.weight"] @ values + state[f"{name}.bias"]

    def norm(name: str, values: np.ndarray) -> np.ndarray:
        scaled = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
        return state[f"{name}.weight"] * scaled + state[f"{name}.bias"]

    fused = np.zeros((len(centre_NTK), fusion.width))
    for n, pixel in enumerate(centre_NTK.double().numpy()):
        for t in range(len(pixel)):
            for s, (first, last) in enumerate(pairwise(np.cumsum([0, *stages]))):
                r, at = pixel[t, first:last], f"bottlenecks.{s}"
                inner = np.maximum(norm(f"{at}.narrow.1", layer(f"{at}.narrow.0", r)), 0)
                wide = norm(f"{at}.narrow.4", layer(f"{at}.narrow.3", inner))
                short = norm(f"{at}.shortcut.1", layer(f"{at}.shortcut.0", r))
                fused[n] += mixing[t, s] * np.maximum(wide + short, 0)
    return fused


@pytest.mark.parametrize(("timesteps", "stages"), [(3, (4, 2)), (2, (5,)), (1, (3,)), (1, (2, 1, 3))])
@torch.inference_mode()
def test_it_is_the_formula(timesteps: int, stages: tuple[int, ...]) -> None:
    fusion = build(timesteps, stages)
    centre, pooled = drawn(4, timesteps, sum(stages))
    assert reference.relative_error(fusion(centre, pooled), naive(fusion, centre, stages)) < 1e-5


@torch.inference_mode()
def test_all_weights_begin_equal_and_sum_to_one() -> None:
    weights = Hyperfeatures(CONFIG, 4, (2, 3)).mixing_weights()
    torch.testing.assert_close(weights, torch.full((4, 2), 1 / 8))
    weights = build(4, (2, 3)).mixing_weights()
    assert weights.std() > 0.01
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))


@torch.inference_mode()
def test_bottlenecks_are_shared_by_the_timesteps() -> None:
    fusion = build(3, (4, 2))
    centre, pooled = drawn(5, 3, 6)
    fusion.mixing[:] = fusion.mixing[:1]
    torch.testing.assert_close(fusion(centre.flip(1), pooled), fusion(centre, pooled))
    more = build(19, (4, 2)), build(1, (4, 2))
    counts = [sum(p.numel() for p in f.parameters()) for f in more]
    assert counts[0] - counts[1] == 18 * 2  # mixing weights alone


@torch.inference_mode()
def test_a_stage_that_keeps_nothing_has_no_part() -> None:
    centre, pooled = drawn(4, 2, 5)
    gap, plain = build(2, (3, 0, 2)), build(2, (3, 2))
    plain.load_state_dict(gap.state_dict())
    assert torch.equal(gap(centre, pooled), plain(centre, pooled))
    assert torch.equal(gap.mixing_weights()[:, [0, 2]], plain.mixing_weights())
    assert not gap.mixing_weights()[:, 1].any()


def test_every_parameter_learns() -> None:
    fusion = build(3, (4, 2)).train()
    centre, pooled = drawn(8, 3, 6)
    fusion(centre, pooled).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in fusion.parameters())


@torch.inference_mode()
def test_memory_does_not_grow_with_the_timesteps() -> None:
    """The sum is one array, however many timesteps there are: nothing of (pixel, timestep, width) is made."""
    fusion = build(50, (4, 2), FusionConfig(kind="hyperfeatures", hidden=3, width=32))
    centre, pooled = drawn(100, 50, 6)
    largest = []
    for module in fusion.modules():
        module.register_forward_hook(lambda _, __, out: largest.append(out.numel()))
    fusion(centre, pooled)
    assert max(largest) == 100 * 32


def test_the_papers_size() -> None:
    """The published widths: five stages of 256, 96 inside, 384 out; no 3 x 3 convolution for a pixel."""
    with torch.device("meta"):
        fusion = Hyperfeatures(FusionConfig(hidden=None, width=384), 19, (256,) * 5)
    bottleneck = (256 * 96 + 96) + (96 * 384 + 384) + (256 * 384 + 384) + 2 * (96 + 384 + 384)
    assert sum(p.numel() for p in fusion.parameters()) == 5 * bottleneck + 19 * 5


def test_the_heaviest_timesteps() -> None:
    table = torch.tensor([[0.2, 0.0], [0.1, 0.1], [0.0, 0.1], [0.4, 0.1]])
    assert heaviest(table, 1) == (3,)
    assert heaviest(table, 2) == (0, 3)  # of 0 and 1, which tie
    assert heaviest(table, 4) == (0, 1, 2, 3)
