"""Selective timestep fusion against a pixel-by-pixel loop over the formulas."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mtmsd.fusion import FusionConfig, SelectiveFusion
from tests import reference

torch.set_num_threads(1)


def features_of(n: int, timesteps: int, channels: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    centre, pooled = torch.randn((2, n, timesteps, channels), generator=generator)
    return centre, pooled


def build(timesteps: int, channels: int, hidden: int | None = None) -> SelectiveFusion:
    fusion = SelectiveFusion(FusionConfig(hidden=hidden), timesteps=timesteps, stages=[channels]).eval()
    reference.random_weights(fusion, seed=9)
    norm = fusion.fc[2]
    with torch.no_grad():
        norm.running_mean.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(1))
        norm.running_var.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(2))
    return fusion


@pytest.mark.parametrize(("timesteps", "channels", "hidden"), [(5, 12, None), (2, 7, 3), (1, 4, None)])
@torch.inference_mode()
def test_fusion_is_the_formula(timesteps: int, channels: int, hidden: int | None) -> None:
    fusion = build(timesteps, channels, hidden)
    centre, pooled = features_of(6, timesteps, channels)
    weights, fused = reference.fusion(fusion.state_dict(), centre.double().numpy(), pooled.double().numpy())
    assert reference.relative_error(fusion.weights(centre, pooled), weights) < 1e-5
    assert reference.relative_error(fusion(centre, pooled), fused) < 1e-5


@torch.inference_mode()
def test_weights_sum_to_one_over_timesteps() -> None:
    fusion = build(7, 10)
    weights = fusion.weights(*features_of(5, 7, 10))
    assert weights.shape == (5, 7, 10)
    assert weights.min() > 0
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(5, 10))
    assert weights.std(dim=1).min() > 0  # the timesteps do differ


@torch.inference_mode()
def test_equal_timesteps_fuse_to_themselves() -> None:
    centre, pooled = features_of(4, 1, 8)
    fused = build(3, 8)(centre.expand(-1, 3, -1), pooled.expand(-1, 3, -1))
    torch.testing.assert_close(fused, centre[:, 0])


@torch.inference_mode()
def test_the_pooled_features_guide_but_are_not_part_of_the_sum() -> None:
    fusion = build(3, 8)
    centre, pooled = features_of(4, 3, 8)
    assert not torch.allclose(fusion(centre, pooled), fusion(centre, pooled + 1))
    assert not fusion(torch.zeros_like(centre), pooled).any()


def test_the_papers_size_and_names() -> None:
    with torch.device("meta"):
        fusion = SelectiveFusion(FusionConfig(hidden=None), timesteps=19, stages=[256, 512])
    shapes = {name: tuple(value.shape) for name, value in fusion.state_dict().items()}
    assert shapes["fc.0.weight"] == (384, 768)
    assert shapes["fc.3.weight"] == shapes["fcs.18.weight"] == (384, 384)
    assert shapes["g_fcs.0.weight"] == (768, 384 + 768)
    per_timestep = sum(np.prod(shape) for name, shape in shapes.items() if "fcs." in name)
    assert round(per_timestep / 1e6, 1) == 19.6


def test_an_empty_bottleneck_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fusion\.hidden must be at least 1, found 0"):
        FusionConfig(hidden=0)
