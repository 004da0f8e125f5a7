"""The schedule's published values, noising by hand, and the hybrid loss term by term."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mtmsd.diffusion import DiffusionConfig, Schedule, shared_noise
from tests import reference

torch.set_num_threads(1)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_cosine_schedule_has_the_known_values() -> None:
    schedule = Schedule(DiffusionConfig())
    known = [0.9917, 0.94, 0.8459, 0.7185, 0.57, 0.4148, 0.2678, 0.1432, 0.053, 0.0058]
    found = schedule.alpha_bar[50:1000:100]
    np.testing.assert_allclose(found, known, atol=5.1e-5)
    assert schedule.beta[-1] == pytest.approx(0.999)
    assert schedule.beta.shape == schedule.alpha_bar.shape == (1000,)


@pytest.mark.parametrize("steps", [2, 10, 1000])
def test_cosine_schedule_is_the_naive_product(steps: int) -> None:
    schedule = Schedule(DiffusionConfig(steps=steps))
    bars = np.array(reference.alpha_bars(steps))
    np.testing.assert_allclose(schedule.alpha_bar, bars, rtol=1e-6)
    np.testing.assert_allclose(schedule.signal, np.sqrt(bars), rtol=1e-6)
    np.testing.assert_allclose(schedule.noise, np.sqrt(1 - bars), rtol=1e-6)


def test_max_beta_bounds_every_step() -> None:
    schedule = Schedule(DiffusionConfig(steps=20, max_beta=0.25))
    assert float(schedule.beta.max()) == 0.25
    assert float(schedule.alpha_bar[-1] / schedule.alpha_bar[-2]) == pytest.approx(0.75)


def test_q_sample_by_hand() -> None:
    schedule = Schedule(DiffusionConfig())
    x0, noise = torch.full((2, 3, 1, 1), 2.0), torch.full((2, 3, 1, 1), -1.0)
    noisy = schedule.q_sample(x0, torch.tensor([50, 450]), noise)
    assert noisy.shape == (2, 3, 1, 1)
    for sample, bar in zip(noisy, (0.9917, 0.57), strict=True):
        expected = 2 * bar**0.5 - (1 - bar) ** 0.5
        np.testing.assert_allclose(sample, expected, atol=5e-4)


def loss_inputs(seed: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw (output, x0, noise, valid): two components, 3 x 2 pixels, some without data."""
    valid = drawn(seed, n, 1, 3, 2) > -0.7
    valid[:, :, 0, 0], valid[:, :, 2, 1] = True, False
    v = drawn(seed + 1, n, 2, 3, 2).clamp(-1, 1)
    output = torch.cat([drawn(seed + 2, n, 2, 3, 2), v], dim=1)
    return output, drawn(seed + 3, n, 2, 3, 2), drawn(seed + 4, n, 2, 3, 2), valid


@pytest.mark.parametrize("steps", [40, 1000])
@pytest.mark.parametrize("part", ["first", "early", "middle", "late", "mixed"])
def test_hybrid_loss_is_the_formula(steps: int, part: str) -> None:
    at = {"first": [0, 0], "early": [1, 2], "middle": [steps // 2] * 2, "late": [steps - 2] * 2}
    t = at.get(part, [0, steps // 3, steps - 3])
    output, x0, noise, valid = loss_inputs(7, len(t))
    loss = Schedule(DiffusionConfig(steps=steps)).hybrid_loss(
        output, x0, torch.tensor(t), noise, valid.float()
    )
    expected = reference.hybrid_loss(
        output.double().numpy(), x0.double().numpy(), t, noise.double().numpy(), valid[:, 0].numpy(), steps
    )
    assert float(loss) == pytest.approx(expected, rel=2e-4)


def test_a_perfect_prediction_costs_nothing() -> None:
    x0, noise = drawn(0, 2, 3, 4, 4), drawn(1, 2, 3, 4, 4)
    lower = torch.full_like(noise, -1.0)  # v = -1: the posterior's own variance
    loss = Schedule(DiffusionConfig()).hybrid_loss(
        torch.cat([noise, lower], dim=1), x0, torch.tensor([300, 700]), noise, torch.ones(2, 1, 4, 4)
    )
    assert float(loss) == pytest.approx(0, abs=1e-5)


def test_the_variational_term_scales_with_the_number_of_steps() -> None:
    """With exact noise and v = +1 the KL in nats is (log(b/p) + p/b - 1) / 2, here times T/1000/log 2."""
    for steps in (100, 1000):
        schedule, t = Schedule(DiffusionConfig(steps=steps)), steps // 2
        x0, noise = drawn(0, 1, 1, 2, 2), drawn(1, 1, 1, 2, 2)
        loss = schedule.hybrid_loss(
            torch.cat([noise, torch.ones_like(noise)], dim=1), x0, torch.tensor([t]), noise,
            torch.ones(1, 1, 2, 2),
        )  # fmt: skip
        bars = reference.alpha_bars(steps)
        ratio = (1 - bars[t]) / (1 - bars[t - 1])  # beta over the posterior variance
        kl = (np.log(ratio) + 1 / ratio - 1) / 2
        assert float(loss) == pytest.approx(steps / 1000 * kl / np.log(2), rel=2e-2, abs=1e-7)


def test_the_variational_term_trains_the_variance_alone() -> None:
    output, x0, noise, valid = loss_inputs(11, 2)
    output.requires_grad_(True)
    schedule = Schedule(DiffusionConfig())
    schedule.hybrid_loss(output, x0, torch.tensor([5, 800]), noise, valid.float()).backward()
    assert output.grad is not None
    mean, variance = output.grad.chunk(2, dim=1)
    weight = valid.expand_as(x0).float()
    of_mse = 2 * (output.detach()[:, :2] - noise) * weight
    of_mse /= len(x0) * weight.sum(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(mean, of_mse)
    assert variance[weight > 0].abs().min() > 0


def test_pixels_without_data_do_not_count() -> None:
    output, x0, noise, valid = loss_inputs(13, 2)
    schedule, t = Schedule(DiffusionConfig()), torch.tensor([10, 500])
    loss = schedule.hybrid_loss(output, x0, t, noise, valid.float())
    hole = ~valid.expand_as(x0)
    x0[hole], noise[hole], output[torch.cat([hole, hole], dim=1)] = 5.0, -3.0, 0.9
    assert float(schedule.hybrid_loss(output, x0, t, noise, valid.float())) == float(loss)
    nothing = schedule.hybrid_loss(output, x0, t, noise, torch.zeros_like(valid).float())
    assert float(nothing) == 0


def test_shared_noise_is_the_seeds_cpu_draw() -> None:
    before = torch.random.get_rng_state()
    noise = shared_noise(seed=5, components=3, size=8)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(noise, drawn(5, 3, 8, 8))
    assert noise.device.type == "cpu"
    assert not torch.equal(noise, shared_noise(seed=6, components=3, size=8))


def test_impossible_processes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"diffusion\.steps must be at least 2, found 1"):
        DiffusionConfig(steps=1)
    for bound in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"diffusion\.max_beta must lie in \(0, 1\)"):
            DiffusionConfig(max_beta=bound)
