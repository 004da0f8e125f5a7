"""The multistage U-Net: closed forms by hand, naive clustering, one decoder per interval and nothing else."""

import copy
import math
from dataclasses import replace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtmsd.diffusion import DiffusionConfig, Schedule
from mtmsd.features import Extractor, FeatureConfig
from mtmsd.inference import FrozenUNet
from mtmsd.multistage import MultistageUNet, OptimalDenoiser, cut_points, find_cuts, similarity
from mtmsd.steps import PretrainConfig, draw_interval
from mtmsd.training import Averaged, make_optimizer, pretrain_step
from mtmsd.unet import UNet, UNetConfig
from mtmsd.unets import KINDS, make_unet
from mtmsd.windows import PatchConfig
from tests import reference

torch.set_num_threads(1)

SCHEDULE = Schedule(DiffusionConfig())
CUTS = (400, 700)
CONFIG = UNetConfig(
    kind="multistage", channels=16, groups=8, multipliers=(1, 2), res_blocks=1, cuts=CUTS,
    decoders=((2, 2), (1, 2), (1, 2)),
)  # fmt: skip
"""Stages 0 and 1 are 32 channels wide in all decoders, 2 and 3 are 32, 16 and 16."""
TRAINING = PretrainConfig(steps=20, batch=4, learning_rate=1e-3, warmup=2, ema=0.9)


def build(config: UNetConfig = CONFIG, seed: int = 1) -> UNet:
    unet = make_unet(config, 2)
    reference.random_weights(unet, seed)
    return unet


def noisy(n: int, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn((n, 2, size, size), generator=torch.Generator().manual_seed(seed))


def at(t: int, n: int = 1) -> Tensor:
    return torch.full((n,), t)


# The optimal denoiser and the cuts


def test_optimal_denoiser_of_one_patch_by_hand() -> None:
    patch, x = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 3.0]])
    s, sigma = float(SCHEDULE.signal[600]), float(SCHEDULE.noise[600])
    expected = [[(0.5 - s) / sigma, (3 + 2 * s) / sigma]]
    torch.testing.assert_close(OptimalDenoiser(patch, SCHEDULE)(x, 600), torch.tensor(expected))


def test_optimal_denoiser_of_two_patches_by_hand() -> None:
    """Patches +1 and -1: the posterior mean of a sign in Gaussian noise is a hyperbolic tangent."""
    denoise = OptimalDenoiser(torch.tensor([[1.0], [-1.0]]), SCHEDULE)
    for t in (100, 500, 900):
        s, sigma = float(SCHEDULE.signal[t]), float(SCHEDULE.noise[t])
        for x in (-0.7, 0.0, 0.2):
            expected = (x - s * math.tanh(s * x / sigma**2)) / sigma
            assert float(denoise(torch.tensor([[x]]), t)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_optimal_denoiser_knows_its_own_patches_at_low_noise() -> None:
    patches = torch.randn((20, 50), generator=torch.Generator().manual_seed(0))
    noise = torch.randn((20, 50), generator=torch.Generator().manual_seed(1))
    x = SCHEDULE.signal[300] * patches + SCHEDULE.noise[300] * noise
    torch.testing.assert_close(OptimalDenoiser(patches, SCHEDULE)(x, 300), noise, rtol=1e-3, atol=1e-3)


def test_similarity_is_symmetric_and_one_on_the_diagonal() -> None:
    patches = torch.randn((30, 6), generator=torch.Generator().manual_seed(0))
    denoise, noise = OptimalDenoiser(patches, SCHEDULE), torch.randn(30, 6)
    times = (0, 300, 600, 900, 999)
    answers = [denoise(SCHEDULE.signal[t] * patches + SCHEDULE.noise[t] * noise, t) for t in times]
    matrix = np.array([[similarity(a, b, 0.1) for b in answers] for a in answers])
    assert np.array_equal(matrix, matrix.T)
    assert (matrix.diagonal() == 1).all()
    assert 0 < matrix.min() < 0.9


def test_cut_points_on_constructed_similarities() -> None:
    times = [0, 10, 20, 30, 40, 50]
    to_first = [1, 0.95, 0.9, 0.5, 0.95, 1]  # alike again at high noise: the unbroken run counts
    to_last = [1, 0.9, 0.8, 0.85, 0.9, 1]
    assert cut_points(times, to_first, to_last, 0.9) == (30, 40)
    assert cut_points(times, to_first, to_last, 0.93) == (20, 50)


@pytest.mark.parametrize(
    ("to_first", "to_last"),
    [([1, 1, 1], [0.1, 0.1, 1]), ([1, 0.1, 1], [1, 1, 1]), ([1, 0.1, 0.1], [0.1, 1, 1])],
    ids=["all alike the first", "all alike the last", "nothing between"],
)
def test_intervals_that_cannot_be_told_apart_are_refused(to_first: list, to_last: list) -> None:
    with pytest.raises(ValueError, match=r"no intervals of timesteps .* give unet\.cuts, a smaller"):
        cut_points([0, 10, 20], to_first, to_last, 0.9)


def naive_cuts(patches: np.ndarray, config: UNetConfig, schedule: Schedule, seed: int) -> tuple[int, int]:
    """Windows, posterior means and shares by loops, from the documented stream of random numbers."""
    side, windows = config.cut_window, []
    n, _, height, width = patches.shape
    for i in range(n):
        for y in range(0, height - side + 1, side):
            for x in range(0, width - side + 1, side):
                window = patches[i, :, y : y + side, x : x + side].astype(np.float64).ravel()
                if not np.isnan(window).all():
                    windows.append(np.nan_to_num(window))
    generator = torch.Generator().manual_seed(seed)
    windows = [windows[i] for i in torch.randperm(len(windows), generator=generator)]
    probes = windows[:128]
    shape = len(probes), len(windows[0])
    noise = torch.randn(shape, generator=generator, dtype=torch.float64).numpy()

    def answers(t: int) -> np.ndarray:
        s, sigma = float(schedule.signal[t]), float(schedule.noise[t])
        result = []
        for x0, eps in zip(probes, noise, strict=True):
            x = s * x0 + sigma * eps
            log = np.array([-((x - s * y) ** 2).sum() / (2 * sigma**2) for y in windows])
            weight = np.exp(log - log.max())
            mean = sum(w * y for w, y in zip(weight / weight.sum(), windows, strict=True))
            result.append((x - s * mean) / sigma)
        return np.array(result)

    def alike(t: int, other: int) -> bool:
        share = (np.abs(answers(t) - answers(other)) <= config.cut_tolerance).mean()
        return bool(share >= config.cut_similarity)

    last = schedule.steps - 1
    times = [*range(0, last, max(1, schedule.steps // 100)), last]
    first = next(t for t in times if not alike(t, 0))
    return first, 1 + max(t for t in range(last) if t in times and not alike(t, last))


def test_clustering_against_the_naive_one() -> None:
    patches = torch.randn((6, 2, 7, 6), generator=torch.Generator().manual_seed(3))
    patches[0, :, :3, :3], patches[1, 0, 4] = float("nan"), float("nan")
    config, schedule = replace(CONFIG, cut_window=3, cut_tolerance=0.2), Schedule(DiffusionConfig(steps=40))
    cuts = find_cuts(patches, schedule, config, seed=5)
    assert cuts == naive_cuts(patches.numpy(), config, schedule, seed=5)
    assert 0 < cuts[0] < cuts[1] < 40
    assert cuts == find_cuts(patches, schedule, config, seed=5)
    wider = find_cuts(patches, schedule, replace(config, cut_tolerance=0.4), seed=5)
    assert wider != cuts


def test_patches_without_data_have_no_cuts() -> None:
    config = UNetConfig(kind="multistage")
    with pytest.raises(ValueError, match="expected patches with data"):
        find_cuts(torch.full((3, 2, 12, 12), torch.nan), Schedule(DiffusionConfig()), config, seed=0)


# The network


def test_kinds_are_those_of_the_configuration() -> None:
    assert set(get_args(get_type_hints(UNetConfig)["kind"])) == set(KINDS)
    assert type(make_unet(UNetConfig(channels=32), 2)) is UNet
    assert type(make_unet(CONFIG, 2)) is MultistageUNet


@torch.inference_mode()
def test_each_decoder_is_a_single_network_of_its_widths() -> None:
    """With decoder i's weights under the usual names, the plain U-Net of equal widths gives the same."""
    config = replace(CONFIG, decoders=())
    unet, x = build(config), noisy(2)
    shared = {k: v for k, v in unet.state_dict().items() if not k.startswith("decoders.")}
    for interval, t in enumerate((399, 400, 999)):
        own = f"decoders.{interval}."
        mine = {k.removeprefix(own): v for k, v in unet.state_dict().items() if k.startswith(own)}
        single = UNet(replace(config, kind="single", cuts=None), 2)
        single.load_state_dict(shared | mine)
        assert torch.equal(unet(x, at(t, 2)), single(x, at(t, 2)))
        for a, b in zip(unet.stages(x, at(t, 2), (0, 3)), single.stages(x, at(t, 2), (0, 3)), strict=True):
            assert torch.equal(a, b)


@torch.inference_mode()
def test_a_timestep_uses_its_own_decoder_alone() -> None:
    unet, x = build(), noisy(1)
    timesteps = (0, 399, 400, 699, 700, 999)
    before = {t: unet(x, at(t)) for t in timesteps}
    for changed in range(3):
        other = copy.deepcopy(unet)
        for value in other.decoders[changed].parameters():
            value.add_(0.1)
        for i, t in enumerate(timesteps):
            assert torch.equal(other(x, at(t)), before[t]) == (i // 2 != changed)


@torch.inference_mode()
def test_a_mixed_batch_is_its_samples() -> None:
    unet, x, t = build(), noisy(5), torch.tensor([999, 10, 500, 400, 399])
    together, [stage] = unet(x, t), unet.stages(x, t, (1,))
    for i in range(5):
        torch.testing.assert_close(together[i : i + 1], unet(x[i : i + 1], t[i : i + 1]))
        torch.testing.assert_close(stage[i : i + 1], unet.stages(x[i : i + 1], t[i : i + 1], (1,))[0])


def test_decoders_have_their_own_widths() -> None:
    unet = build()
    assert [unet.decoder(i).out[0].num_channels for i in range(3)] == [32, 16, 16]
    assert [unet.stages(noisy(1), at(t), (3,))[0].shape[1] for t in (0, 500, 900)] == [32, 16, 16]
    assert CONFIG.stage_shape(1, 8) == (32, 8)
    with pytest.raises(ValueError, match=r"features\.stages: stage 2 is \[32, 16, 16\] channels wide"):
        CONFIG.stage_shape(2, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_frozen_is_the_plain_network(dtype: torch.dtype) -> None:
    config = UNetConfig(
        kind="multistage", channels=32, cuts=CUTS, decoders=((1, 2, 2), (2, 2, 1), (1, 2, 3))
    )  # levels 0 and 2 differ; stages 3 to 5 lie on level 1
    unet = make_unet(config, 3).eval()
    reference.random_weights(unet, seed=2)
    x, timesteps, taps = torch.randn((2, 3, 16, 16)), (3, 399, 400, 900), (3, 5)
    frozen = FrozenUNet(unet, timesteps, taps, dtype)
    limit = 3e-5 if dtype == torch.float32 else 3e-2
    for step, t in enumerate(timesteps):
        for stage, expected in zip(frozen.stages(x, step), unet.stages(x, at(t, 2), taps), strict=True):
            found = stage.region(0, stage.side).permute(0, 3, 1, 2)
            assert reference.relative_error(found, expected) < limit
            assert reference.relative_error(stage.mean(), expected.mean(dim=(2, 3))) < limit


@pytest.mark.parametrize("stride", [1, 4], ids=["exact", "dense"])
def test_features_are_those_of_the_reference_arithmetic(stride: int) -> None:
    unet, patches = build().eval(), PatchConfig(size=8, stride=stride, blend=0)
    fast = FeatureConfig(timesteps=(50, 500, 900), stages=(0, 1))
    windows = noisy(3)
    found, plain = (
        Extractor(unet, SCHEDULE, features, patches)(windows)
        for features in (fast, replace(fast, arithmetic="reference"))
    )
    assert reference.relative_error(found.centre_NPTK, plain.centre_NPTK) < 3e-5
    assert reference.relative_error(found.pooled_NTK, plain.pooled_NTK) < 3e-5
    with pytest.raises(ValueError, match="one width at all timesteps"):
        Extractor(unet, SCHEDULE, replace(fast, stages=(1, 3)), patches)


def test_a_network_needs_its_cuts() -> None:
    with pytest.raises(ValueError, match=r"unet\.cuts: expected timesteps, found none"):
        make_unet(replace(CONFIG, cuts=None), 2)


# Training


def test_intervals_depend_on_seed_and_step_and_are_drawn_by_their_length() -> None:
    drawn = [draw_interval(3, step, CUTS, 1000) for step in range(3000)]
    assert drawn[:50] == [draw_interval(3, step, CUTS, 1000) for step in range(50)]
    assert drawn != [draw_interval(4, step, CUTS, 1000) for step in range(3000)]
    shares = [drawn.count(interval) / 3000 for interval in ((0, 400), (400, 700), (700, 1000))]
    assert shares == pytest.approx([0.4, 0.3, 0.3], abs=0.03)  # standard deviation 0.009


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, averaged: Averaged) -> None:
    for step in steps:
        pretrain_step(
            model, optimizer, SCHEDULE, TRAINING, noisy(4, seed=step), seed=7, step=step, share=slice(0, 4),
            cuts=CUTS,
        )  # fmt: skip
        averaged.update(model, step)


def test_gradients_reach_the_encoder_and_the_drawn_decoder_alone() -> None:
    seen = set()
    for step in range(8):
        unet, interval = build(), CONFIG.interval(draw_interval(7, step, CUTS, 1000)[0])
        before = {name: value.detach().clone() for name, value in unet.named_parameters()}
        train(unet, make_optimizer(unet, TRAINING), range(step, step + 1), Averaged(unet, 0.9))
        for name, value in unet.named_parameters():
            trained = not name.startswith("decoders.") or name.startswith(f"decoders.{interval}.")
            assert (value.grad is not None and bool(value.grad.any())) == trained, (name, interval)
            assert torch.equal(value, before[name]) != trained, name
        seen.add(interval)
    assert seen == {0, 1, 2}


def test_resumed_training_is_the_uninterrupted_one_bit_for_bit() -> None:
    whole, parts = build(), build()
    optimizer, averaged = make_optimizer(whole, TRAINING), Averaged(whole, TRAINING.ema)
    train(whole, optimizer, range(8), averaged)
    first, second = make_optimizer(parts, TRAINING), Averaged(parts, TRAINING.ema)
    train(parts, first, range(2), second)  # not all decoders have been drawn by then
    again, kept = build(seed=9), copy.deepcopy(second.weights)
    again.load_state_dict(parts.state_dict())
    resumed, third = make_optimizer(again, TRAINING), Averaged(again, TRAINING.ema)
    resumed.load_state_dict(first.state_dict())
    third.weights = kept
    train(again, resumed, range(2, 8), third)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
        assert torch.equal(averaged.weights[name], third.weights[name]), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "single", "cuts": (5,), "decoders": ()}, r"unet\.cuts needs unet\.kind: multistage"),
        ({"kind": "single", "cuts": None}, r"unet\.decoders needs unet\.kind: multistage"),
        ({"cuts": (700, 400)}, r"unet\.cuts must be ascending timesteps above 0, found \[700, 400\]"),
        ({"cuts": (0, 400)}, r"unet\.cuts must be ascending timesteps above 0, found \[0, 400\]"),
        ({"cuts": (-3, 400)}, r"unet\.cuts must be ascending timesteps above 0, found \[-3, 400\]"),
        ({"cuts": ()}, r"unet\.cuts must be ascending timesteps above 0, found \[\]"),
        ({"cuts": (400,)}, r"must name 2 decoders \(the 1 of unet\.cuts\), found 3"),
        (
            {"cuts": None, "decoders": ((1, 2),) * 2},
            r"must name 3 decoders \(two cuts, which are to be found",
        ),
        ({"decoders": ((1, 2), (1, 2), (1, 2, 2))}, r"unet\.decoders must hold 2 positive integers each"),
        ({"decoders": ((1, 2), (1, 2), (0, 2))}, r"unet\.decoders must hold 2 positive integers each"),
        ({"heads": 32, "decoders": ((1, 2), (1, 2), (1, 1))}, r"unet\.heads must divide the middle width 16"),
        ({"cut_similarity": 1.5}, r"unet\.cut_similarity must lie in \(0, 1\]"),
        ({"cut_window": 0}, r"cut_window above 0"),
    ],
)
def test_impossible_configurations_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **settings)
