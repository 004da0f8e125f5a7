"""How much faster are the features than the plain way, at the paper's size, and how close are they?

``python -m benchmarks.exact [--channels 128] [--unet FILE]``. Without trained weights the U-Net has random
ones, all layers alive; patches are smoothed noise. Ratios of one run.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.record import publish, seconds
from benchmarks.reference import plain_features
from mtmsd.diffusion import DiffusionConfig, Schedule
from mtmsd.features import Extractor, FeatureConfig
from mtmsd.unet import UNet, UNetConfig
from mtmsd.windows import PatchConfig
from pipeline.trained import load_unet

PAPER = FeatureConfig(timesteps=tuple(range(50, 1000, 50)), stages=(0, 1, 2, 3, 5))
WAYS = (
    ("exact", PatchConfig(size=48, stride=1)),
    ("one window of 48 for 4 x 4 pixels", PatchConfig(size=48, stride=4)),
    ("one window of 48 for 24 x 24 pixels", PatchConfig(size=48, stride=24)),
    ("one window of 96 for 72 x 72 pixels", PatchConfig(size=96, stride=72)),
)


def main() -> None:
    """Print seconds per pixel, the ratio to the plain way, and the relative L2 distance from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--unet", type=Path, help="pretrain/unet.safetensors of a run")
    options = parser.parse_args()
    unet = load_unet(options.unet) if options.unet else random_unet(options.channels)
    schedule, channels = Schedule(DiffusionConfig()), unet.config.channels
    patches = smooth_patches(8, unet.components, 96)
    few = patches[:2, :, :48, :48].contiguous()
    truth = plain_features(unet, schedule, PAPER, few)
    plain = seconds(lambda: plain_features(unet, schedule, PAPER, few)) / len(few)
    rows: list[list[object]] = [["plain", "float32", plain, 1.0, "", ""]]
    for name, geometry in WAYS:
        for precision in ("float32", "bfloat16"):
            config = replace(PAPER, precision=precision)
            extract = Extractor(unet, schedule, config, geometry)
            windows = patches[: extract.batch, :, : geometry.side, : geometry.side].contiguous()
            spent = seconds(_run(extract, windows)) / (len(windows) * geometry.stride**2)
            errors: tuple[object, ...] = ("", "")
            if geometry.stride == 1:
                found = extract(few)
                errors = _distance(found.centre_NPTK[:, 0], truth[0]), _distance(found.pooled_NTK, truth[1])
            rows.append([name, precision, spent, plain / spent, *errors])
    publish(
        "exact", f"Features, U-Net of {channels} channels, 19 timesteps, 5 stages, "
        f"{torch.get_num_threads()} threads",
        ["way", "arithmetic", "s / pixel", "times plain", "centre, distance", "pooled, distance"], rows,
    )  # fmt: skip


def random_unet(channels: int) -> UNet:
    """A U-Net whose layers all do something: freshly made, many are zero."""
    torch.manual_seed(0)
    unet = UNet(UNetConfig(channels=channels), 6).eval()
    for parameter in unet.parameters():
        if not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.02)
    return unet


def smooth_patches(n: int, components: int, side: int) -> Tensor:
    """Patches with a texture, of unit variance."""
    noise = torch.randn((n, components, side, side), generator=torch.Generator().manual_seed(0))
    smooth = F.avg_pool2d(noise, 5, stride=1, padding=2)
    return smooth / smooth.std()


def _run(extract: Extractor, windows: Tensor) -> Callable[[], object]:
    return lambda: extract(windows)


def _distance(found: Tensor, truth: Tensor) -> float:
    return float(torch.linalg.norm(found - truth) / torch.linalg.norm(truth))


if __name__ == "__main__":
    main()
