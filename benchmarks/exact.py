"""How much faster are the features than the plain way, at the paper's size, and how close are they?

``python -m benchmarks.exact [--channels 128] [--unet FILE]``. Without trained weights the U-Net has random
ones, all layers alive; patches are smoothed noise. All ways in turns, the median of the rounds' ratios.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.record import arithmetics, in_turns, offer_emulated, publish
from benchmarks.reference import plain_features
from mtmsd.diffusion import DiffusionConfig, Schedule
from mtmsd.features import Extractor, FeatureConfig
from mtmsd.interpolation import Features
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
    parser.add_argument("--rounds", type=int, default=5)
    offer_emulated(parser)
    options = parser.parse_args()
    unet = load_unet(options.unet) if options.unet else random_unet(options.channels)
    schedule, channels = Schedule(DiffusionConfig()), unet.config.channels
    patches = smooth_patches(8, unet.components, 96)
    few = patches[:2, :, :48, :48].contiguous()
    truth = plain_features(unet, schedule, PAPER, few)
    names, pixels = [("plain", "float32")], [len(few)]
    errors: list[tuple[object, ...]] = [("", "")]
    works: list[Callable[[], object]] = [lambda: plain_features(unet, schedule, PAPER, few)]
    for name, geometry in WAYS:
        for precision in arithmetics(emulated=options.emulated):
            extract = Extractor(unet, schedule, replace(PAPER, precision=precision), geometry)
            windows = patches[: extract.batch, :, : geometry.side, : geometry.side].contiguous()
            names.append((name, precision))
            works.append(_run(extract, windows))
            pixels.append(len(windows) * geometry.stride**2)
            found = extract(few) if geometry.stride == 1 else None
            errors.append(_distances(found, truth) if found else ("", ""))
    spent = in_turns(works, options.rounds)
    each = [[s / count for s in row] for row, count in zip(spent, pixels, strict=True)]
    ratios = [[p / s for p, s in zip(each[0], row, strict=True)] for row in each]
    rows = [
        [*name, median(row), median(ratio), f"{min(ratio):.4g} to {max(ratio):.4g}", *error]
        for name, row, ratio, error in zip(names, each, ratios, errors, strict=True)
    ]
    publish(
        "exact", f"Features, U-Net of {channels} channels, 19 timesteps, 5 stages, "
        f"{torch.get_num_threads()} threads",
        ["way", "arithmetic", "s / pixel", "times plain", "in the rounds", "centre, distance",
         "pooled, distance"], rows,
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


def _distances(found: Features, truth: tuple[Tensor, Tensor]) -> tuple[float, float]:
    return _distance(found.centre_NPTK[:, 0], truth[0]), _distance(found.pooled_NTK, truth[1])


def _distance(found: Tensor, truth: Tensor) -> float:
    return float(torch.linalg.norm(found - truth) / torch.linalg.norm(truth))


if __name__ == "__main__":
    main()
