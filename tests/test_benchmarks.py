"""The benchmarks' yardstick computes the same features as the fast path."""

import torch

from benchmarks.reference import plain_features
from mtmsd.diffusion import DiffusionConfig, Schedule
from mtmsd.features import Extractor, FeatureConfig
from mtmsd.unet import UNet, UNetConfig
from mtmsd.windows import PatchConfig


def test_plain_way_agrees_with_exact_mode() -> None:
    torch.manual_seed(0)
    unet = UNet(UNetConfig(channels=32), 3).eval()
    for parameter in unet.parameters():  # freshly made, many layers are zero and nothing would differ
        torch.nn.init.normal_(parameter, std=0.05)
    features = FeatureConfig(timesteps=(50, 600), stages=(0, 2, 5))
    schedule, patches = Schedule(DiffusionConfig()), torch.randn(3, 3, 16, 16)
    centre, pooled = plain_features(unet, schedule, features, patches)
    fast = Extractor(unet, schedule, features, PatchConfig(size=16, stride=1))(patches)
    for plain, quick in ((centre, fast.centre_NPTK[:, 0]), (pooled, fast.pooled_NTK)):
        assert torch.linalg.norm(plain - quick) / torch.linalg.norm(plain) < 1e-4
