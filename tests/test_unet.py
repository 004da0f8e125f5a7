"""The U-Net: its shapes, its stages, and every activation against a naive functional evaluation."""

import pytest
import torch

from mtmsd.layers import timestep_embedding
from mtmsd.unet import UNet, UNetConfig
from tests import reference

torch.set_num_threads(1)

CONFIGS = [
    (UNetConfig(channels=32, multipliers=(1, 2, 2), res_blocks=2, heads=4), 5, 16),
    (UNetConfig(channels=32, multipliers=(1, 2), res_blocks=1, heads=2), 1, 6),
    (UNetConfig(channels=64, multipliers=(1,), res_blocks=1, heads=1), 3, 7),
    (UNetConfig(channels=32, multipliers=(2, 1, 3), res_blocks=1, heads=8), 2, 8),
]
IDS = ["paper-like", "small", "one-level", "uneven"]


def build(config: UNetConfig, components: int) -> UNet:
    unet = UNet(config, components).eval()
    reference.random_weights(unet, seed=3)
    return unet


def noisy(n: int, components: int, size: int) -> torch.Tensor:
    return torch.randn((n, components, size, size), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("config", "components", "size"), CONFIGS, ids=IDS)
@torch.inference_mode()
def test_output_and_stage_shapes(config: UNetConfig, components: int, size: int) -> None:
    unet, t = build(config, components), torch.tensor([3, 900])
    x = noisy(2, components, size)
    assert unet(x, t).shape == (2, 2 * components, size, size)
    stages = unet.stages(x, t, range(config.stages))
    assert len(stages) == len(config.multipliers) * (config.res_blocks + 1) == len(unet.output_blocks)
    for i, stage in enumerate(stages):
        channels, side = config.stage_shape(i, size)
        assert stage.shape == (2, channels, side, side)


@pytest.mark.parametrize(("config", "components", "size"), CONFIGS, ids=IDS)
@torch.inference_mode()
def test_every_activation_is_the_naive_one(config: UNetConfig, components: int, size: int) -> None:
    unet, x = build(config, components), noisy(2, components, size)
    for t in (0, 777):
        stages, output = reference.unet(unet.state_dict(), x, t, config.heads)
        t_N = torch.full((2,), t)
        for found, expected in zip(unet.stages(x, t_N, range(config.stages)), stages, strict=True):
            assert reference.relative_error(found, expected) < 2e-5
        assert reference.relative_error(unet(x, t_N), output) < 2e-5


@torch.inference_mode()
def test_taps_are_some_of_all_stages() -> None:
    config, components, size = CONFIGS[0]
    unet, x, t = build(config, components), noisy(2, components, size), torch.tensor([7, 500])
    everything = unet.stages(x, t, range(config.stages))
    taps = (1, 3, 4)
    for tap, found in zip(taps, unet.stages(x, t, taps), strict=True):
        assert torch.equal(found, everything[tap])


@torch.inference_mode()
def test_each_sample_has_its_own_timestep() -> None:
    config, components, size = CONFIGS[1]
    unet, x = build(config, components), noisy(2, components, size)
    together = unet(x, torch.tensor([10, 600]))
    for i, t in enumerate((10, 600)):
        torch.testing.assert_close(together[i], unet(x[i : i + 1], torch.tensor([t]))[0])
    assert not torch.allclose(unet(x, torch.tensor([600, 600]))[0], together[0], rtol=1e-2)


@pytest.mark.parametrize("last", [0, 2, 5])
@torch.inference_mode()
def test_nothing_after_the_last_tap_is_computed(last: int) -> None:
    config, components, size = CONFIGS[0]
    unet, ran = build(config, components), set()
    for name, module in unet.named_modules():
        module.register_forward_pre_hook(lambda module, inputs, name=name: ran.add(name))
    unet.stages(noisy(1, components, size), torch.tensor([100]), (0, last) if last else (0,))
    decoder = {int(name.split(".")[1]) for name in ran if name.startswith("output_blocks.")}
    assert decoder == set(range(last + 1))
    assert not [name for name in ran if name.startswith("out.")]


@pytest.mark.parametrize("taps", [(), (2, 1), (1, 1), (0, 9), (-1, 0)])
def test_impossible_taps_are_refused(taps: tuple[int, ...]) -> None:
    config, components, size = CONFIGS[0]
    with pytest.raises(ValueError, match=r"features\.stages must be ascending stage numbers below 9"):
        build(config, components).stages(noisy(1, components, size), torch.tensor([1]), taps)


@pytest.mark.parametrize(("components", "millions"), [(6, 26.438), (13, 26.462), (25, 26.504), (34, 26.535)])
def test_the_papers_size(components: int, millions: float) -> None:
    with torch.device("meta"):
        unet = UNet(UNetConfig(channels=128, multipliers=(1, 2, 2), res_blocks=2, heads=4), components)
    assert round(sum(value.numel() for value in unet.parameters()) / 1e6, 3) == millions


@torch.inference_mode()
def test_a_fresh_model_starts_from_zero_residuals() -> None:
    config, components, size = CONFIGS[1]
    unet, t = UNet(config, components).eval(), torch.tensor([5])
    x = noisy(1, components, size)
    assert unet(x, t).std(dim=(2, 3)).max() < 1e-7  # the same at every pixel
    [middle] = unet.middle_block[:1]
    features = noisy(1, 64, size)
    torch.testing.assert_close(middle(features, torch.zeros(1, 128)), features)
    torch.testing.assert_close(unet.middle_block[1](features), features)


def test_dropout_acts_in_training_alone() -> None:
    unet = build(UNetConfig(channels=32, multipliers=(1,), res_blocks=1, heads=4, dropout=0.5), 2)
    x, t = noisy(1, 2, 4), torch.tensor([5])
    assert torch.equal(unet(x, t), unet(x, t))
    unet.train()
    assert not torch.equal(unet(x, t), unet(x, t))


def test_timestep_embedding_by_hand() -> None:
    embedding = timestep_embedding(torch.tensor([0, 100]), 4)
    assert embedding[0].tolist() == [1, 1, 0, 0]
    expected = torch.tensor([100.0, 1.0, 100.0, 1.0])
    expected = torch.cat([expected[:2].cos(), expected[2:].sin()])
    torch.testing.assert_close(embedding[1], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 48}, r"unet\.channels must be even and a multiple of unet\.groups \(32\), found 48"),
        ({"channels": 33, "groups": 11}, r"unet\.channels must be even"),
        ({"multipliers": ()}, r"unet\.multipliers must hold positive integers"),
        ({"multipliers": (1, 0)}, r"unet\.multipliers must be at least 1"),
        ({"res_blocks": 0}, r"unet\.res_blocks must be at least 1, found 0"),
        ({"channels": 32, "heads": 7}, r"unet\.heads must divide the middle width 64, found 7"),
    ],
)
def test_impossible_widths_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNetConfig(**settings)  # type: ignore[arg-type]
