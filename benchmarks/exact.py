"""How much faster are the features than the plain way, at the paper's size? Ratios of one run.

``python -m benchmarks.exact [--channels 128]``; random weights and patches, since only time is measured.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.reference import plain_features
from mtmsd.diffusion import DiffusionConfig, Schedule
from mtmsd.features import Extractor, FeatureConfig
from mtmsd.unet import UNet, UNetConfig
from mtmsd.windows import PatchConfig

PAPER = FeatureConfig(timesteps=tuple(range(50, 1000, 50)), stages=(0, 1, 2, 3, 5), batch=16)


def main() -> None:
    """Print seconds per pixel and the ratio to the plain way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=128)
    channels = parser.parse_args().channels
    schedule, size = Schedule(DiffusionConfig()), 48
    patches = torch.randn((16, 6, size, size), generator=torch.Generator().manual_seed(0))

    def unet() -> UNet:
        torch.manual_seed(0)
        return UNet(UNetConfig(channels=channels), 6).eval()

    def dense(stride: int, precision: str) -> Callable[[], int]:
        config = replace(PAPER, precision=precision)  # type: ignore[arg-type]
        extract = Extractor(unet(), schedule, config, PatchConfig(size=size, stride=stride))
        windows = max(1, 4 if stride > 1 else 2)
        return lambda: len(extract(patches[:windows]).centre_NPTD) * stride**2

    plain = unet()
    rows: list[tuple[str, Callable[[], int]]] = [
        ("plain, float32", lambda: len(plain_features(plain, schedule, PAPER, patches[:1])[0])),
        ("exact, float32", dense(1, "float32")),
        ("exact, bfloat16", dense(1, "bfloat16")),
        ("one window for 4 x 4 pixels, float32", dense(4, "float32")),
        ("one window for 4 x 4 pixels, bfloat16", dense(4, "bfloat16")),
    ]
    print(f"U-Net of {channels} channels, {size}-pixel patches, 19 timesteps, 5 stages; ", end="")
    print(f"{torch.get_num_threads()} threads\n\n| way | s / pixel | times plain |\n|---|---|---|")
    base = None
    for name, work in rows:
        seconds = _seconds_per_pixel(work)
        base = base or seconds
        print(f"| {name} | {seconds:.4f} | {base / seconds:.1f} |", flush=True)


def _seconds_per_pixel(work: Callable[[], int], repeats: int = 2) -> float:
    work()
    begun, pixels = time.perf_counter(), 0
    for _ in range(repeats):
        pixels += work()
    return (time.perf_counter() - begun) / pixels


if __name__ == "__main__":
    main()
