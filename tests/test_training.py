"""Training by arithmetic: every draw and every step is a function of (seed, step)."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtmsd.diffusion import DiffusionConfig, Schedule
from mtmsd.steps import PretrainConfig, draw_patches, learning_rate, share_of, turned
from mtmsd.training import Averaged, make_optimizer, pretrain_step
from mtmsd.unet import UNet, UNetConfig
from tests import reference

torch.set_num_threads(1)

CONFIG = PretrainConfig(
    steps=20, batch=4, learning_rate=1e-3, warmup=2, decay=0.5, precision="float32", clip_norm=1.0
)
SCHEDULE = Schedule(DiffusionConfig())
ALL = slice(0, 4)


def build(dropout: float = 0.0) -> UNet:
    unet = UNet(UNetConfig(channels=32, multipliers=(1, 2), res_blocks=1, heads=4, dropout=dropout), 2)
    reference.random_weights(unet, seed=5)
    return unet


def patches(n: int = 4) -> Tensor:
    return torch.randn((n, 2, 8, 8), generator=torch.Generator().manual_seed(3))


def step_of(model: nn.Module, data: Tensor, *, step: int = 0, share: slice = ALL, seed: int = 7,
            workers: int = 1, config: PretrainConfig = CONFIG) -> float:  # fmt: skip
    optimizer = make_optimizer(model, config)
    return pretrain_step(
        model, optimizer, SCHEDULE, config, data, seed=seed, step=step, share=share, workers=workers
    )


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])


def test_draws_depend_on_seed_and_step_alone() -> None:
    first = draw_patches(3, 10, CONFIG, 50, 70, 4)
    np.random.default_rng(0).integers(0, 5)
    again = draw_patches(3, 10, CONFIG, 50, 70, 4)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    for other in (draw_patches(3, 11, CONFIG, 50, 70, 4), draw_patches(4, 10, CONFIG, 50, 70, 4)):
        assert other.y.tolist() != first.y.tolist()


def test_every_pixel_is_drawn_as_often_as_any_other() -> None:
    config = PretrainConfig(batch=20_000)
    draw = draw_patches(0, 0, config, 4, 5, 3)
    counts = np.zeros((4, 5))
    np.add.at(counts, (draw.y + 3, draw.x + 3), 1)
    assert counts.min() > 800  # 1,000 expected, standard deviation 31
    assert counts.max() < 1_200
    assert np.bincount(draw.turn, minlength=8).min() > 2_200  # 2,500 expected
    assert len(np.bincount(draw.turn)) == 8
    assert not draw_patches(0, 0, PretrainConfig(turns=False), 4, 5, 3).turn.any()


def test_turns_are_the_eight_symmetries() -> None:
    square = np.arange(2 * 9, dtype=np.float32).reshape(2, 3, 3)
    seen = {turned(square, turn).tobytes() for turn in range(8)}
    flipped = square.transpose(0, 2, 1)
    expected = {np.rot90(s, k, axes=(1, 2)).tobytes() for s in (square, flipped) for k in range(4)}
    assert seen == expected
    assert len(seen) == 8
    np.testing.assert_array_equal(turned(square, 0), square)
    np.testing.assert_array_equal(turned(square, 1)[:, 0], square[:, :, 2])


def test_learning_rate_rises_stays_and_falls_to_zero() -> None:
    config = PretrainConfig(steps=100, learning_rate=2.0, warmup=10, decay=0.5)
    expected = {0: 0.2, 4: 1.0, 9: 2.0, 10: 2.0, 49: 2.0, 50: 2.0, 75: 1.0, 99: 0.04}
    found = {step: learning_rate(config, step) for step in expected}
    assert found == pytest.approx(expected)
    steady = PretrainConfig(steps=10, learning_rate=1.0, warmup=0, decay=0.0)
    assert [learning_rate(steady, step) for step in range(10)] == [1.0] * 10


def test_a_step_uses_its_learning_rate() -> None:
    model = build()
    before = copy.deepcopy(model)
    config = PretrainConfig(steps=20, batch=4, learning_rate=1e-3, warmup=4, precision="float32")
    step_of(model, patches(), config=config)
    pairs = zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    moved = [float((a - b).abs().max()) for a, b in pairs]
    # The first step of Adam moves every weight that has a gradient by the learning rate: a quarter of 1e-3.
    assert max(moved) == pytest.approx(2.5e-4, rel=1e-3)


def test_two_steps_repeat_bit_for_bit() -> None:
    def run() -> tuple[list[float], UNet]:
        torch.manual_seed(torch.seed())  # nothing may come from the process's generator
        model = build()
        optimizer = make_optimizer(model, CONFIG)
        losses = [
            pretrain_step(model, optimizer, SCHEDULE, CONFIG, patches(), seed=1, step=step, share=ALL)
            for step in range(2)
        ]
        return losses, model

    (losses, model), (losses_again, again) = run(), run()
    assert losses == losses_again
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert step_of(build(), patches(), step=0) != step_of(build(), patches(), step=1)
    assert step_of(build(), patches(), seed=1) != step_of(build(), patches(), seed=2)


def test_dropout_depends_on_seed_step_and_share_whatever_was_drawn_before() -> None:
    def loss(drawn: int, step: int) -> float:
        model = build(dropout=0.5).train()
        torch.manual_seed(drawn)  # a resumed worker begins with another state of the generator
        state = torch.get_rng_state()
        found = step_of(model, patches()[:2], step=step, share=slice(0, 2))
        assert torch.equal(torch.get_rng_state(), state)
        return found

    assert loss(1, step=3) == loss(2, step=3)
    seeds = []
    for share in (slice(0, 2), slice(2, 4)):
        model = build(dropout=0.5).train()
        model.register_forward_pre_hook(lambda *_: seeds.append(torch.initial_seed()))
        step_of(model, patches()[:2], share=share)
    assert len(set(seeds)) == 2


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_shares_average_to_the_whole_batch(workers: int, holes: bool) -> None:
    config = PretrainConfig(batch=4, precision="float32", clip_norm=1e9)
    whole, data = build(), patches()
    if holes:
        data[0, :, 1:] = float("nan")
    loss = step_of(whole, data, config=config)
    losses, sizes, parts = [], [], []
    for worker in range(workers):
        share, model = share_of(4, worker, workers), build()
        losses.append(step_of(model, data[share], share=share, workers=workers, config=config))
        sizes.append(len(data[share]))
        parts.append(gradients(model))
    assert sizes == {2: [2, 2], 3: [1, 1, 2], 4: [1, 1, 1, 1]}[workers]
    assert np.average(losses, weights=sizes) == pytest.approx(loss, rel=1e-6)
    mean = torch.stack(parts).mean(dim=0)
    assert reference.relative_error(mean, gradients(whole)) < 5e-6  # what float32 rounding leaves


@torch.no_grad()
def documented_loss(model: UNet, data: Tensor, valid: Tensor, seed: int, step: int) -> float:
    """Compute the loss from the stream of (seed, step, 1): the timesteps, then the noise."""
    entropy = int(np.random.SeedSequence([seed, step, 1]).generate_state(1)[0])
    generator = torch.Generator().manual_seed(entropy)
    t = torch.randint(0, 1000, (4,), generator=generator)
    noise = torch.randn(data.shape, generator=generator)
    output = model(SCHEDULE.q_sample(data, t, noise), t)
    return float(SCHEDULE.hybrid_loss(output, data, t, noise, valid))


def test_a_step_is_the_hybrid_loss_of_its_draws() -> None:
    expected = documented_loss(build(), patches(), torch.ones(4, 1, 8, 8), seed=9, step=5)
    assert step_of(build(), patches(), seed=9, step=5) == pytest.approx(expected, rel=1e-5)


def test_pixels_without_data_are_zero_and_do_not_count() -> None:
    data, valid = patches(), torch.ones(4, 1, 8, 8)
    data[1, :, 2, 3], valid[1, :, 2, 3] = 0.0, 0.0
    data[2, :, 5], valid[2, :, 5] = 0.0, 0.0
    expected = documented_loss(build(), data, valid, seed=7, step=0)
    model = build()
    data[1, :, 2, 3], data[2, 1, 5] = float("nan"), float("nan")  # one component is enough
    assert step_of(model, data) == pytest.approx(expected, rel=1e-5)
    assert all(value.isfinite().all() for value in model.parameters())


def test_gradients_are_clipped() -> None:
    model = build()
    step_of(model, patches(), config=PretrainConfig(batch=4, precision="float32", clip_norm=1e-3))
    assert float(gradients(model).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_bfloat16_training_takes_finite_steps_near_float32() -> None:
    exact = step_of(build(), patches())
    rough_model = build()
    config = PretrainConfig(steps=20, batch=4, learning_rate=1e-3, warmup=2, precision="bfloat16")
    rough = step_of(rough_model, patches(), config=config)
    assert rough == pytest.approx(exact, rel=0.05)
    assert rough != exact
    assert all(value.dtype == torch.float32 for value in rough_model.parameters())


def test_averaged_weights_are_the_naive_average() -> None:
    model = nn.Linear(3, 2)
    averaged = Averaged(model, decay=0.5)
    expected = {name: value.double().numpy().copy() for name, value in model.state_dict().items()}
    for step in range(6):
        with torch.no_grad():
            for value in model.parameters():
                value.add_(step + 1.0)
        averaged.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double().numpy()
    for name, value in averaged.weights.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6)
        assert not torch.equal(value, model.state_dict()[name])


def test_averaging_starts_fast_and_does_not_touch_the_model() -> None:
    model = nn.Linear(2, 1)
    averaged = Averaged(model, decay=0.999)
    with torch.no_grad():
        model.weight.fill_(1.0)
        averaged.weights["weight"].zero_()
    averaged.update(model, step=0)
    torch.testing.assert_close(averaged.weights["weight"], torch.full((1, 2), 0.9))
    assert torch.equal(model.weight, torch.ones(1, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, r"pretrain\.steps must be at least 1, found 0"),
        ({"batch": 0}, r"pretrain\.batch must be at least 1, found 0"),
        ({"checkpoint_every": 0}, r"pretrain\.checkpoint_every must be at least 1, found 0"),
        ({"decay": 1.5}, r"pretrain\.decay must lie in \[0, 1\], found 1\.5"),
        ({"ema": 1.0}, r"pretrain\.ema must lie in \[0, 1\), found 1\.0"),
    ],
)
def test_impossible_training_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**settings)  # type: ignore[arg-type]
